//! `cargo xtask doctor`: what can be built and run here.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use percpu_guest_build::BARE;

use crate::cargo;

/// Says whether the guest's target is there, then becomes `vmm-harness doctor`.
pub fn doctor() -> Result<ExitCode> {
    let harness = cargo::build_harness()?;
    let state = match percpu_guest_build::is_installed(BARE)? {
        true => "installed",
        false => "missing, the first build of the guest adds it",
    };
    println!("{:<24}{}, {state}", "guest target", BARE);
    Err(Command::new(harness).arg("doctor").exec()).context("vmm-harness does not start")
}
