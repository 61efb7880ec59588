//! What came of many runs.

use std::io::{self, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Failure, FuzzConfig, MachineKind};
use crate::coverage::{Coverage, Features};
use crate::error::Status;
use crate::machine::Outcome;
use crate::report::{file, junit};
use crate::vm::Engine;

/// Version of the JSON form.
pub(super) const SCHEMA: u32 = 2;

/// All that runs have shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FuzzReport {
    /// The version of this layout: 2.
    pub schema: u32,
    /// The machine.
    pub machine: MachineKind,
    /// [`image_name`](super::image_name) of the guest.
    pub image: String,
    /// What ran the guest; of reports that were merged the first one's.
    #[serde(default)]
    pub engine: Engine,
    /// The guest's privilege level.
    pub ring: u8,
    /// Threads that ran scenarios.
    pub jobs: usize,
    /// Which part of how many this is; reports that were merged have none.
    pub shard: Option<String>,
    /// Seeds that were run, each as its first one and the one after its last.
    pub seeds: Vec<(u64, u64)>,
    /// Runs.
    pub runs: u64,
    /// Of which of scenarios that had been kept before, and were changed.
    pub runs_changed: u64,
    /// Of which to see what the kept scenarios of the corpus reach.
    pub runs_of_corpus: u64,
    /// Whether each scenario was to run twice.
    pub verify: bool,
    /// Scenarios that were run twice with equal traces.
    pub verified: u64,
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
    /// Microseconds to put a guest back, on average.
    pub reset_us_mean: f64,
    /// The longest.
    pub reset_us_max: f64,
    /// Edges that were reached.
    pub edges: usize,
    /// Pairs of places at which a CPU took over from another.
    pub switches: usize,
    /// What was reached, to be added up.
    pub coverage: Option<Coverage>,
    /// Scenarios in the corpus.
    pub corpus: usize,
    /// Files of the corpus that are no scenarios.
    pub corpus_wrong: usize,
    /// What went wrong.
    pub failures: Vec<Failure>,
    /// Ended by the user.
    pub interrupted: bool,
    /// What ended it early.
    pub error: Option<String>,
    #[serde(skip)]
    pub(super) resets: Duration,
}

impl FuzzReport {
    pub(super) fn new(config: &FuzzConfig, image: String) -> Self {
        Self {
            schema: SCHEMA,
            machine: config.machine,
            image,
            engine: config.host.engine,
            ring: config.ring,
            jobs: config.jobs_at_once(),
            shard: Some(config.shard.to_string()),
            seeds: Vec::new(),
            runs: 0,
            runs_changed: 0,
            runs_of_corpus: 0,
            verify: config.verify,
            verified: 0,
            seconds: 0.0,
            runs_per_second: 0.0,
            steps: 0,
            exits: 0,
            plugs: 0,
            failed_plugs: 0,
            checks: 0,
            reset_us_mean: 0.0,
            reset_us_max: 0.0,
            edges: 0,
            switches: 0,
            coverage: None,
            corpus: 0,
            corpus_wrong: 0,
            failures: Vec::new(),
            interrupted: false,
            error: None,
            resets: Duration::ZERO,
        }
    }

