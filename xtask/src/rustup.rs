//! Targets to compile for: whether they are installed, and how they come to be.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Error, Result, ensure};
use xshell::{Shell, cmd};

use crate::cargo;

/// Sees to it that programs for `target` can be compiled, by asking rustup for it if need be. The
/// inner error, about which a warning was printed, says that it cannot be had.
pub fn need(target: &str) -> Result<Result<(), Error>> {
    let sh = cargo::shell()?;
    if is_installed(&sh, target)? {
        return Ok(Ok(()));
    }
    let added = add(&sh, target);
    if let Err(error) = &added {
        eprintln!("WARNING: the rustup target {target} is missing and cannot be added:");
        eprintln!("WARNING: {error:#}.");
    }
    Ok(added)
}

/// Whether the compiler in use has the core library for `target`.
pub fn is_installed(sh: &Shell, target: &str) -> Result<bool> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let dir = cmd!(sh, "{rustc} --print target-libdir --target {target}")
        .quiet()
        .read()
        .context("rustc does not say where its libraries are")?;
    let Ok(files) = Path::new(&dir).read_dir() else { return Ok(false) };
    Ok(files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-")))
}

fn add(sh: &Shell, target: &str) -> Result<()> {
    eprintln!("adding the rustup target {target}");
    let status = Command::from(cmd!(sh, "rustup target add {target}"))
        .stdout(std::io::stderr())
        .status()
        .context("rustup does not start")?;
    ensure!(status.success(), "`rustup target add {target}` failed");
    ensure!(
        is_installed(sh, target)?,
        "the compiler in use is not the one that rustup looks after"
    );
    Ok(())
}
