//! What came of many runs.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use percpu_guest::abi::{VECTOR_COMMAND, VECTOR_TIMER};
use serde::Serialize;

use super::{FuzzConfig, MachineKind, Minimal, parallel};
use crate::error::{Error, Status};
use crate::machine::{Ending, Entry, Outcome, Scenario, Trace};

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
    /// The command line that repeats it.
    pub replay: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.steps {
            0 => writeln!(f, "FAILED {}: {}", self.what, self.detail)?,
            steps => writeln!(f, "FAILED {} at step {steps}: {}", self.what, self.detail)?,
        }
        writeln!(f, "  seed {}: {}", self.seed, self.scenario)?;
        write!(f, "  {}", self.replay)
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

    pub(super) fn add(&mut self, scenario: &Scenario, outcome: &Outcome) {
        self.runs += 1;
        self.steps += outcome.steps;
        self.exits += outcome.bells;
        self.plugs += outcome.plugs;
        self.failed_plugs += outcome.failed_plugs;
        self.checks += outcome.checks;
        self.resets += outcome.reset;
        self.reset_us_mean = self.resets.as_secs_f64() * 1e6 / self.runs as f64;
        self.reset_us_max = self.reset_us_max.max(outcome.reset.as_secs_f64() * 1e6);
        let detail = match &outcome.ending {
            Ending::Held => return,
            Ending::Broken(violations) => {
                violations.first().map(|v| v.detail.clone()).unwrap_or_default()
            }
            // Whoever cannot replay it to see more needs to see all of it now.
            Ending::Crashed(crash) | Ending::Hung(crash) => match self.machine {
                MachineKind::Deterministic => crash.text.clone(),
                MachineKind::Parallel => crash.to_string(),
            },
        };
        self.failures.push(Failure {
            seed: scenario.seed,
            what: outcome.ending.name().to_owned(),
            detail,
            scenario: match self.machine {
                MachineKind::Deterministic => scenario.to_string(),
                MachineKind::Parallel => parallel::describe(scenario),
            },
            steps: outcome.steps,
            hash: format!("{:#018x}", outcome.trace.hash()),
            replay: match self.machine {
                MachineKind::Deterministic => format!("cargo xtask replay {}", scenario.seed),
                MachineKind::Parallel => parallel::replay(scenario.seed),
            },
        });
    }

    /// Compares two runs of a seed.
    pub(super) fn compare(&mut self, seed: u64, a: &Trace, b: &Trace) {
        let Some((at, first, second)) = a.parting(b) else {
            self.verified += 1;
            return;
        };
        let entry =
            |entry: Option<Entry>| entry.map_or("the end".to_owned(), |entry| entry.to_string());
        self.failures.push(Failure {
            seed,
            what: "nondeterminism".into(),
            detail: format!(
                "two runs part at entry {at} of {} and {}: [{}] against [{}]",
                a.entries().len(),
                b.entries().len(),
                entry(first),
                entry(second)
            ),
            scenario: Scenario::from_seed(seed).to_string(),
            steps: 0,
            hash: format!("{:#018x}", a.hash()),
            replay: format!("cargo xtask fuzz --seeds {seed}..{} --verify", seed + 1),
        });
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

/// Writes what came of one run.
pub fn write_replay(
    out: &mut impl Write,
    scenario: &Scenario,
    outcome: &Outcome,
    trace: bool,
) -> io::Result<()> {
    writeln!(out, "seed {}: {scenario}", scenario.seed)?;
    if trace {
        for entry in outcome.trace.entries() {
            writeln!(out, "{entry}")?;
        }
    }
    writeln!(
        out,
        "{} steps ({} points), {} exits, {} plugs ({} failed), {} checks, trace {:#018x}",
        outcome.steps,
        outcome.points,
        outcome.bells,
        outcome.plugs + outcome.failed_plugs,
        outcome.failed_plugs,
        outcome.checks,
        outcome.trace.hash(),
    )?;
    write_ending(out, &outcome.ending)
}

/// Rows of a trace that are shown, the last ones.
const ROWS: usize = 50;
/// Columns of a CPU in a trace.
const COLUMN: usize = 36;

/// Writes a minimal scenario, and its run CPU by CPU: what each did and where it stood when another
/// took over.
pub fn write_minimal(out: &mut impl Write, minimal: &Minimal) -> io::Result<()> {
    let Minimal { scenario, outcome, from, runs } = minimal;
    writeln!(out, "seed {}: {from}", scenario.seed)?;
    writeln!(out, "minimal after {runs} runs: {scenario}")?;
    for plug in &scenario.plugs {
        let fail = plug.fail.map_or(String::new(), |step| format!(", step {step} fails"));
        writeln!(out, "  CPU {} plugged in or out after {} steps{fail}", plug.cpu, plug.after)?;
    }
    let cpus = scenario.topology.possible;
    let columns: Vec<_> =
        (0..cpus).map(|cpu| format!("{:COLUMN$}", format!("CPU {cpu}"))).collect();
    writeln!(out, "{:>9}  {}", "step", columns.join(""))?;
    let mut places = outcome.places.iter();
    let mut rows = Vec::new();
    for entry in outcome.trace.entries() {
        match entry {
            Entry::Ran { cpu, steps, bell, .. } => {
                let place = places.next().map_or("", String::as_str);
                rows.push((*steps, *cpu, format!("{bell:?}"), place));
            }
            Entry::Raised { cpu, steps, vector } => {
                let what = match *vector {
                    VECTOR_TIMER => "timer interrupt",
                    VECTOR_COMMAND => "host: plug or unplug",
                    _ => "interrupt",
                };
                rows.push((*steps, *cpu, what.to_owned(), ""));
            }
            Entry::Event(_) => {}
        }
    }
    let skip = rows.len().saturating_sub(ROWS);
    if skip > 0 {
        writeln!(out, "{:>9}  ({skip} rows before these)", "...")?;
    }
    for (steps, cpu, what, place) in &rows[skip..] {
        let indent = *cpu as usize * COLUMN;
        writeln!(out, "{steps:>9}  {:indent$}{what}", "")?;
        for part in place.split(" < ").filter(|part| !part.is_empty()) {
            writeln!(out, "{:>9}  {:indent$}  {part}", "", "")?;
        }
    }
    write_ending(out, &outcome.ending)
}

fn write_ending(out: &mut impl Write, ending: &Ending) -> io::Result<()> {
    match ending {
        Ending::Held => writeln!(out, "HELD"),
        Ending::Broken(violations) => violations.iter().try_for_each(|violation| {
            writeln!(out, "BROKEN {}: {}", violation.invariant, violation.detail)
        }),
        Ending::Crashed(crash) => writeln!(out, "CRASHED: {crash}"),
        Ending::Hung(crash) => writeln!(out, "HUNG: {crash}"),
    }
}
