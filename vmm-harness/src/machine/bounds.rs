//! What a scenario must be for the machine to run it. Those of seeds are; one that was written by
//! hand, or changed, is checked.

use std::fmt;

use super::contents::MOST_THREADS;
use super::scenario::{Plug, Scenario, Strategy, Topology};
use super::schedule::{Schedule, What};
use crate::image::Workloads;

/// Operations at most: a run of more is no run of milliseconds.
const MOST_OPERATIONS: u64 = 10_000;
/// Plugs at most.
const MOST_PLUGS: usize = 100;
/// Steps at most to a plug.
const MOST_STEPS: u64 = 100_000_000;
/// Hotplug steps that can be named at most; the guest has fewer.
const MOST_HOTPLUG_STEPS: u64 = 1000;
/// Change points at most.
const MOST_CHANGES: u32 = Schedule::MOST_CHANGES as u32;
/// Microseconds between timer interrupts at least and at most: where there is one after the other
/// nothing else gets done.
const TICKS: (u32, u32) = (20, Scenario::LONGEST_TICK_US);

/// A step on the way to a part of a scenario, as it is written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The field of this name.
    Field(&'static str),
    /// The element of this number, from 0.
    Element(usize),
}

/// Why a scenario cannot be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// What part of it is to blame.
    pub place: Vec<Place>,
    /// What is wrong, and what to give instead.
    pub why: String,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// Holds a number against its bounds.
fn within(
    place: &[Place],
    what: &str,
    n: u64,
    bounds: std::ops::RangeInclusive<u64>,
) -> Result<(), Flaw> {
    if bounds.contains(&n) {
        return Ok(());
    }
    let (from, to) = bounds.into_inner();
    Err(Flaw { place: place.into(), why: format!("{what} is {n}: give {from} to {to}") })
}

impl Scenario {
    /// Microseconds between timer interrupts at most: no run lasts as long.
    pub const LONGEST_TICK_US: u32 = 1_000_000;

    /// Whether a guest with these workloads has those of the scenario.
    pub fn check_workloads(&self, workloads: &Workloads) -> Result<(), Flaw> {
        for (i, name) in self.workloads.iter().enumerate() {
            let place = || vec![Place::Field("workloads"), Place::Element(i)];
            workloads.check(name).map_err(|why| Flaw { place: place(), why })?;
        }
        Ok(())
    }

    /// Whether the machine can run this.
    pub fn check(&self) -> Result<(), Flaw> {
        use Place::Field;
        let Topology { possible, boot_cpus } = self.topology;
        let topology = |field| [Field("topology"), Field(field)];
        let most_cpus = Topology::MOST_CPUS.into();
        within(&topology("possible"), "topology.possible", possible.into(), 1..=most_cpus)?;
        let possible = u64::from(possible);
        within(&topology("boot_cpus"), "topology.boot_cpus", boot_cpus.into(), 1..=possible)?;
        if self.workloads.is_empty() {
            return Err(Flaw {
                place: vec![Field("workloads")],
                why: "there are no workloads: name at least one".into(),
            });
        }
        if let Some(i) =
            (1..self.workloads.len()).find(|&i| self.workloads[..i].contains(&self.workloads[i]))
        {
            return Err(Flaw {
                place: vec![Field("workloads"), Place::Element(i)],
                why: format!("workload {:?} is named twice", self.workloads[i]),
            });
        }
        let most_threads = MOST_THREADS / self.workloads.len() as u64;
        within(
            &[Field("threads")],
            &format!("threads (of each of {} workloads)", self.workloads.len()),
            self.threads.into(),
            1..=most_threads,
        )?;
        within(&[Field("operations")], "operations", self.operations, 1..=MOST_OPERATIONS)?;
        within(
            &[Field("tick_us")],
            "tick_us",
            self.tick_us.into(),
            TICKS.0.into()..=TICKS.1.into(),
        )?;
        self.check_plugs()?;
        self.check_strategy()
    }

    fn check_plugs(&self) -> Result<(), Flaw> {
        use Place::{Element, Field};
        let possible = self.topology.possible;
        within(
            &[Field("plugs")],
            "the number of plugs",
            self.plugs.len() as u64,
            0..=MOST_PLUGS as u64,
        )?;
        for (i, &Plug { after, cpu, fail }) in self.plugs.iter().enumerate() {
            let place = |field| [Field("plugs"), Element(i), Field(field)];
            let flaw = |field, why| Err(Flaw { place: place(field).into(), why });
            if cpu == 0 {
                let why = "CPU 0 takes the orders and is never plugged: give another CPU";
                return flaw("cpu", why.into());
            }
            if cpu >= possible {
                let why = format!(
                    "CPU {cpu} cannot be, topology.possible is {possible}: raise that or give \
                     another CPU"
                );
                return flaw("cpu", why);
            }
            within(&place("after"), "after", after, 0..=MOST_STEPS)?;
            within(&place("fail"), "fail", fail.unwrap_or(0), 0..=MOST_HOTPLUG_STEPS)?;
        }
        Ok(())
    }

