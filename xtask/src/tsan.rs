//! `cargo xtask tsan`: percpu-core's host tests under ThreadSanitizer, which finds data races between
//! threads that run at full size and truly at the same time.
//!
//! ThreadSanitizer sees what the compiler instruments, which assembly is not: with `--cfg
//! percpu_portable` a CPU's operations are atomic accesses made by the compiler. The standard library is
//! built anew, or its locks would be unknown, and every use of one a race.
//!
//! What it does not see: an order that is made by a fence alone. percpu-core has such fences in the
//! sequences of `counter/node.rs` and `local/stats.rs`. Everything that they order is atomic, so no
//! race is reported for want of them, and a fence that is missing is not found either:
//! `cargo xtask loom` has models of both sequences.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use xshell::cmd;

use crate::{cargo, programs, toolchain};

/// What the build takes: the standard library's source.
pub const COMPONENTS: &[&str] = &["rust-src"];

/// How it is installed.
pub const INSTALL: &str = "rustup toolchain install nightly --profile minimal --component rust-src";

const FLAGS: &str = "-Zsanitizer=thread --cfg percpu_portable";

/// Named, so that what builds need for themselves is not instrumented.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Test programs that are not run, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("allocator_limits", "it has one thread"),
    ("allocator_million", "it has one thread"),
    ("allocator_model", "it has one thread"),
    ("compile_fail", "it runs the compiler"),
    ("disassembly", "it looks at machine code"),
    ("loom_alloc", "a model: cargo xtask loom"),
    ("loom_counter", "a model: cargo xtask loom"),
    ("loom_local", "a model: cargo xtask loom"),
    ("loom_ref", "a model: cargo xtask loom"),
    ("shuttle", "a model: cargo xtask shuttle"),
    ("up", "its form of the crate is for one CPU, and not built"),
];

/// Tests that are not run: a search for leaks reads what others write, as a debugger does.
const SKIPPED: &[&str] = &["scans_and_calls_at_the_same_time_agree_in_the_end"];

#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose name contains this
    filter: Option<OsString>,
}

/// Runs the tests. A race fails the program that it is in, after the last test.
pub fn tsan(args: &Args) -> Result<ExitCode> {
    LEFT_OUT.iter().for_each(|(name, reason)| println!("left out: {name}: {reason}"));
    SKIPPED.iter().for_each(|name| println!("left out: {name}"));
    ensure!(cargo::succeeds(tests(args)?)?, "tests failed under ThreadSanitizer");
    Ok(ExitCode::SUCCESS)
}

fn tests(args: &Args) -> Result<Command> {
    let sh = cargo::shell()?;
    let toolchain = toolchain::nightly_with(&sh, COMPONENTS, INSTALL)?;
    let target_dir = cargo::target_dir()?.join("tsan");
    let flags = match std::env::var("RUSTFLAGS") {
        Ok(flags) => format!("{FLAGS} {flags}"),
        Err(_) => FLAGS.to_owned(),
    };
    let programs = programs::without(LEFT_OUT)?;
    let programs = programs.iter().flat_map(|name| programs::target(name));
    let filter = &args.filter;
    let skip = SKIPPED.iter().flat_map(|name| ["--skip", name]);
    let tests = cmd!(
        sh,
        "rustup run {toolchain} cargo test -Zbuild-std --target {TARGET} --target-dir {target_dir}
         --package percpu-core {programs...} --no-fail-fast -- {filter...} {skip...}"
    );
    Ok(tests.env("RUSTFLAGS", flags).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_are_left_out_exist() {
        let all = programs::all().unwrap();
        for (name, _) in LEFT_OUT {
            assert!(all.iter().any(|it| it == name), "{name}");
        }
    }
}
