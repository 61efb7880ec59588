//! `cargo xtask fuzz-vmm`: fuzz targets for the VMM, against hostile guests, images and files.

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use xshell::{Shell, cmd};

use crate::parts::Parts;
use crate::{cargo, toolchain};

/// As in `vmm-harness/fuzz/Cargo.toml`.
const TARGETS: [&str; 7] = ["image", "header", "rings", "walkers", "crash", "turns", "files"];
/// Seconds that one input may take.
const HANG: &str = "10";
/// MiB that a target may take in all, and at once.
const MOST_MEMORY: &str = "2048";
const MOST_AT_ONCE: &str = "1024";
/// Longer inputs than this, and than the seeds, show nothing more.
const LONGEST: &str = "16384";

#[derive(clap::Args)]
pub struct Args {
    /// The target [default: all, one after the other]
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(TARGETS))]
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60, value_name = "S")]
    time: u32,
    /// Processes at once
    #[arg(long, default_value_t = 1, value_name = "J")]
    jobs: u32,
}

/// Runs the targets. What was found lies in `vmm-harness/fuzz/artifacts` then.
pub fn fuzz_vmm(args: &Args) -> Result<ExitCode> {
    let sh = cargo::shell()?;
    let toolchain = toolchain::for_fuzzing(&sh)?;
    let mut parts = Parts::default();
    let all = TARGETS.iter().copied().filter(|name| args.target.as_ref().is_none_or(|t| t == name));
    for target in all {
        parts.part(target, || {
            let status = command(&sh, &toolchain, target, args)?.status()?;
            ensure!(
                status.success(),
                "{target} found something: what led to it lies in vmm-harness/fuzz/artifacts/{target}; \
                 put it into vmm-harness/fuzz/found/{target} once it is mended"
            );
            Ok(())
        });
    }
    Ok(parts.exit_code())
}

fn command(sh: &Shell, toolchain: &str, target: &str, args: &Args) -> Result<Command> {
    let (time, jobs) = (args.time.to_string(), args.jobs.to_string());
    // Apart: nothing that is built for fuzzing is of use to others.
    let directory = cargo::target_dir()?.join("fuzz-vmm");
    let corpus = directory.join("corpus").join(target);
    let command = cmd!(
        sh,
        "rustup run {toolchain} cargo fuzz run --fuzz-dir vmm-harness/fuzz --target-dir {directory}
         --jobs {jobs} {target} {corpus}
         -- -max_total_time={time} -timeout={HANG} -rss_limit_mb={MOST_MEMORY}
         -malloc_limit_mb={MOST_AT_ONCE} -max_len={LONGEST} -print_final_stats=1"
    );
    let command: Command = command.env("PERCPU_SEEDS", &corpus).into();
    std::fs::create_dir_all(corpus)?;
    Ok(command)
}
