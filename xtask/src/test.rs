//! `cargo xtask test`: all tests, those in the guest last.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use xshell::cmd;

use crate::parts::Parts;
use crate::{cargo, examples, guest, kvm};

/// Tells tests that need a virtual machine to leave themselves out.
const NO_VM: &str = "PERCPU_NO_VM";
/// The part of the crates below `examples`.
const EXAMPLES: &str = "crates of their own, below examples";
/// How the names of guest tests begin: by the ring they run in.
const GUEST_TESTS: [&str; 2] = ["ring0::", "ring3::"];

#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose name contains this
    filter: Option<OsString>,
    /// Leave out what needs a virtual machine
    #[arg(long)]
    no_vm: bool,
}

impl Args {
    /// Every test, or every one that needs no virtual machine.
    pub fn all(no_vm: bool) -> Self {
        Self { filter: None, no_vm }
    }
}

/// Runs all tests.
pub fn test(args: &Args) -> Result<ExitCode> {
    if !args.no_vm {
        kvm::require()?;
    }
    let mut parts = Parts::default();
    tests(args, &mut parts)?;
    Ok(parts.exit_code())
}

/// Runs all tests as parts of a larger job.
pub fn tests(args: &Args, parts: &mut Parts) -> Result<()> {
    let image = guest::image()?;
    let host = "host tests and the examples in the documentation";
    if args.no_vm {
        println!("LEFT OUT (--no-vm): guest tests, and host tests that run a guest");
        parts.part(EXAMPLES, || {
            ensure!(examples::tests(args.filter.as_ref(), Some(NO_VM))?, "a test failed");
            Ok(())
        });
        parts.last(host, || cargo::succeeds(host_tests(args, &image)?));
    } else {
        parts.part(host, || cargo::run(host_tests(args, &image)?));
        parts.part(EXAMPLES, || {
            ensure!(examples::tests(args.filter.as_ref(), None)?, "a test failed");
            Ok(())
        });
        parts.last("guest tests, in rings 3 and 0", || cargo::succeeds(guest_tests(args, &image)?));
    }
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
    Ok(if args.no_vm { tests.env(NO_VM, "1") } else { tests.env_remove(NO_VM) }.into())
}

fn guest_tests(args: &Args, image: &Path) -> Result<Command> {
    let (sh, cargo) = (cargo::shell()?, cargo::cargo());
    let filter = &args.filter;
    let tests = cmd!(sh, "{cargo} test --workspace --test guest -- {filter...}")
        .env(cargo::IMAGE, image)
        .env_remove(NO_VM);
    Ok(tests.into())
}
