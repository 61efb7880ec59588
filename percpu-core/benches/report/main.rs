//! The program behind `cargo xtask bench alloc`: prints tables, and the same numbers as JSON.
//!
//! It is an example to cargo because examples are programs that are built for speed on request and
//! found under their name.

mod alloc;
#[path = "../load/mod.rs"]
mod load;
mod progress;
mod rows;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(bin_name = "cargo run --release -p percpu-core --example bench --")]
struct Cli {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Subcommand)]
enum Subject {
    /// Measure the allocator of per-CPU memory beside a baseline
    Alloc(alloc::Args),
}

fn main() -> ExitCode {
    let Cli { subject: Subject::Alloc(args) } = Cli::parse();
    match alloc::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes `value` to `path`.
fn write_json(path: &PathBuf, value: &impl serde::Serialize) -> Result<(), String> {
    let text = serde_json::to_string_pretty(value).map_err(|error| error.to_string())?;
    std::fs::write(path, text + "\n")
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))
}
