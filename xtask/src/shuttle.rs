//! `cargo xtask shuttle`: larger models under shuttle, which tries interleavings that are chosen so as
//! to find a bug of a given depth.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::Result;
use xshell::cmd;

use crate::cargo;

#[derive(clap::Args)]
pub struct Args {
    /// Only models whose name contains this
    filter: Option<OsString>,
    /// Interleavings of each model
    #[arg(long)]
    iterations: Option<u32>,
    /// Run this one, as a failed model has printed it
    #[arg(long, requires = "filter")]
    schedule: Option<String>,
}

/// Explores the models.
pub fn shuttle(args: &Args) -> Result<ExitCode> {
    let mut models = models(args.filter.as_ref())?;
    if let Some(iterations) = args.iterations {
        models.env("PERCPU_ITERATIONS", iterations.to_string());
    }
    if let Some(schedule) = &args.schedule {
        models.env("PERCPU_SCHEDULE", schedule);
    }
    Ok(if cargo::succeeds(models)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The models as a cargo command, in a target directory of their own, as those under loom.
pub fn models(filter: Option<&OsString>) -> Result<Command> {
    let (sh, cargo) = (cargo::shell()?, cargo::cargo());
    let target_dir = cargo::target_dir()?.join("shuttle");
    let flags = match std::env::var("RUSTFLAGS") {
        Ok(flags) => format!("{flags} --cfg shuttle"),
        Err(_) => "--cfg shuttle".to_owned(),
    };
    let command = cmd!(
        sh,
        "{cargo} test --release --package percpu-core --test shuttle --target-dir {target_dir}
         -- --nocapture {filter...}"
    );
    let command = command.env("RUSTFLAGS", flags);
    Ok(command.env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true").into())
}
