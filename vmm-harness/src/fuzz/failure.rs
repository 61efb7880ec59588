//! A failure in a report: what it is, where its files are, and what it is known by.

use std::fmt;
use std::path::Path;

use percpu_guest::abi::StayEnd;
use serde::{Deserialize, Serialize};

use super::Minimal;
use super::case::Case;
use super::seen::Seen;
use super::told::Told;
use crate::machine::{Scenario, Strategy};

/// Switches, the last ones of a minimal run, whose places are part of what a failure is known by.
const SWITCHES: usize = 3;

/// A scenario whose run did not end well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// What it is known by: failures of equal keys are one bug, probably.
    pub key: String,
    /// The scenario's seed.
    pub seed: u64,
    /// The scenario is not the seed's own: it is one that was changed, or given.
    pub changed: bool,
    /// The invariant by its name, `crash`, `hang`, or `nondeterminism`.
    pub what: String,
    /// What was seen.
    pub detail: String,
    /// What was run.
    pub scenario: String,
    /// Steps of the run.
    pub steps: u64,
    /// Hash of its trace.
    pub hash: String,
    /// Runs of the campaign until it was found, with the one that failed.
    pub found_after_runs: u64,
    /// Seconds likewise.
    pub found_after_seconds: f64,
    /// The file that has all of this and the scenario; `None` if it could not be written.
    pub file: Option<String>,
    /// What is left of the scenario, if it was minimised.
    pub minimal: Option<MinimalReport>,
    /// The command line that repeats it.
    pub replay: String,
    /// The command line that makes it small.
    pub minimise: Option<String>,
    /// What else there is to say.
    pub note: Option<String>,
    /// How it came to its end, of what is left of it if it was minimised.
    #[serde(default)]
    pub told: Option<Told>,
}

/// The smallest scenario that was found to fail in the same way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MinimalReport {
    /// What is left.
    pub scenario: String,
    /// How often CPUs take over from each other.
    pub switches: usize,
    /// Operations.
    pub operations: u64,
    /// Plugs.
    pub plugs: usize,
    /// Workloads.
    pub workloads: Vec<String>,
    /// Runs that it took to find it.
    pub runs: u64,
    /// Its file; `None` if it could not be written.
    pub file: Option<String>,
    /// How much there was of everything, and how much is left.
    #[serde(default)]
    pub dropped: Vec<Dropped>,
}

/// How much of something minimising has left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    /// Of what.
    pub what: String,
    /// Before.
    pub before: String,
    /// What is left.
    pub left: String,
}

impl MinimalReport {
    pub(super) fn new(minimal: &Minimal, file: Option<&Path>) -> Self {
        let scenario = &minimal.scenario;
        Self {
            scenario: scenario.to_string(),
            switches: scenario.switches().unwrap_or_default(),
            operations: scenario.operations,
            plugs: scenario.plugs.len(),
            workloads: names(scenario),
            runs: minimal.runs,
            file: file.map(|file| file.display().to_string()),
            dropped: dropped(&minimal.from, scenario),
        }
    }
}

/// Each thing there was before, and what is left of it.
fn dropped(before: &Scenario, left: &Scenario) -> Vec<Dropped> {
    let failing = |scenario: &Scenario| {
        scenario.plugs.iter().filter(|plug| plug.fail.is_some()).count().to_string()
    };
    let changes = |scenario: &Scenario| match &scenario.strategy {
        Strategy::Pct { changes, .. } => format!("{changes} at random"),
        Strategy::Walk { .. } => "a random walk".into(),
        Strategy::Given(schedule) => schedule.changes.len().to_string(),
    };
    let row = |what: &str, of: &dyn Fn(&Scenario) -> String| Dropped {
        what: what.to_owned(),
        before: of(before),
        left: of(left),
    };
    vec![
        row("workloads", &|scenario| names(scenario).join(", ")),
        row("threads of each", &|scenario| scenario.threads.to_string()),
        row("operations", &|scenario| scenario.operations.to_string()),
        row("CPUs that can be", &|scenario| scenario.topology.possible.to_string()),
        row("CPUs at boot", &|scenario| scenario.topology.boot_cpus.to_string()),
        row("plugs", &|scenario| scenario.plugs.len().to_string()),
        row("plugs with a failing step", &failing),
        row("changes of the schedule", &changes),
    ]
}

/// What a failure is known by: of one that was minimised, what is broken, the workloads that it takes,
/// and the places in the code where CPUs were made to stop last; of another one, what is broken and the
/// scenario.
pub(super) fn key(seen: &Seen, scenario: &Scenario, minimal: Option<&Minimal>) -> String {
    let Some(minimal) = minimal else {
        return format!("{} in {}", seen.what, Case::name(scenario));
    };
    let mut places: Vec<_> = switches(minimal).rev().take(SWITCHES).collect();
    places.reverse();
    let mut workloads = names(&minimal.scenario);
    workloads.sort_unstable();
    let mut key = format!("{} with {}", seen.what, workloads.join(" and "));
    if !places.is_empty() {
        key += &format!(", switched at {}", places.join(", "));
    }
    key
}

/// Where CPUs were made to stop, in order: function and line.
fn switches(minimal: &Minimal) -> impl DoubleEndedIterator<Item = &str> {
    let ends = [StayEnd::Due, StayEnd::Interrupted].map(|end| end as u16);
    let stopped: Vec<_> = minimal
        .outcome
        .trace
        .stays()
        .zip(&minimal.places)
        .filter(|(stay, _)| ends.contains(&stay.end))
        .collect();
    // The innermost of the functions that a place is in.
    let functions = stopped.into_iter().filter_map(|(_, place)| place.split(" < ").next());
    functions.filter(|function| !function.is_empty())
}

fn names(scenario: &Scenario) -> Vec<String> {
    scenario.workloads.clone()
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.steps {
            0 => writeln!(f, "FAILED {}: {}", self.what, self.detail)?,
            steps => writeln!(f, "FAILED {} at step {steps}: {}", self.what, self.detail)?,
        }
        let changed = if self.changed { ", changed" } else { "" };
        write!(f, "  seed {}{changed}: {}", self.seed, self.scenario)?;
        if let Some(minimal) = &self.minimal {
            let MinimalReport { scenario, runs, .. } = minimal;
            write!(f, "\n  minimal after {runs} runs: {scenario}")?;
        }
        if let Some(note) = &self.note {
            write!(f, "\n  {note}")?;
        }
        write!(f, "\n  {}", self.replay)?;
        self.minimise.iter().try_for_each(|minimise| write!(f, "\n  {minimise}"))
    }
}
