//! The smallest scenario that still fails in the same way.
//!
//! First the schedule becomes part of the scenario, so that what is dropped elsewhere changes no
//! random choice of it. Then workloads, threads, CPUs, plugs, failures, operations and changes of the
//! schedule are dropped, as long as a run still breaks the same invariant.

mod cuts;
mod search;
mod size;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Machines;
use crate::error::Error;
use crate::machine::{Ending, Outcome, Scenario, Strategy};

use search::{Ran, Search};

/// What is left.
#[derive(Debug)]
pub struct Minimal {
    /// The scenario.
    pub scenario: Scenario,
    /// Its run.
    pub outcome: Outcome,
    /// Where CPUs stood, for each stay of its trace.
    pub places: Vec<String>,
    /// What it was before.
    pub from: Scenario,
    /// Runs that it took.
    pub runs: u64,
}

/// Minimises a scenario; `None` if it does not fail. `watch` is told what is run, and how many runs
/// there were.
pub fn minimise(
    machines: &mut Machines<'_>,
    scenario: &Scenario,
    limit: Duration,
    interrupted: &AtomicBool,
    watch: &mut dyn FnMut(&Scenario, u64),
) -> Result<Option<Minimal>, Error> {
    let until = Instant::now() + limit;
    let first = machines.run(scenario)?;
    if matches!(first.ending, Ending::Held) {
        return Ok(None);
    }
    let way = way(&first.ending);
    let mut runs = 1;
    let run = |candidate: &Scenario| {
        if Instant::now() >= until || interrupted.load(Ordering::Relaxed) {
            return Ok(None);
        }
        runs += 1;
        watch(candidate, runs);
        let Outcome { ending, schedule, length, .. } = machines.run(candidate)?;
        Ok(Some(Ran { fails: self::way(&ending) == way, schedule, length }))
    };
    let given = Scenario { strategy: Strategy::Given(first.schedule), ..scenario.clone() };
    let smallest = Search::new(given, first.length, run).smallest()?;
    let outcome = machines.run(&smallest)?;
    let places = machines.places(&outcome.trace);
    Ok(Some(Minimal { scenario: smallest, outcome, places, from: scenario.clone(), runs }))
}

/// In what way a run failed: the invariant that is broken; of a crash or a hang what is said of it,
/// but for numbers.
fn way(ending: &Ending) -> String {
    let text = match ending {
        Ending::Held | Ending::Broken(_) => return ending.name().to_owned(),
        Ending::Crashed(crash) | Ending::Hung(crash) => &crash.text,
    };
    let has_digit = |word: &&str| word.contains(|c: char| c.is_ascii_digit());
    let words = text.split_whitespace().filter(|word| !has_digit(word));
    [ending.name()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}
