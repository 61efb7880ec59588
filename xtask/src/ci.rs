//! `cargo xtask ci`: what a change must pass.

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use percpu_guest_build::Kind;
use xshell::cmd;

use crate::parts::Parts;
use crate::{
    builds, cargo, dependencies, fuzz, guest, kvm, loom, miri, mutants, run, shuttle, standalone,
    test,
};

#[derive(clap::Args)]
pub struct Args {
    /// Leave out the tests, for a caller that runs `cargo xtask test` itself
    #[arg(long)]
    no_tests: bool,
}

/// Regressions that are looked for: one of the allocator, one on a CPU's way down. All there are take too
/// long here.
const REGRESSIONS: [&str; 2] = ["A1", "C1"];

/// Checks form, lints, documentation, builds for other machines, the locks' models, a part of the tests
/// under Miri, short runs on both machines, a few regressions, tests.
pub fn ci(args: &Args) -> Result<ExitCode> {
    let no_vm = kvm::warn_if_missing();
    let (sh, cargo) = (cargo::shell()?, cargo::cargo());
    let mut parts = Parts::default();
    parts.part("form", || {
        cargo::run(cmd!(sh, "{cargo} fmt --all --check").into())?;
        standalone::form()
    });
    parts.part("lints", || {
        let lints = ["-D", "warnings"];
        let host = cmd!(sh, "{cargo} clippy --workspace --all-targets -- {lints...}");
        cargo::run(host.into())?;
        let guest = guest::here()?;
        for kind in [Kind::Usual, Kind::Steps] {
            let mut kernel = guest.command("clippy", kind);
            kernel.arg("--").args(lints);
            cargo::run(kernel)?;
        }
        standalone::lints()
    });
    parts.part("the bank of regressions", mutants::check);
    parts.part("dependencies", dependencies::check);
    parts.part("documentation", || {
        let doc = cmd!(sh, "{cargo} doc --workspace --no-deps").env("RUSTDOCFLAGS", "-Dwarnings");
        cargo::run(doc.into())?;
        standalone::documentation()
    });
    parts.part("other machines, one CPU", builds::builds);
    let ahead = std::thread::spawn(build_ahead);
    parts.part("models of the locks", || cargo::run(loom::models(None)?));
    parts.part("larger models", || cargo::run(shuttle::models(None)?));
    parts.part("a part of the tests under Miri", miri::quick);
    // What went wrong there goes wrong again below, and is said then.
    let _ = ahead.join();
    parts.part("a short run", || succeed(run::command(&["--seconds".into(), "10".into()])?));
    parts.part("seeds, each twice", || {
        let args = ["--seeds", "0..200", "--verify"].map(Into::into);
        succeed(fuzz::command("fuzz", &args)?)
    });
    parts.part("a short fuzz, with the corpus", || succeed(short_fuzz()?));
    parts.part("scenarios with all CPUs at once", || {
        let args = ["--machine", "parallel", "--time", "10"].map(Into::into);
        succeed(fuzz::command("fuzz", &args)?)
    });
    parts.part("a few regressions", || mutants::look_for(&REGRESSIONS));
    if !args.no_tests {
        test::tests(&test::Args::all(no_vm), &mut parts)?;
    }
    Ok(parts.exit_code())
}

/// Builds what the runs after the models need. Models leave a core idle for minutes.
fn build_ahead() {
    let _ = run::command(&[]);
    let _ = fuzz::command("fuzz", &[]);
}

/// `vmm-harness fuzz` for half a minute, from what earlier ones have kept.
fn short_fuzz() -> Result<Command> {
    let mut command = fuzz::command("fuzz", &["--time", "20", "--failures", "5"].map(Into::into))?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    command.arg("--jobs").arg(jobs.to_string());
    command.arg("--corpus").arg(cargo::target_dir()?.join("fuzz/corpus"));
    Ok(command)
}

fn succeed(mut command: Command) -> Result<()> {
    let status = command.status()?;
    ensure!(status.success(), "{status}");
    Ok(())
}
