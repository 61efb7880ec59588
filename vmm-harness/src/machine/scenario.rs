//! What a seed stands for: CPUs, workloads, plugs, failures, and how the CPUs take turns.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::random::Random;
use super::schedule::Schedule;
use super::written;

/// Steps that an operation takes, roughly: the unit in which plugs and change points are spread over
/// a run.
pub(super) const STEPS_AN_OPERATION: u64 = 400;
/// Steps to a point, roughly.
const STEPS_A_POINT: u64 = 16;
/// Steps of the shortest turn of a walk, and orders of magnitude (doublings) above.
const SHORTEST_TURN: u64 = 200;
const TURNS: u64 = 8;
pub(super) const OPERATIONS: u64 = 200;
pub(super) const PLUGS: u64 = 4;
/// Steps after which a run that has not ended counts as hung, for each that was expected.
const HANG: u64 = 200;
/// Numbers of hotplug steps that are made to fail; those beyond the guest's last one do nothing.
pub(super) const STEPS_TO_FAIL: u64 = 8;
/// Microseconds between timer interrupts, at least and at most.
pub(super) const TICKS: (u32, u32) = (100, 600);

/// How many CPUs there are: all that is fixed before the guest boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// CPUs that can be.
    pub possible: u32,
    /// CPUs that come up at boot.
    pub boot_cpus: u32,
}

/// A plug or an unplug, whichever the CPU's state allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plug {
    /// Steps after the one before was answered.
    pub after: u64,
    /// The CPU.
    pub cpu: u32,
    /// Number of the hotplug step that fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail: Option<u64>,
}

/// Where switches may come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// At any step.
    #[default]
    Steps,
    /// Before operations on per-CPU copies and atomic read-modify-writes only.
    Points,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Steps => "steps",
            Self::Points => "points",
        })
    }
}

/// How the CPUs take turns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum Strategy {
    /// Probabilistic concurrency testing (Burckhardt, Kothari, Musuvathi, Nagarakatte, 2010): the
    /// CPU of the highest priority runs, and at so many steps the one that runs gets the lowest.
    Pct {
        /// How often priorities change, or the CPU that runs is interrupted.
        changes: u32,
        /// Where.
        unit: Unit,
    },
    /// As written here.
    Given(Schedule),
    /// Any CPU, for a random number of steps.
    Walk {
        /// Length of a turn, on average.
        turn: u64,
        /// In what it is counted.
        unit: Unit,
    },
}

/// All that happens in a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Where it comes from; seeds the guest's and the scheduler's choices, too.
    #[serde(with = "written::seed")]
    pub seed: u64,
    /// What the guest does: workloads of its image, by name.
    pub workloads: Vec<String>,
    /// Threads of each workload.
    pub threads: u32,
    /// Operations of all threads together.
    pub operations: u64,
    /// Microseconds of the guest's clock between timer interrupts.
    pub tick_us: u32,
    /// CPUs.
    pub topology: Topology,
    /// Plugs, one after the other.
    #[serde(default)]
    pub plugs: Vec<Plug>,
    /// Turns.
    pub strategy: Strategy,
}

impl Topology {
    /// CPUs that can be, at most.
    pub const MOST_CPUS: u32 = 4;

    /// Any.
    pub(super) fn random(random: &mut Random) -> Self {
        let possible = random.between(2, Self::MOST_CPUS.into()) as u32;
        Self { possible, boot_cpus: random.between(1, u64::from(possible)) as u32 }
    }
}

impl Plug {
    /// Any that such a machine can do.
    pub(super) fn random(random: &mut Random, topology: Topology) -> Self {
        Self {
            after: random.below(OPERATIONS * STEPS_AN_OPERATION / PLUGS),
            cpu: random.between(1, u64::from(topology.possible) - 1) as u32,
            fail: random.one_in(6).then(|| random.below(STEPS_TO_FAIL)),
        }
    }
}

impl Scenario {
    /// The scenario of `seed`, with some of these workloads, of which there is one at least.
    pub fn from_seed(seed: u64, workloads: &[&str]) -> Self {
        let mut random = Random::new(seed, 0);
        let topology = Topology::random(&mut random);
        let workloads =
            random.some_of(workloads).into_iter().map(str::to_owned).collect::<Vec<_>>();
        // Enough for every CPU to have one.
        let threads =
            u64::from(topology.possible).div_ceil(workloads.len() as u64) + random.below(2);
        let plugs = (0..random.between(PLUGS - 1, PLUGS + 1))
            .map(|_| Plug::random(&mut random, topology))
            .collect();
        Self {
            seed,
            topology,
            workloads,
            threads: threads as u32,
            operations: random.between(OPERATIONS * 3 / 4, OPERATIONS * 5 / 4),
            tick_us: random.between(TICKS.0.into(), TICKS.1.into()) as u32,
            plugs,
            strategy: Self::random_strategy(&mut random),
        }
    }

