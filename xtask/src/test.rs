//! `cargo xtask test`: all tests, those in the guest last.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use xshell::cmd;

use crate::parts::Parts;
use crate::{cargo, guest, kvm, standalone};

/// Tells tests to have no virtual machines: guests run as threads, what needs KVM is left out.
const NO_VM: &str = "PERCPU_NO_VM";
/// The part of the crates that are workspaces of their own.
const STANDALONE: &str = "crates that are workspaces of their own";
/// How the names of guest tests begin: by the ring they run in, or as threads.
const GUEST_TESTS: [&str; 3] = ["ring0::", "ring3::", "threads::direct::"];

#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose name contains this
    filter: Option<OsString>,
    /// Run guests as threads of a process, and leave out what needs a virtual machine
    #[arg(long)]
    no_vm: bool,
}

impl Args {
    /// Every test, or those that can do without a virtual machine.
    pub fn all(no_vm: bool) -> Self {
        Self { filter: None, no_vm }
    }
}

/// Runs all tests.
pub fn test(args: &Args) -> Result<ExitCode> {
    let mut parts = Parts::default();
    let no_vm = args.no_vm || kvm::warn_if_missing();
    tests(&Args { no_vm, filter: args.filter.clone() }, &mut parts)?;
    Ok(parts.exit_code())
}

/// Runs all tests as parts of a larger job.
pub fn tests(args: &Args, parts: &mut Parts) -> Result<()> {
    let image = guest::image()?;
    let host = "host tests and the examples in the documentation";
    parts.part(host, || cargo::run(host_tests(args, &image)?));
    let no_vm = args.no_vm.then_some(NO_VM);
    parts.part(STANDALONE, || {
        ensure!(standalone::tests(args.filter.as_ref(), no_vm)?, "a test failed");
        Ok(())
    });
    let guest = match args.no_vm {
        true => "guest tests, as threads only",
        false => "guest tests, in rings 3 and 0 and as threads",
    };
    parts.last(guest, || cargo::succeeds(guest_tests(args, &image)?));
    Ok(())
}

/// All but guest tests. The target `guest` is among them, with nothing to do: what cargo builds is
/// the same in both parts.
fn host_tests(args: &Args, image: &Path) -> Result<Command> {
    let (sh, cargo) = (cargo::shell()?, cargo::cargo());
    let skip = GUEST_TESTS.iter().flat_map(|prefix| ["--skip", prefix]);
    let filter = &args.filter;
    let tests = cmd!(sh, "{cargo} test --workspace --no-fail-fast -- {filter...} {skip...}")
        .env(cargo::IMAGE, image)
        .env(cargo::STEPS_IMAGE, guest::image_for_steps()?);
    Ok(with_or_without(args, tests.into()))
}

fn guest_tests(args: &Args, image: &Path) -> Result<Command> {
    let (sh, cargo) = (cargo::shell()?, cargo::cargo());
    let filter = &args.filter;
    let tests =
        cmd!(sh, "{cargo} test --workspace --test guest -- {filter...}").env(cargo::IMAGE, image);
    Ok(with_or_without(args, tests.into()))
}

/// Virtual machines.
fn with_or_without(args: &Args, mut tests: Command) -> Command {
    match args.no_vm {
        true => tests.env(NO_VM, "1"),
        false => tests.env_remove(NO_VM),
    };
    tests
}
