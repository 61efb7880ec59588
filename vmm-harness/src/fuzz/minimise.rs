//! The smallest scenario that still fails in the same way.
//!
//! First the schedule becomes part of the scenario, so that what is dropped elsewhere changes no
//! random choice of it. Then plugs, failures, workloads, threads, operations and changes of the
//! schedule are dropped, as long as the run still breaks the same invariant.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Machines;
use crate::error::Error;
use crate::machine::{Ending, Outcome, Scenario, Schedule, Strategy};

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
    pub from: String,
    /// Runs that it took.
    pub runs: u64,
}

/// Minimises a scenario; `None` if it does not fail.
pub fn minimise(
    machines: &mut Machines<'_>,
    scenario: &Scenario,
    limit: Duration,
    interrupted: &AtomicBool,
) -> Result<Option<Minimal>, Error> {
    let outcome = machines.run(scenario)?;
    if matches!(outcome.ending, Ending::Held) {
        return Ok(None);
    }
    let mut search = Search {
        machines,
        what: outcome.ending.name().to_owned(),
        best: scenario.clone(),
        until: Instant::now() + limit,
        interrupted,
        runs: 1,
    };
    search.attempt(Scenario { strategy: Strategy::Given(outcome.schedule), ..scenario.clone() })?;
    while search.round()? {}
    let Search { best, runs, machines, .. } = search;
    let outcome = machines.run(&best)?;
    let places = machines.places(&outcome.trace);
    Ok(Some(Minimal { scenario: best, outcome, places, from: scenario.to_string(), runs }))
}

struct Search<'s, 'a> {
    machines: &'s mut Machines<'a>,
    /// How it fails.
    what: String,
    /// The smallest so far.
    best: Scenario,
    until: Instant,
    interrupted: &'s AtomicBool,
    runs: u64,
}

impl Search<'_, '_> {
    fn is_over(&self) -> bool {
        Instant::now() >= self.until || self.interrupted.load(Ordering::Relaxed)
    }

    /// Takes `candidate` if it fails in the same way; whether it did.
    fn attempt(&mut self, candidate: Scenario) -> Result<bool, Error> {
        if self.is_over() {
            return Ok(false);
        }
        self.runs += 1;
        let outcome = self.machines.run(&candidate)?;
        let fails = outcome.ending.name() == self.what;
        if fails {
            self.best = candidate;
        }
        Ok(fails)
    }

    /// Tries to drop one thing after the other; whether anything could be dropped.
    fn round(&mut self) -> Result<bool, Error> {
        let mut dropped = false;
        dropped |= self.drop_plugs()?;
        dropped |= self.drop_work()?;
        dropped |= self.drop_changes()?;
        Ok(dropped && !self.is_over())
    }

    fn drop_plugs(&mut self) -> Result<bool, Error> {
        let mut dropped = false;
        for i in (0..self.best.plugs.len()).rev() {
            let mut candidate = self.best.clone();
            let plug = candidate.plugs.remove(i);
            // The others keep their place in time.
            if let Some(next) = candidate.plugs.get_mut(i) {
                next.after += plug.after;
            }
            if self.attempt(candidate)? {
                dropped = true;
            } else if plug.fail.is_some() {
                let mut candidate = self.best.clone();
                candidate.plugs[i].fail = None;
                dropped |= self.attempt(candidate)?;
            }
        }
        Ok(dropped)
    }

    fn drop_work(&mut self) -> Result<bool, Error> {
        let mut dropped = false;
        for i in (0..self.best.workloads.len()).rev() {
            if self.best.workloads.len() > 1 {
                let mut candidate = self.best.clone();
                candidate.workloads.remove(i);
                dropped |= self.attempt(candidate)?;
            }
        }
        while self.best.threads > 1
            && self.attempt(Scenario { threads: self.best.threads - 1, ..self.best.clone() })?
        {
            dropped = true;
        }
        // In ever smaller steps.
        let mut step = self.best.operations / 2;
        while step > 0 {
            let operations = self.best.operations.saturating_sub(step);
            if operations > 0 && self.attempt(Scenario { operations, ..self.best.clone() })? {
                dropped = true;
            } else {
                step /= 2;
            }
        }
        Ok(dropped)
    }

    /// Delta debugging (Zeller, Hildebrandt, 2002) on the schedule: runs of changes, of ever smaller
    /// length.
    fn drop_changes(&mut self) -> Result<bool, Error> {
        let mut dropped = false;
        let Strategy::Given(schedule) = self.best.strategy.clone() else { return Ok(false) };
        let mut changes = schedule.changes.clone();
        let mut length = changes.len();
        while length > 0 {
            let mut start = 0;
            while start < changes.len() {
                let mut fewer = changes.clone();
                fewer.drain(start..(start + length).min(changes.len()));
                let given = Schedule { changes: fewer.clone(), ..schedule.clone() };
                let strategy = Strategy::Given(given);
                if self.attempt(Scenario { strategy, ..self.best.clone() })? {
                    (changes, dropped) = (fewer, true);
                } else {
                    start += length;
                }
            }
            length /= 2;
        }
        Ok(dropped)
    }
}