    /// The same work, CPUs and plugs, as they go with another seed's turns and choices.
    pub fn with_seed(&self, seed: u64) -> Self {
        let strategy = Self::random_strategy(&mut Random::new(seed, 3));
        Self { seed, strategy, ..self.clone() }
    }

    /// How often the schedule makes a CPU stop, if that is given.
    pub fn switches(&self) -> Option<usize> {
        match &self.strategy {
            Strategy::Given(schedule) => Some(schedule.changes.len()),
            Strategy::Pct { .. } | Strategy::Walk { .. } => None,
        }
    }

    /// Any, but none that is given.
    pub(super) fn random_strategy(random: &mut Random) -> Strategy {
        let unit = if random.one_in(2) { Unit::Steps } else { Unit::Points };
        if random.one_in(2) {
            return Strategy::Pct { changes: random.between(1, 6) as u32, unit };
        }
        let shortest = match unit {
            Unit::Steps => SHORTEST_TURN,
            Unit::Points => SHORTEST_TURN / STEPS_A_POINT,
        };
        Strategy::Walk { turn: random.magnitude(shortest, TURNS), unit }
    }

    /// Steps that the run will take, roughly.
    pub(crate) fn expected_steps(&self) -> u64 {
        self.operations * STEPS_AN_OPERATION
    }

    /// Steps after which the run counts as hung if it has not ended. A plug may take as long as many
    /// operations.
    pub(super) fn most_steps(&self) -> u64 {
        let plugs = self.plugs.len() as u64 * (OPERATIONS / PLUGS);
        let waits: u64 = self.plugs.iter().map(|plug| plug.after).sum();
        (self.operations + plugs) * STEPS_AN_OPERATION * HANG + waits
    }

    /// Points likewise.
    pub(super) fn expected_points(&self) -> u64 {
        self.expected_steps() / STEPS_A_POINT
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Topology { possible, boot_cpus } = self.topology;
        let failures = self.plugs.iter().filter(|plug| plug.fail.is_some()).count();
        write!(
            f,
            "{boot_cpus} of {possible} CPUs, {} of {} thread{} each, {} operations, {} plugs ({failures} with a failing step), ",
            self.workloads.join(" and "),
            self.threads,
            if self.threads == 1 { "" } else { "s" },
            self.operations,
            self.plugs.len(),
        )?;
        match &self.strategy {
            Strategy::Given(schedule) => write!(f, "{} given changes", schedule.changes.len()),
            Strategy::Pct { changes, unit } => write!(f, "PCT with {changes} changes at {unit}"),
            Strategy::Walk { turn, unit } => write!(f, "random walk with turns of {turn} {unit}"),
        }
    }
}

/// Workloads for tests.
#[cfg(test)]
pub(crate) const WORKLOADS: [&str; 5] = ["alloc", "counter", "mount", "refs", "statics"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_scenario_within_bounds() {
        for seed in 0..500 {
            let scenario = Scenario::from_seed(seed, &WORKLOADS);
            assert_eq!(scenario, Scenario::from_seed(seed, &WORKLOADS));
            let Topology { possible, boot_cpus } = scenario.topology;
            assert!((2..=4).contains(&possible) && (1..=possible).contains(&boot_cpus));
            assert!(!scenario.workloads.is_empty());
            assert!(scenario.plugs.iter().all(|plug| (1..possible).contains(&plug.cpu)));
        }
        assert_ne!(
            Scenario::from_seed(1, &WORKLOADS).operations,
            Scenario::from_seed(2, &WORKLOADS).operations
        );
    }

    #[test]
    fn another_seed_changes_turns_and_choices_only() {
        let scenario = Scenario::from_seed(3, &WORKLOADS);
        let others: Vec<_> = (0..20).map(|seed| scenario.with_seed(seed)).collect();
        for (seed, other) in (0..).zip(&others) {
            let Scenario { seed: theirs, strategy, .. } = other;
            assert_eq!(*theirs, seed);
            let strategy = strategy.clone();
            assert_eq!(*other, Scenario { seed, strategy, ..scenario.clone() });
        }
        assert!(others.windows(2).any(|two| two[0].strategy != two[1].strategy));
    }
}
