//! What came of many runs.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::{Case, FuzzConfig, MachineKind, parallel};
use crate::error::{Error, Status};
use crate::machine::Outcome;

/// Version of the JSON form.
const SCHEMA: u32 = 1;

/// A seed whose run did not end well.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The invariant by its name, `crash`, `hang`, or `nondeterminism`.
    pub what: String,
    /// What was seen.
    pub detail: String,
    /// What the seed stands for.
    pub scenario: String,
    /// Steps of the run.
    pub steps: u64,
    /// Hash of its trace.
    pub hash: String,
    /// The file that has all of this and the scenario.
    pub file: String,
    /// The command line that repeats it.
    pub replay: String,
    /// The command line that makes it small.
    pub minimise: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.steps {
            0 => writeln!(f, "FAILED {}: {}", self.what, self.detail)?,
            steps => writeln!(f, "FAILED {} at step {steps}: {}", self.what, self.detail)?,
        }
        writeln!(f, "  seed {}: {}", self.seed, self.scenario)?;
        write!(f, "  {}", self.replay)?;
        match self.steps {
            0 => Ok(()),
            _ => write!(f, "\n  {}", self.minimise),
        }
    }
}

/// All that seeds have shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FuzzReport {
    /// The version of this layout: 1.
    pub schema: u32,
    /// First seed.
    pub first_seed: u64,
    /// Runs.
    pub runs: u64,
    /// Seeds that were run twice with equal traces.
    pub verified: u64,
    /// Whether each seed was to run twice.
    pub verify: bool,
    /// The guest's privilege level.
    pub ring: u8,
    /// The machine.
    pub machine: MachineKind,
    /// Time.
    pub seconds: f64,
    /// Runs a second, in all.
    pub runs_per_second: f64,
    /// Steps of all runs.
    pub steps: u64,
    /// Exits to the host.
    pub exits: u64,
    /// Plugs and unplugs carried out.
    pub plugs: u64,
    /// Those that failed or were rolled back.
    pub failed_plugs: u64,
    /// Objects held against invariants.
    pub checks: u64,
    /// Microseconds to put a guest back: the median's upper bound is not kept, only these two.
    pub reset_us_mean: f64,
    /// The longest.
    pub reset_us_max: f64,
    /// What went wrong.
    pub failures: Vec<Failure>,
    /// Ended by the user.
    pub interrupted: bool,
    #[serde(skip)]
    resets: Duration,
}

impl FuzzReport {
    pub(super) fn new(config: &FuzzConfig) -> Self {
        Self {
            schema: SCHEMA,
            first_seed: config.seeds.start,
            runs: 0,
            verified: 0,
            verify: config.verify,
            ring: config.ring,
            machine: config.machine,
            seconds: 0.0,
            runs_per_second: 0.0,
            steps: 0,
            exits: 0,
            plugs: 0,
            failed_plugs: 0,
            checks: 0,
            reset_us_mean: 0.0,
            reset_us_max: 0.0,
            failures: Vec::new(),
            interrupted: false,
            resets: Duration::ZERO,
        }
    }

    pub(super) fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.steps += outcome.steps;
        self.exits += outcome.bells;
        self.plugs += outcome.plugs;
        self.failed_plugs += outcome.failed_plugs;
        self.checks += outcome.checks;
        self.resets += outcome.reset;
        self.reset_us_mean = self.resets.as_secs_f64() * 1e6 / self.runs as f64;
        self.reset_us_max = self.reset_us_max.max(outcome.reset.as_secs_f64() * 1e6);
    }

    /// Adds a failure, of which there is a file.
    pub(super) fn add_failure(&mut self, case: &Case, file: &Path) -> &Failure {
        let seen = case.failure.clone().expect("it has failed");
        self.failures.push(Failure {
            seed: case.scenario.seed,
            what: seen.what,
            detail: seen.detail,
            scenario: match self.machine {
                MachineKind::Deterministic => case.scenario.to_string(),
                MachineKind::Parallel => parallel::describe(&case.scenario),
            },
            steps: seen.steps,
            hash: seen.hash,
            file: file.display().to_string(),
            replay: match self.machine {
                MachineKind::Deterministic => format!("cargo xtask replay {}", file.display()),
                MachineKind::Parallel => parallel::replay(case.scenario.seed),
            },
            minimise: format!("cargo xtask minimise {}", file.display()),
        });
        self.failures.last().expect("just added")
    }

    /// How things stand, in a line.
    pub(super) fn line(&self) -> String {
        let failures = self.failures.len();
        format!(
            "{} runs, {:.0} a second, {} plugs, {failures} failure{}",
            self.runs,
            self.runs as f64 / self.seconds.max(1e-3),
            self.plugs,
            if failures == 1 { "" } else { "s" },
        )
    }

    /// What to tell the caller.
    pub fn status(&self) -> Status {
        match self.failures.first().map(|failure| failure.what.as_str()) {
            None => Status::Held,
            Some("crash") => Status::Crashed,
            Some("hang") => Status::Hung,
            Some(_) => Status::Broken,
        }
    }

    /// Completes the figures and writes them as JSON.
    pub fn write_json(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).expect("strings and numbers");
        std::fs::write(path, text + "\n")
            .map_err(|source| Error::ReportUnwritable { path: path.into(), source })
    }
}

/// Writes the report as a table.
pub fn write_report(out: &mut impl Write, report: &FuzzReport) -> io::Result<()> {
    let runs = report.runs.max(1) as f64;
    let each = |sum: u64| sum as f64 / runs;
    let end = report.first_seed + report.runs;
    writeln!(out, "seeds {}..{end}, ring {}", report.first_seed, report.ring)?;
    writeln!(
        out,
        "{} runs in {:.1} s: {:.0} a second{}",
        report.runs,
        report.seconds,
        report.runs as f64 / report.seconds.max(1e-3),
        if report.verify { " (each twice)" } else { "" },
    )?;
    write!(
        out,
        "a run: {:.1} plugs ({:.1} failed), {:.0} checks",
        each(report.plugs + report.failed_plugs),
        each(report.failed_plugs),
        each(report.checks),
    )?;
    match report.machine {
        MachineKind::Deterministic => writeln!(
            out,
            ", {:.0} steps, {:.0} exits; reset {:.0} us, {:.0} us at most",
            each(report.steps),
            each(report.exits),
            report.reset_us_mean,
            report.reset_us_max,
        )?,
        MachineKind::Parallel => writeln!(out, "; all CPUs at once")?,
    }
    if report.verify {
        writeln!(out, "{} of {} seeds gave two equal traces", report.verified, report.runs)?;
    }
    for failure in &report.failures {
        writeln!(out, "{failure}")?;
    }
    match report.failures.len() {
        0 => writeln!(out, "HELD"),
        n => writeln!(out, "{n} FAILED"),
    }
}