    pub(super) fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.steps = self.steps.saturating_add(outcome.steps);
        self.exits += outcome.bells;
        self.plugs = self.plugs.saturating_add(outcome.plugs);
        self.failed_plugs = self.failed_plugs.saturating_add(outcome.failed_plugs);
        self.checks = self.checks.saturating_add(outcome.checks);
        self.resets += outcome.reset;
        self.reset_us_mean = self.resets.as_secs_f64() * 1e6 / self.runs as f64;
        self.reset_us_max = self.reset_us_max.max(outcome.reset.as_secs_f64() * 1e6);
    }

    /// Notes how long it has taken so far.
    pub(super) fn set_time(&mut self, time: Duration) {
        self.seconds = time.as_secs_f64();
        self.runs_per_second = self.runs as f64 / self.seconds.max(1e-3);
    }

    /// Notes how much was reached.
    pub(super) fn note_reached(&mut self, reached: &Features) {
        (self.edges, self.switches) = (reached.edges.count(), reached.switches.count());
    }

    /// The failures, one of each kind with how many there are of it, in order.
    pub fn kinds(&self) -> Vec<(&Failure, usize)> {
        let mut kinds: Vec<(&Failure, usize)> = Vec::new();
        for failure in &self.failures {
            match kinds.iter_mut().find(|(kind, _)| kind.key == failure.key) {
                Some((_, times)) => *times += 1,
                None => kinds.push((failure, 1)),
            }
        }
        kinds
    }

    /// What to tell the caller: a broken invariant weighs more than a crash, that more than a hang.
    pub fn status(&self) -> Status {
        let status = |failure: &Failure| match failure.what.as_str() {
            "crash" => Status::Crashed,
            "hang" => Status::Hung,
            _ => Status::Broken,
        };
        self.failures.iter().map(status).min_by_key(|&status| status as u8).unwrap_or(Status::Held)
    }

    /// The report as JSON.
    pub fn to_json(&self) -> String {
        file::to_json(self)
    }

    /// The report as JUnit's XML: a case for the whole, and one for each kind of failure.
    pub fn to_junit(&self) -> String {
        let class = "percpu.fuzz";
        let seeds: Vec<_> = self.seeds.iter().map(|(from, to)| format!("{from}..{to}")).collect();
        let properties = [("seeds", seeds.join(", ")), ("runs", self.runs.to_string())];
        let mut suite = junit::suite("fuzz", self.seconds, &properties);
        let name = "the campaign comes to its end";
        suite.add_test_case(match &self.error {
            None => junit::passed(name, class),
            Some(error) => junit::failed(name, class, junit::kind("crash"), (error, error)),
        });
        if self.failures.is_empty() {
            suite.add_test_case(junit::passed(format!("{} runs hold", self.runs), class));
        }
        for (failure, times) in self.kinds() {
            let name = format!("{} (seed {})", failure.key, failure.seed);
            let text = format!("{failure}\n\n{times} times\n");
            let message = failure.detail.lines().next().unwrap_or_default();
            let kind = junit::kind(&failure.what);
            suite.add_test_case(junit::failed(name, class, kind, (message, &text)));
        }
        junit::text(&junit::report(suite))
    }
}

/// Writes the report as a table.
pub fn write_report(out: &mut impl Write, report: &FuzzReport) -> io::Result<()> {
    let runs = report.runs.max(1) as f64;
    let each = |sum: u64| sum as f64 / runs;
    let seeds: Vec<_> = report.seeds.iter().map(|(from, to)| format!("{from}..{to}")).collect();
    let seeds =
        if seeds.is_empty() { "no seeds".into() } else { format!("seeds {}", seeds.join(", ")) };
    write!(out, "{seeds}, engine {}, ring {}", report.engine, report.ring)?;
    if report.jobs > 1 {
        write!(out, ", {} jobs", report.jobs)?;
    }
    match report.shard.as_deref() {
        None | Some("0/1") => writeln!(out)?,
        Some(shard) => writeln!(out, ", shard {shard}")?,
    }
    write!(out, "{} runs", report.runs)?;
    if report.runs_changed > 0 {
        write!(out, " ({} of changed scenarios)", report.runs_changed)?;
    }
    writeln!(
        out,
        " in {:.1} s: {:.0} a second{}{}",
        report.seconds,
        report.runs_per_second,
        if report.verify { " (each twice)" } else { "" },
        if report.interrupted { ", interrupted" } else { "" },
    )?;
    write!(
        out,
        "a run: {:.1} plugs ({:.1} failed), {:.0} checks",
        each(report.plugs.saturating_add(report.failed_plugs)),
        each(report.failed_plugs),
        each(report.checks),
    )?;
    match report.machine {
        MachineKind::Deterministic => {
            writeln!(
                out,
                ", {:.0} steps, {:.0} exits; reset {:.0} us, {:.0} us at most",
                each(report.steps),
                each(report.exits),
                report.reset_us_mean,
                report.reset_us_max,
            )?;
            let of_edges = report.coverage.as_ref().map_or(0, Coverage::edges);
            let FuzzReport { edges, switches, .. } = report;
            writeln!(
                out,
                "reached: {edges} of {of_edges} edges, switches at {switches} pairs of places; \
                 corpus: {} scenarios",
                report.corpus
            )?;
        }
        MachineKind::Parallel => writeln!(out, "; all CPUs at once")?,
    }
    if report.verify {
        writeln!(out, "{} of {} runs gave two equal traces", report.verified, report.runs)?;
    }
    for (failure, times) in report.kinds() {
        writeln!(out, "{failure}")?;
        if times > 1 {
            writeln!(out, "  {times} times")?;
        }
    }
    match (report.kinds().len(), report.failures.len()) {
        (_, 0) => writeln!(out, "HELD"),
        (kinds, n) if kinds < n => writeln!(out, "{n} FAILED, {kinds} of them different"),
        (_, n) => writeln!(out, "{n} FAILED"),
    }
}