    fn check_strategy(&self) -> Result<(), Flaw> {
        use Place::Field;
        match &self.strategy {
            &Strategy::Pct { changes, .. } => within(
                &[Field("strategy"), Field("pct"), Field("changes")],
                "changes",
                changes.into(),
                0..=MOST_CHANGES.into(),
            ),
            &Strategy::Walk { turn, .. } => within(
                &[Field("strategy"), Field("walk"), Field("turn")],
                "turn",
                turn,
                1..=MOST_STEPS,
            ),
            Strategy::Given(schedule) => self.check_schedule(schedule),
        }
    }

    fn check_schedule(&self, schedule: &Schedule) -> Result<(), Flaw> {
        use Place::{Element, Field};
        let possible = self.topology.possible;
        let place = |field| vec![Field("strategy"), Field("given"), Field(field)];
        let mut order = schedule.order.clone();
        order.sort_unstable();
        if !order.into_iter().eq(0..possible) {
            let why = format!("order names each CPU below {possible} once, the first to run first");
            return Err(Flaw { place: place("order"), why });
        }
        let changes = &schedule.changes;
        let most = Schedule::MOST_CHANGES as u64;
        within(&place("changes"), "the number of changes", changes.len() as u64, 0..=most)?;
        let mut before = 0;
        for (i, change) in changes.iter().enumerate() {
            let flaw = |field, why| {
                Err(Flaw {
                    place: [place("changes"), vec![Element(i), Field(field)]].concat(),
                    why,
                })
            };
            if change.at < before {
                let why = format!("at {} comes before {before}: give changes in order", change.at);
                return flaw("at", why);
            }
            before = change.at;
            if let What::Promote(cpu) = change.what
                && cpu >= possible
            {
                let why = format!(
                    "CPU {cpu} cannot be, topology.possible is {possible}: raise that or give \
                     another CPU"
                );
                return flaw("what", why);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::scenario::WORKLOADS;

    #[test]
    fn scenarios_of_seeds_can_be_run() {
        for seed in 0..500 {
            let scenario = Scenario::from_seed(seed, &WORKLOADS);
            assert_eq!(scenario.check(), Ok(()));
            assert_eq!(scenario.with_seed(seed + 1).check(), Ok(()));
        }
    }

    #[test]
    fn what_the_machine_would_trip_over_is_refused() {
        let good = Scenario::from_seed(0, &WORKLOADS);
        let refused = |change: &dyn Fn(&mut Scenario), what: &str| {
            let mut scenario = good.clone();
            change(&mut scenario);
            let flaw = scenario.check().expect_err(what);
            assert!(flaw.why.contains(what), "{what} is not in: {flaw}");
        };
        let plug = Plug { after: 1, cpu: 1, fail: None };
        refused(&|s| s.topology.possible = 0, "topology.possible is 0");
        refused(&|s| s.topology.possible = 5, "topology.possible is 5");
        refused(&|s| s.topology.boot_cpus = 0, "topology.boot_cpus is 0");
        refused(&|s| s.topology.boot_cpus = s.topology.possible + 1, "topology.boot_cpus is");
        refused(&|s| s.workloads.clear(), "no workloads");
        refused(&|s| s.workloads.push(s.workloads[0].clone()), "twice");
        refused(&|s| s.threads = 0, "is 0");
        refused(&|s| s.threads = u32::MAX, "is 4294967295");
        refused(&|s| s.operations = 0, "operations is 0");
        refused(&|s| s.operations = u64::MAX, "operations is");
        refused(&|s| s.tick_us = 0, "tick_us is 0");
        refused(&|s| s.plugs = vec![plug; 101], "the number of plugs is 101");
        refused(&|s| s.plugs = vec![Plug { cpu: 0, ..plug }], "CPU 0");
        refused(&|s| s.plugs = vec![Plug { cpu: 4, ..plug }], "CPU 4");
        refused(&|s| s.plugs = vec![Plug { after: u64::MAX, ..plug }], "after is");
        refused(&|s| s.plugs = vec![Plug { fail: Some(u64::MAX), ..plug }], "fail is");
        let unit = super::super::Unit::Steps;
        refused(&|s| s.strategy = Strategy::Walk { turn: 0, unit }, "turn is 0");
        refused(&|s| s.strategy = Strategy::Pct { changes: u32::MAX, unit }, "changes is");
    }
}
