//! `cargo xtask guest`: builds the guest kernel.
//!
//! It is linked at a fixed address, for a target without an operating system. Where that target
//! cannot be had, it is built freestanding for the host's own: code for that may use vector
//! registers and a red zone, which the guest allows for in ring 3.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Result;
use xshell::cmd;

use crate::{cargo, rustup};

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

/// For a machine that runs CPUs one at a time: a call on every edge and before every load and store,
/// and a flag an edge that says whether it was ever reached.
const STEPS_FLAGS: &[&str] = &[
    "--cfg=percpu_steps",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=3",
    "-Cllvm-args=-sanitizer-coverage-trace-pc-guard",
    "-Cllvm-args=-sanitizer-coverage-trace-loads",
    "-Cllvm-args=-sanitizer-coverage-trace-stores",
    "-Cllvm-args=-sanitizer-coverage-inline-bool-flag",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
];

/// The profile of the guest that is run and tested.
const PROFILE: &str = "guest";
/// The profile of the guest that is measured.
const SPEED: &str = "guest-bench";
/// The profile of the guest whose CPUs run one at a time.
const STEPS: &str = "guest-steps";

#[derive(clap::Args)]
pub struct Args {
    /// Build for the host's own target, as is done where x86_64-unknown-none cannot be had
    #[arg(long)]
    freestanding_host: bool,
    /// Build it for the deterministic machine, which runs CPUs one at a time
    #[arg(long)]
    steps: bool,
}

/// Builds the guest and prints where it is.
pub fn guest(args: &Args) -> Result<ExitCode> {
    let build = if args.freestanding_host { Build::HOSTED } else { Build::choose()? };
    let image = if args.steps { build.image_of(STEPS)? } else { build.image()? };
    println!("{}", image.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the guest for the target there is.
pub fn image() -> Result<PathBuf> {
    Build::choose()?.image()
}

/// The same without debug assertions, to be measured.
pub fn image_for_speed() -> Result<PathBuf> {
    Build::choose()?.image_of(SPEED)
}

/// The same, instrumented for the machine that runs CPUs one at a time.
pub fn image_for_steps() -> Result<PathBuf> {
    Build::choose()?.image_of(STEPS)
}

/// The same of another copy of the source, with another target directory.
pub fn image_for_steps_of(source: &Path, target_dir: &Path) -> Result<PathBuf> {
    let build = Build::choose()?;
    let mut command = build.cargo_in(source, target_dir, "build", STEPS)?;
    command.arg("--quiet");
    cargo::run(command)?;
    Ok(target_dir.join(build.target).join(STEPS).join("percpu-guest"))
}

/// A way of building the guest.
#[derive(Clone, Copy)]
pub struct Build {
    target: &'static str,
    flags: &'static [&'static str],
}

impl Build {
    const BARE: Self = Self { target: BARE, flags: BARE_FLAGS };
    const HOSTED: Self = Self { target: HOSTED, flags: HOSTED_FLAGS };

    /// The target without an operating system, added if it is missing, else the host's own.
    pub fn choose() -> Result<Self> {
        match rustup::need(BARE)? {
            Ok(()) => Ok(Self::BARE),
            Err(_) => {
                eprintln!(
                    "WARNING: The guest is built for {HOSTED} instead and runs in ring 3 only."
                );
                Ok(Self::HOSTED)
            }
        }
    }

    /// Builds it and returns where it is.
    pub fn image(self) -> Result<PathBuf> {
        self.image_of(PROFILE)
    }

    fn image_of(self, profile: &str) -> Result<PathBuf> {
        cargo::run(self.cargo_as("build", profile)?)?;
        Ok(target_dir()?.join(self.target).join(profile).join("percpu-guest"))
    }

    /// A cargo command on the guest, as it is built.
    pub fn cargo(self, subcommand: &str) -> Result<Command> {
        self.cargo_as(subcommand, PROFILE)
    }

    /// The same as it is built for the deterministic machine.
    pub fn cargo_for_steps(self, subcommand: &str) -> Result<Command> {
        self.cargo_as(subcommand, STEPS)
    }

    /// A cargo command on the guest with one of its profiles.
    ///
    /// Its target directory is its own, so that it neither waits for builds of host programs nor
    /// undoes them.
    fn cargo_as(self, subcommand: &str, profile: &str) -> Result<Command> {
        self.cargo_in(cargo::root(), &target_dir()?, subcommand, profile)
    }

    fn cargo_in(
        self,
        source: &Path,
        target_dir: &Path,
        subcommand: &str,
        profile: &str,
    ) -> Result<Command> {
        let sh = cargo::shell()?;
        sh.change_dir(source);
        let (cargo, target) = (cargo::cargo(), self.target);
        let steps = if profile == STEPS { STEPS_FLAGS } else { &[] };
        let flags: Vec<_> = FLAGS.iter().chain(self.flags).chain(steps).copied().collect();
        let command = cmd!(
            sh,
            "{cargo} {subcommand} --package percpu-guest --bin percpu-guest --features kernel
             --profile {profile} --target {target} --target-dir {target_dir}"
        );
        // In place of the user's RUSTFLAGS, which are meant for programs of the host.
        Ok(command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).into())
    }
}

fn target_dir() -> Result<PathBuf> {
    Ok(cargo::target_dir()?.join("guest"))
}
