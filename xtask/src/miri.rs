//! `cargo xtask miri`: percpu-core's host tests under Miri, which sees undefined behaviour that
//! ordinary runs survive: wild pointers, aliasing references, data races.

use std::ffi::OsString;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

use crate::{cargo, toolchain};

/// What Miri is told, besides the user's own `MIRIFLAGS`.
///
/// - Addresses are plain numbers with exposed provenance throughout the crate (another address
///   space reads them); Miri would warn at each.
/// - Threads wait for each other by `yield`, and look at clocks and at the environment.
/// - The one allocator of a program, as a static, and CPUs that are threads are never given back.
const FLAGS: &str = "-Zmiri-permissive-provenance -Zmiri-disable-isolation -Zmiri-ignore-leaks";

/// The tests' own is of no use to an interpreter, which would say so for each of them.
const NO_OPTIMISATION: &str = "profile.dev.package.percpu-core.opt-level=0";

/// How Miri is installed.
pub const INSTALL: &str = "rustup toolchain install nightly --component miri,rust-src";

#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose name contains this
    filter: Option<OsString>,
}

/// Runs the tests, and says how long it took.
pub fn miri(args: &Args) -> Result<ExitCode> {
    let start = Instant::now();
    let tests = tests(args)?;
    eprintln!("Miri interprets the tests: this takes some minutes");
    let succeeded = cargo::succeeds(tests)?;
    let seconds = start.elapsed().as_secs();
    println!("Miri took {} min {} s", seconds / 60, seconds % 60);
    ensure!(succeeded, "tests failed under Miri");
    Ok(ExitCode::SUCCESS)
}

fn tests(args: &Args) -> Result<Command> {
    let sh = cargo::shell()?;
    let toolchain = toolchain(&sh)?;
    let filter = &args.filter;
    let flags = match std::env::var("MIRIFLAGS") {
        Ok(flags) => format!("{FLAGS} {flags}"),
        Err(_) => FLAGS.to_owned(),
    };
    let command = cmd!(
        sh,
        "rustup run {toolchain} cargo miri test --config {NO_OPTIMISATION} --package percpu-core
         --lib --tests --no-fail-fast -- {filter...}"
    );
    Ok(command.env("MIRIFLAGS", flags).into())
}

/// The first nightly toolchain that has Miri.
fn toolchain(sh: &Shell) -> Result<String> {
    let nightlies = toolchain::nightlies(sh).with_context(|| format!("with rustup: {INSTALL}"))?;
    for nightly in nightlies {
        if toolchain::has_components(sh, &nightly, &["miri", "rust-src"])? {
            return Ok(nightly);
        }
    }
    bail!(
        "no nightly toolchain has Miri and the standard library's source; install them with\n    {INSTALL}"
    )
}
