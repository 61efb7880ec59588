//! Targets to compile for: whether they are installed, and how they come to be.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Error;

/// The target without an operating system.
pub const BARE: &str = "x86_64-unknown-none";
/// The host's own.
const HOSTED: &str = "x86_64-unknown-linux-gnu";

/// For either target: fixed addresses, and frames that can be walked.
const FLAGS: &[&str] = &[
    "-Crelocation-model=static",
    "-Cforce-frame-pointers=yes",
    "-Clink-arg=-z",
    "-Clink-arg=max-page-size=4096",
];
/// rustc links with its own lld.
const BARE_FLAGS: &[&str] = &["-Clink-arg=--image-base=0x2000000"];
/// Links through the C compiler, by GNU ld (lld and GNU ld name the base address differently).
/// The compiled core library mentions the unwinder, which nothing calls where panics abort.
const HOSTED_FLAGS: &[&str] = &[
    "-Cpanic=abort",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-fuse-ld=bfd",
    "-Clink-arg=-Wl,-Ttext-segment=0x2000000",
    "-Clink-arg=-Wl,--defsym=rust_eh_personality=0",
];

/// What guests can be compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A machine without an operating system.
    Bare,
    /// The host's own target, freestanding: code for it may use vector registers and a red zone, which
    /// a guest allows for in ring 3.
    Hosted,
}

impl Target {
    /// The target without an operating system, added if it is missing, else the host's own.
    pub fn choose() -> Result<Self, Error> {
        match need(BARE)? {
            Ok(()) => Ok(Self::Bare),
            Err(_) => {
                eprintln!(
                    "WARNING: The guest is built for {HOSTED} instead and runs in ring 3 only."
                );
                Ok(Self::Hosted)
            }
        }
    }

    /// Its name for the compiler.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bare => BARE,
            Self::Hosted => HOSTED,
        }
    }

    pub(crate) fn flags(self) -> impl Iterator<Item = &'static str> {
        let own = match self {
            Self::Bare => BARE_FLAGS,
            Self::Hosted => HOSTED_FLAGS,
        };
        FLAGS.iter().chain(own).copied()
    }
}

/// Sees to it that programs for `target` can be compiled, by asking rustup for it if need be. The
/// inner error, about which a warning was printed, says that it cannot be had.
pub fn need(target: &str) -> Result<Result<(), Error>, Error> {
    if is_installed(target)? {
        return Ok(Ok(()));
    }
    let added = add(target);
    if let Err(error) = &added {
        eprintln!("WARNING: the rustup target {target} is missing and cannot be added:");
        eprintln!("WARNING: {error}.");
    }
    Ok(added)
}

/// Whether the compiler in use has the core library for `target`.
pub fn is_installed(target: &str) -> Result<bool, Error> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let mut command = Command::new(rustc);
    command.args(["--print", "target-libdir", "--target", target]);
    let output = command.output().map_err(|why| Error::no_start(&command, &why))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(Error(format!("rustc does not say where its libraries are: {}", why.trim())));
    }
    let directory = String::from_utf8_lossy(&output.stdout);
    let Ok(files) = Path::new(directory.trim()).read_dir() else { return Ok(false) };
    Ok(files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-")))
}

fn add(target: &str) -> Result<(), Error> {
    eprintln!("adding the rustup target {target}");
    let mut command = Command::new("rustup");
    command.args(["target", "add", target]).stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.status().map_err(|why| Error::no_start(&command, &why))?;
    if !status.success() {
        return Err(Error(format!("`rustup target add {target}` failed")));
    }
    match is_installed(target)? {
        true => Ok(()),
        false => Err(Error("the compiler in use is not the one that rustup looks after".into())),
    }
}
