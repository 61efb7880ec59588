//! `cargo xtask bench`: how fast it is, by the benchmark programs of the crates.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Subcommand;
use xshell::cmd;

use crate::cargo;

/// What is measured. Each has a program of its own, which reads the arguments.
#[derive(Subcommand)]
pub enum Subject {
    /// The allocator, beside a baseline: `cargo xtask bench alloc --help`
    #[command(disable_help_flag = true)]
    Alloc {
        /// Arguments of the program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

/// Becomes the benchmark program, in the directory the user is in. Returns only if that fails.
pub fn bench(subject: &Subject) -> Result<ExitCode> {
    let (mut program, name, args) = match subject {
        Subject::Alloc { args } => (percpu_core()?, "alloc", args),
    };
    Err(program.arg(name).args(args).exec()).context("the benchmark program does not start")
}

/// percpu-core's program, built for speed.
fn percpu_core() -> Result<Command> {
    let (sh, cargo) = (cargo::shell()?, cargo::cargo());
    cargo::run(cmd!(sh, "{cargo} build --release --package percpu-core --example bench").into())?;
    Ok(Command::new(cargo::target_dir()?.join("release/examples/bench")))
}
