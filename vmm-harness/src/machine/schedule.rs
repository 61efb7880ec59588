//! Who runs when: priorities of CPUs, and the moments at which something changes.
//!
//! A schedule is a list that is made before the run, so it can be written down, given again, and cut
//! down. The guest follows it by itself: of the CPUs that can run the one of the highest priority does.

use serde::{Deserialize, Serialize};

use super::random::Random;
use super::scenario::{Scenario, Strategy, Unit};
use super::written;

/// One turn in so many of a walk begins with an interrupt.
const INTERRUPTED: u64 = 2;

/// Priorities and changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// In what a change's `at` is counted.
    pub unit: Unit,
    /// CPUs, the one of the highest priority first.
    pub order: Vec<u32>,
    /// Out of which the guest chooses for how long a CPU that waits in a loop is let be.
    #[serde(with = "written::seed")]
    pub waits: u64,
    /// Changes, by `at` ascending.
    pub changes: Vec<Change>,
}

/// Something happens to the CPU that would run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Steps or points after the beginning of the run.
    pub at: u64,
    /// What happens.
    pub what: What,
}

/// The kinds of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// It gets the lowest priority.
    Demote,
    /// Its timer interrupts it where it stands and before its time, so that its thread may go on
    /// elsewhere.
    Interrupt,
    /// Another one gets the highest priority.
    Promote(u32),
}

impl Schedule {
    /// The most changes that a schedule can have.
    pub const MOST_CHANGES: usize = percpu_guest::abi::MOST_CHANGES;

    /// The schedule of a scenario.
    pub fn of(scenario: &Scenario) -> Self {
        let mut random = Random::new(scenario.seed, 1);
        let cpus = scenario.topology.possible;
        let expected = |unit: Unit| match unit {
            Unit::Steps => scenario.expected_steps(),
            Unit::Points => scenario.expected_points(),
        };
        let mut order: Vec<_> = (0..cpus).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, random.below(i as u64 + 1) as usize);
        }
        let waits = random.next();
        let (unit, changes) = match &scenario.strategy {
            Strategy::Given(schedule) => return schedule.clone(),
            &Strategy::Pct { changes, unit } => {
                let mut changes: Vec<_> = (0..changes)
                    .map(|_| Change {
                        at: 1 + random.below(expected(unit)),
                        what: if random.one_in(2) { What::Demote } else { What::Interrupt },
                    })
                    .collect();
                changes.sort_by_key(|change| change.at);
                (unit, changes)
            }
            &Strategy::Walk { turn, unit } => {
                let mut changes = Vec::new();
                let mut at = 0;
                // Twice as far as the run will go, probably.
                while at < 2 * expected(unit) && changes.len() + 2 <= Self::MOST_CHANGES {
                    // From none to twice the average.
                    at += 1 + random.below(2 * turn);
                    let cpu = random.below(cpus.into()) as u32;
                    changes.push(Change { at, what: What::Promote(cpu) });
                    if random.one_in(INTERRUPTED) {
                        changes.push(Change { at, what: What::Interrupt });
                    }
                }
                (unit, changes)
            }
        };
        Self { unit, order, waits, changes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::scenario::WORKLOADS;

    fn scenario(seed: u64, strategy: Strategy) -> Scenario {
        Scenario { strategy, seed, ..Scenario::from_seed(1, &WORKLOADS) }
    }

    #[test]
    fn pct_makes_so_many_changes_of_both_kinds_within_the_run() {
        let (mut demoted, mut interrupted) = (0, 0);
        for seed in 0..50 {
            let scenario = scenario(seed, Strategy::Pct { changes: 3, unit: Unit::Points });
            let schedule = Schedule::of(&scenario);
            assert_eq!(schedule, Schedule::of(&scenario));
            assert_eq!(schedule.changes.len(), 3);
            assert!(schedule.changes.is_sorted_by_key(|change| change.at));
            assert!(schedule.changes.iter().all(|c| c.at <= scenario.expected_points()));
            let of = |what| schedule.changes.iter().filter(|c| c.what == what).count();
            demoted += of(What::Demote);
            interrupted += of(What::Interrupt);
        }
        assert!(demoted > 50 && interrupted > 50, "{demoted} and {interrupted}");
    }

    #[test]
    fn a_walk_gives_every_cpu_turns_for_as_long_as_the_run_lasts() {
        let scenario = scenario(5, Strategy::Walk { turn: 100, unit: Unit::Points });
        let schedule = Schedule::of(&scenario);
        assert!(schedule.changes.is_sorted_by_key(|change| change.at));
        assert!(schedule.changes.last().is_some_and(|c| c.at >= scenario.expected_points()));
        for cpu in 0..scenario.topology.possible {
            let turns = schedule.changes.iter().filter(|c| c.what == What::Promote(cpu)).count();
            assert!(turns > 10, "CPU {cpu}: {turns}");
        }
    }

    #[test]
    fn schedules_fit_and_the_order_is_the_seeds() {
        let mut first = [0; 4];
        for seed in 0..400 {
            let scenario = Scenario::from_seed(seed, &WORKLOADS);
            let schedule = Schedule::of(&scenario);
            assert!(schedule.changes.len() <= Schedule::MOST_CHANGES);
            let mut order = schedule.order.clone();
            first[order[0] as usize] += 1;
            order.sort_unstable();
            assert!(order.into_iter().eq(0..scenario.topology.possible));
        }
        assert!(first.iter().all(|&n| n > 20), "{first:?}");
    }

    #[test]
    fn a_schedule_that_is_given_is_taken_as_it_is() {
        let walk = scenario(3, Strategy::Walk { turn: 50, unit: Unit::Steps });
        let schedule = Schedule::of(&walk);
        let given = Scenario { strategy: Strategy::Given(schedule.clone()), seed: 4, ..walk };
        assert_eq!(Schedule::of(&given), schedule);
    }
}
