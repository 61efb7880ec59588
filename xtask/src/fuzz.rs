//! `cargo xtask fuzz`, `replay` and `minimise`: build everything and become `vmm-harness`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{cargo, guest};

/// Becomes `vmm-harness SUBCOMMAND` with the guest for the deterministic machine. Returns only if that
/// fails.
pub fn become_harness(subcommand: &str, args: &[OsString]) -> Result<ExitCode> {
    Err(command(subcommand, args)?.exec()).context("vmm-harness does not start")
}

/// `vmm-harness SUBCOMMAND` with that guest, or the ordinary one for the parallel machine.
pub fn command(subcommand: &str, args: &[OsString]) -> Result<Command> {
    let image = if is_parallel(args) { guest::image()? } else { guest::image_for_steps()? };
    let mut command = Command::new(cargo::build_harness()?);
    command.arg(subcommand).args(args).env(cargo::IMAGE, image);
    Ok(command)
}

/// Whether the arguments name the parallel machine.
fn is_parallel(args: &[OsString]) -> bool {
    args.iter().any(|arg| arg == "--machine=parallel")
        || args.windows(2).any(|pair| pair == ["--machine", "parallel"])
}
