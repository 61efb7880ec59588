//! `cargo xtask`: builds the guest and the host program, runs them, tests them.
//!
//! Orders to cargo and to `vmm-harness`, which it knows as programs only.

mod bench;
mod builds;
mod cargo;
mod ci;
mod completions;
mod dependencies;
mod doctor;
mod fuzz;
mod fuzz_vmm;
mod guest;
mod kvm;
mod loom;
mod miri;
mod mutants;
mod parts;
mod programs;
mod run;
mod shuttle;
mod standalone;
mod test;
mod toolchain;
mod tsan;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Builds, runs and tests percpu.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the guest under load while CPUs come and go, and judge it: `cargo xtask run --help`
    #[command(disable_help_flag = true)]
    Run {
        /// Arguments of `vmm-harness run`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run scenarios made out of seeds, one CPU at a time: `cargo xtask fuzz --help`
    #[command(disable_help_flag = true)]
    Fuzz {
        /// Arguments of `vmm-harness fuzz`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run a scenario again, given by a file or a seed: `cargo xtask replay --help`
    #[command(disable_help_flag = true)]
    Replay {
        /// Arguments of `vmm-harness replay`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Look for the smallest scenario that fails as a file's or a seed's does: `cargo xtask minimise --help`
    #[command(disable_help_flag = true)]
    Minimise {
        /// Arguments of `vmm-harness minimise`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Add up the reports of a campaign's shards: `cargo xtask fuzz-merge --help`
    #[command(disable_help_flag = true)]
    FuzzMerge {
        /// Arguments of `vmm-harness fuzz-merge`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Look for known bugs, put into the source one by one, by the deterministic machine
    Mutants(mutants::Args),
    /// Run all tests: of the host's crates, of the documentation, and in the guest
    Test(test::Args),
    /// Measure how fast it is, beside yardsticks: `cargo xtask bench --help`
    #[command(disable_help_flag = true)]
    Bench(bench::Args),
    /// Explore all interleavings of the allocator's locks, in models under loom
    Loom(loom::Args),
    /// Try interleavings of larger combinations, in models under shuttle
    Shuttle(shuttle::Args),
    /// Run percpu-core's host tests under Miri
    Miri(miri::Args),
    /// Run percpu-core's host tests under ThreadSanitizer, which finds data races
    Tsan(tsan::Args),
    /// Fuzz the VMM: hostile guests, images and files
    FuzzVmm(fuzz_vmm::Args),
    /// Write a script that completes commands and options in a shell
    Completions(completions::Args),
    /// Say what this host can do, and what is missing
    Doctor,
    /// Build the guest and print the path of its image
    Guest(guest::Args),
    /// Do what continuous integration does
    Ci(ci::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run { args } => run::run(&args),
        Command::Fuzz { args } => fuzz::become_harness("fuzz", &args),
        Command::Replay { args } => fuzz::become_harness("replay", &args),
        Command::Minimise { args } => fuzz::become_harness("minimise", &args),
        Command::FuzzMerge { args } => fuzz::merge(&args),
        Command::Mutants(args) => mutants::mutants(&args),
        Command::Test(args) => test::test(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Loom(args) => loom::loom(&args),
        Command::Shuttle(args) => shuttle::shuttle(&args),
        Command::Miri(args) => miri::miri(&args),
        Command::Tsan(args) => tsan::tsan(&args),
        Command::FuzzVmm(args) => fuzz_vmm::fuzz_vmm(&args),
        Command::Completions(args) => completions::completions(&args, Cli::command()),
        Command::Doctor => doctor::doctor(),
        Command::Guest(args) => guest::guest(&args),
        Command::Ci(args) => ci::ci(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
