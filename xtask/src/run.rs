//! `cargo xtask run`: builds everything and becomes `vmm-harness run`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{cargo, guest};

/// Becomes `vmm-harness run`, so that its signals and its exit status are its own. Returns only if
/// that fails.
pub fn run(args: &[OsString]) -> Result<ExitCode> {
    Err(command(args)?.exec()).context("vmm-harness does not start")
}

/// `vmm-harness run`, in the directory the user is in.
pub fn command(args: &[OsString]) -> Result<Command> {
    let image = guest::image()?;
    let mut command = Command::new(cargo::build_harness()?);
    command.arg("run").args(args).env(cargo::IMAGE, image);
    Ok(command)
}
