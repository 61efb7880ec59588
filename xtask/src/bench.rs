//! `cargo xtask bench`: how fast it is. `vmm-harness` measures; here is built what it measures.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use xshell::cmd;

use crate::{cargo, guest};

/// percpu-core's own program, which measures the allocator.
const ALLOC_BENCH: &str = "PERCPU_ALLOC_BENCH";

#[derive(clap::Args)]
pub struct Args {
    /// What to measure (core, alloc, counter, plug, boot, all), and arguments of `vmm-harness bench`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Becomes `vmm-harness bench`, in the directory the user is in. Returns only if that fails.
pub fn bench(args: &Args) -> Result<ExitCode> {
    let mut program = Command::new(cargo::build_harness()?);
    program.arg("bench").args(&args.args);
    if !args.args.iter().any(|arg| arg == "--help" || arg == "-h") {
        // The subject comes first, if it is named at all.
        let subject = args.args.first().and_then(|arg| arg.to_str());
        let named = |one: &str| {
            let others = ["core", "alloc", "counter", "plug", "boot"];
            subject == Some(one) || !subject.is_some_and(|subject| others.contains(&subject))
        };
        provide(&mut program, cargo::IMAGE, guest::image_for_speed)?;
        if named("boot") {
            provide(&mut program, cargo::STEPS_IMAGE, guest::image_for_steps)?;
        }
        if named("alloc") {
            provide(&mut program, ALLOC_BENCH, percpu_core)?;
        }
    }
    Err(program.exec()).context("the benchmark program does not start")
}

/// Tells the program where something is, which is built unless the user has said so already.
fn provide(
    program: &mut Command,
    variable: impl AsRef<OsStr>,
    build: impl FnOnce() -> Result<PathBuf>,
) -> Result<()> {
    if std::env::var_os(&variable).is_none() {
        program.env(variable, build()?);
    }
    Ok(())
}

/// percpu-core's program, built for speed.
fn percpu_core() -> Result<PathBuf> {
    let (sh, cargo) = (cargo::shell()?, cargo::cargo());
    cargo::run(cmd!(sh, "{cargo} build --release --package percpu-core --example bench").into())?;
    Ok(cargo::target_dir()?.join("release/examples/bench"))
}
