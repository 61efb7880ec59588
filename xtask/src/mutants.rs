//! `cargo xtask mutants`: whether the deterministic machine finds the bugs that it exists to find.
//!
//! `ci/mutants` has a patch for each regression that the tests must be able to catch. Each is applied
//! to a copy of the source, and the guest that comes of it is run with seeds until an invariant that
//! the patch names is seen broken; then the scenario is minimised. The source as it is must survive
//! the same time.

mod bank;
mod copy;
mod hunt;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::{cargo, kvm};

use bank::Mutant;
pub use bank::check;
use copy::Copy;
use hunt::{Found, Hunt};

/// Seconds for each regression, unless said otherwise.
const TIME: f64 = 60.0;

#[derive(clap::Args)]
pub struct Args {
    /// Regressions, by name [default: all, and the source without one]
    names: Vec<String>,
    /// Look no longer than so many seconds for each
    #[arg(long, value_name = "S", default_value_t = TIME)]
    time: f64,
    /// Run so many seeds at the same time [default: one a CPU]
    #[arg(long, value_name = "J")]
    jobs: Option<usize>,
    /// Make each failure small, for so many seconds at most
    #[arg(long, value_name = "S", default_value = "20")]
    minimise: f64,
    /// Write the table to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// List the regressions
    #[arg(long)]
    list: bool,
}

/// What came of one regression.
#[derive(Serialize)]
struct Row {
    name: String,
    what: String,
    /// Invariants of which one is expected to be seen broken; none of the source as it is.
    expected: Vec<String>,
    found: Option<Found>,
    /// Runs until then, or until the time was up.
    runs: u64,
    /// Seconds likewise.
    seconds: f64,
    /// What else was seen before, and of the source as it is: anything.
    otherwise: Vec<String>,
    /// Why there was nothing to run.
    error: Option<String>,
}

impl Row {
    /// Nothing was run.
    fn new(mutant: &Mutant) -> Self {
        Self {
            name: mutant.name.clone(),
            what: mutant.what.clone(),
            expected: mutant.finds.clone(),
            found: None,
            runs: 0,
            seconds: 0.0,
            otherwise: Vec::new(),
            error: None,
        }
    }

    fn is_as_expected(&self) -> bool {
        let quiet = self.expected.is_empty() && self.otherwise.is_empty();
        self.error.is_none() && (quiet || self.found.is_some())
    }
}

/// Looks for each regression; a failure if one is not found.
pub fn mutants(args: &Args) -> Result<ExitCode> {
    let bank = bank::chosen(&args.names)?;
    if args.list {
        for mutant in &bank {
            println!("{:3}  {} ({})", mutant.name, mutant.what, mutant.finds.join(", "));
        }
        return Ok(ExitCode::SUCCESS);
    }
    kvm::warn_if_missing();
    let harness = cargo::build_harness()?;
    let copy = Copy::new(cargo::target_dir()?.join("mutants"))?;
    let jobs =
        args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let time = Duration::try_from_secs_f64(args.time).context("--time")?;
    let hunt = Hunt { harness, jobs, time, minimise: args.minimise };

    let subjects: Vec<_> = match args.names.is_empty() {
        true => std::iter::once(Mutant::none()).chain(bank).collect(),
        false => bank,
    };
    // First all builds, so that none is under way while time is taken.
    let images: Vec<_> = subjects
        .iter()
        .map(|mutant| {
            say(&format!("{}: building", mutant.name));
            copy.build(mutant)
        })
        .collect();
    let mut rows = Vec::new();
    println!("{}", heading());
    for (mutant, image) in subjects.into_iter().zip(images) {
        let failed =
            |error: anyhow::Error| Row { error: Some(format!("{error:#}")), ..Row::new(&mutant) };
        let row = match image {
            Ok(image) => hunt.run(&mutant, &image, say).unwrap_or_else(&failed),
            Err(error) => failed(error),
        };
        clear();
        println!("{}", line(&row));
        rows.push(row);
    }
    println!("{}", summary(&rows));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows).expect("strings and numbers");
        std::fs::write(path, text + "\n")
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    let all = rows.iter().all(Row::is_as_expected);
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Looks for some regressions, by name; an error if one is not found.
pub fn look_for(names: &[&str]) -> Result<()> {
    let names = names.iter().map(ToString::to_string).collect();
    let code =
        mutants(&Args { names, time: TIME, jobs: None, minimise: 0.0, json: None, list: false })?;
    ensure!(code == ExitCode::SUCCESS, "not all were found");
    Ok(())
}

fn heading() -> String {
    format!(
        "{:4} {:10} {:>9} {:>9} {:>8}  {}",
        "name", "invariant", "seed", "runs", "seconds", "minimised"
    )
}

fn line(row: &Row) -> String {
    let Row { name, runs, seconds, .. } = row;
    let (broken, seed, minimal) = match &row.found {
        Some(found) => {
            let minimal =
                found.switches.map_or("no".into(), |turns| format!("to {turns} switches"));
            (found.invariant.as_str(), found.seed.to_string(), minimal)
        }
        None if row.is_as_expected() => ("-", "-".into(), "HELD, as it must".into()),
        None => ("-", "-".into(), "NOT FOUND".into()),
    };
    let mut line = format!("{name:4} {broken:10} {seed:>9} {runs:>9} {seconds:>8.1}  {minimal}");
    if !row.otherwise.is_empty() {
        line += &format!(" (also seen: {})", row.otherwise.join(", "));
    }
    if let Some(error) = &row.error {
        line += &format!(": {error}");
    }
    line + &format!("\n     {}", row.what)
}

fn summary(rows: &[Row]) -> String {
    let mutants: Vec<_> = rows.iter().filter(|row| !row.expected.is_empty()).collect();
    let mut times: Vec<_> =
        mutants.iter().filter(|row| row.found.is_some()).map(|row| row.seconds).collect();
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).map_or(String::new(), |median| {
        format!(", the median after {median:.1} s, the last after {:.1} s", times[times.len() - 1])
    });
    let failed = rows.iter().filter(|row| !row.is_as_expected()).count();
    let end = if failed == 0 { "as it must be" } else { "FAILED" };
    format!("{} of {} found{median}: {end}", times.len(), mutants.len())
}

/// Shows what is being done, on a terminal.
fn say(text: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[K{text}");
        let _ = stderr.flush();
    }
}

fn clear() {
    say("");
}
