//! `cargo xtask bench`: how fast it is, by the benchmark programs of the crates.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Subcommand;
use xshell::cmd;

use crate::{cargo, guest};

/// What is measured. Each has a program of its own, which reads the arguments.
#[derive(Subcommand)]
pub enum Subject {
    /// The allocator, beside a baseline: `cargo xtask bench alloc --help`
    #[command(disable_help_flag = true)]
    Alloc(Args),
    /// Operations, guards, counters and references, in cycles in the guest, beside the bare
    /// instructions and a shared atomic: `cargo xtask bench core --help`
    #[command(disable_help_flag = true)]
    Core(Args),
}

#[derive(clap::Args)]
pub struct Args {
    /// Arguments of the program.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Becomes the benchmark program, in the directory the user is in. Returns only if that fails.
pub fn bench(subject: &Subject) -> Result<ExitCode> {
    let mut program = match subject {
        Subject::Alloc(Args { args }) => percpu_core("alloc", args)?,
        Subject::Core(Args { args }) => harness(args)?,
    };
    Err(program.exec()).context("the benchmark program does not start")
}

/// percpu-core's program, built for speed.
fn percpu_core(subject: &str, args: &[OsString]) -> Result<Command> {
    let (sh, cargo) = (cargo::shell()?, cargo::cargo());
    cargo::run(cmd!(sh, "{cargo} build --release --package percpu-core --example bench").into())?;
    let mut program = Command::new(cargo::target_dir()?.join("release/examples/bench"));
    program.arg(subject).args(args);
    Ok(program)
}

/// `vmm-harness bench` with a guest that is built for speed.
fn harness(args: &[OsString]) -> Result<Command> {
    let image = guest::image_for_speed()?;
    let mut program = Command::new(cargo::build_harness()?);
    program.arg("bench").args(args).env(cargo::IMAGE, image);
    Ok(program)
}
