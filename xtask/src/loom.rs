//! `cargo xtask loom`: models of the locks' and counters' protocols under loom, which tries all
//! interleavings.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::Result;
use xshell::cmd;

use crate::cargo;

#[derive(clap::Args)]
pub struct Args {
    /// Only models whose name contains this
    filter: Option<OsString>,
}

/// Explores the models.
pub fn loom(args: &Args) -> Result<ExitCode> {
    Ok(if cargo::succeeds(models(args.filter.as_ref())?)? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The models as a cargo command. Everything is compiled with another configuration, so the target
/// directory is its own: neither waits for the other's builds nor undoes them.
pub fn models(filter: Option<&OsString>) -> Result<Command> {
    let (sh, cargo) = (cargo::shell()?, cargo::cargo());
    let target_dir = cargo::target_dir()?.join("loom");
    let flags = match std::env::var("RUSTFLAGS") {
        Ok(flags) => format!("{flags} --cfg loom"),
        Err(_) => "--cfg loom".to_owned(),
    };
    let command = cmd!(
        sh,
        "{cargo} test --release --package percpu-core --test loom_* --target-dir {target_dir}
         -- {filter...}"
    );
    let command = command.env("RUSTFLAGS", flags);
    Ok(command.env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true").into())
}
