//! Changing scenarios: what was worth keeping, with something about it different.
//!
//! A change keeps most of what made the scenario reach what it reached. Whatever is changed, what comes
//! out can be run: see `settle`.

use std::mem::discriminant;

use super::random::Random;
use super::scenario::{
    OPERATIONS, PLUGS, Plug, STEPS_AN_OPERATION, STEPS_TO_FAIL, Scenario, Strategy, TICKS, Topology,
};

/// Operations of a scenario at least and at most: runs stay about as long as those of seeds.
const FEWEST_OPERATIONS: u64 = OPERATIONS / 8;
const MOST_OPERATIONS: u64 = OPERATIONS * 2;
/// Plugs at most.
const MOST_PLUGS: usize = 2 * PLUGS as usize;
/// Threads of all workloads together, at most.
const MOST_THREADS: u32 = 4 * Topology::MOST_CPUS;
/// Steps between a plug's answer and the next plug, at most.
const LONGEST_PAUSE: u64 = OPERATIONS * STEPS_AN_OPERATION / PLUGS;
/// Changes at once, at most.
const MOST_CHANGES: u64 = 4;

/// What can be changed besides workloads, each as likely as how often it stands here: plugs and turns are
/// what races are made of.
const CHANGES: [fn(&mut Scenario, &mut Random); 13] = [
    change_seed,
    change_operations,
    change_threads,
    change_topology,
    add_plug,
    remove_plug,
    move_plug,
    move_plug,
    replug,
    change_failure,
    change_tick,
    change_strategy,
    change_strategy,
];

impl Scenario {
    /// Changes something about it, sometimes several things. The workloads are among these, of which
    /// there is one at least.
    pub fn mutate(&mut self, random: &mut Random, workloads: &[&str]) {
        self.settle();
        let before = self.clone();
        // Some changes change nothing: no plug can be moved where there is none.
        for _ in 0..MOST_CHANGES {
            match CHANGES.get(random.below(CHANGES.len() as u64 + 1) as usize) {
                Some(change) => change(self, random),
                None => change_workloads(self, random, workloads),
            }
            self.settle();
            if *self != before && !random.one_in(3) {
                return;
            }
        }
        if *self == before {
            change_seed(self, random);
        }
    }

    /// A scenario made of this one and another: each thing is that of one or the other, and the plugs
    /// are the first ones of this and the last ones of the other.
    pub fn splice(&self, other: &Self, random: &mut Random) -> Self {
        let mut either = || if random.one_in(2) { self } else { other };
        let mut spliced = Self {
            seed: either().seed,
            topology: either().topology,
            workloads: either().workloads.clone(),
            threads: either().threads,
            operations: either().operations,
            tick_us: either().tick_us,
            plugs: Vec::new(),
            strategy: either().strategy.clone(),
        };
        let first = random.below(self.plugs.len() as u64 + 1) as usize;
        let last = random.below(other.plugs.len() as u64 + 1) as usize;
        spliced.plugs.extend_from_slice(&self.plugs[..first]);
        spliced.plugs.extend_from_slice(&other.plugs[last..]);
        spliced.settle();
        if spliced.topology != self.topology || spliced.topology != other.topology {
            spliced.refit_turns(random);
        }
        spliced
    }

    /// Gives up turns that were given for other CPUs.
    fn refit_turns(&mut self, random: &mut Random) {
        if !matches!(self.strategy, Strategy::Pct { .. } | Strategy::Walk { .. }) {
            self.strategy = Self::random_strategy(random);
        }
    }

    /// Makes what belongs together fit: the plugs' CPUs exist, and there are not too many of anything.
    /// Scenarios of any origin become runnable by it.
    fn settle(&mut self) {
        let Topology { possible, boot_cpus } = &mut self.topology;
        *possible = (*possible).clamp(2, Topology::MOST_CPUS);
        *boot_cpus = (*boot_cpus).clamp(1, *possible);
        for plug in &mut self.plugs {
            // The boot CPU, 0, stays.
            plug.cpu = 1 + plug.cpu.saturating_sub(1) % (*possible - 1);
        }
        self.plugs.truncate(MOST_PLUGS);
        self.threads =
            self.threads.clamp(1, (MOST_THREADS / self.workloads.len().max(1) as u32).max(1));
    }
}

fn change_seed(scenario: &mut Scenario, random: &mut Random) {
    // Short enough to be read.
    scenario.seed = random.below(1 << 32);
}

fn change_workloads(scenario: &mut Scenario, random: &mut Random, workloads: &[&str]) {
    let workload = workloads[random.below(workloads.len() as u64) as usize];
    match scenario.workloads.iter().position(|w| w == workload) {
        Some(at) if scenario.workloads.len() > 1 => drop(scenario.workloads.remove(at)),
        Some(_) => {}
        None => {
            scenario.workloads.push(workload.to_owned());
            // In one order, so that equal mixes are equal.
            scenario.workloads.sort_unstable();
        }
    }
}

fn change_operations(scenario: &mut Scenario, random: &mut Random) {
    let operations = match random.below(3) {
        0 => scenario.operations / 2,
        1 => scenario.operations.saturating_mul(2),
        _ => random.between(FEWEST_OPERATIONS, MOST_OPERATIONS),
    };
    scenario.operations = operations.clamp(FEWEST_OPERATIONS, MOST_OPERATIONS);
}

fn change_threads(scenario: &mut Scenario, random: &mut Random) {
    let (fewer, more) = (scenario.threads.saturating_sub(1), scenario.threads.saturating_add(1));
    scenario.threads = if random.one_in(2) { fewer } else { more };
}

fn change_topology(scenario: &mut Scenario, random: &mut Random) {
    scenario.topology = Topology::random(random);
    scenario.refit_turns(random);
}

fn add_plug(scenario: &mut Scenario, random: &mut Random) {
    let at = random.below(scenario.plugs.len() as u64 + 1) as usize;
    let plug = Plug::random(random, scenario.topology);
    scenario.plugs.insert(at, plug);
}

fn remove_plug(scenario: &mut Scenario, random: &mut Random) {
    if let Some(at) = some_plug(scenario, random) {
        scenario.plugs.remove(at);
    }
}

/// Gives a plug at another time: somewhere else, a little earlier or later, or at once.
fn move_plug(scenario: &mut Scenario, random: &mut Random) {
    let Some(at) = some_plug(scenario, random) else { return };
    let plug = &mut scenario.plugs[at];
    let after = match random.below(4) {
        0 => random.below(LONGEST_PAUSE),
        1 => random.below(64),
        2 => plug.after.saturating_add(random.magnitude(1, 10)),
        _ => plug.after.saturating_sub(random.magnitude(1, 10)),
    };
    plug.after = after.min(LONGEST_PAUSE);
}

/// Plugs another CPU, or the same one again.
fn replug(scenario: &mut Scenario, random: &mut Random) {
    let Some(at) = some_plug(scenario, random) else { return };
    if random.one_in(2) {
        scenario.plugs[at].cpu = Plug::random(random, scenario.topology).cpu;
    } else {
        scenario.plugs.insert(at, scenario.plugs[at]);
    }
}

fn change_failure(scenario: &mut Scenario, random: &mut Random) {
    let Some(at) = some_plug(scenario, random) else { return };
    let fail = &mut scenario.plugs[at].fail;
    *fail = match fail {
        Some(_) if random.one_in(2) => None,
        _ => Some(random.below(STEPS_TO_FAIL)),
    };
}

fn some_plug(scenario: &Scenario, random: &mut Random) -> Option<usize> {
    let n = scenario.plugs.len() as u64;
    (n != 0).then(|| random.below(n) as usize)
}

fn change_tick(scenario: &mut Scenario, random: &mut Random) {
    scenario.tick_us = random.between(TICKS.0.into(), TICKS.1.into()) as u32;
}

/// Lets the CPUs take turns in another way, or in the same one with other numbers.
fn change_strategy(scenario: &mut Scenario, random: &mut Random) {
    let kind = discriminant(&scenario.strategy);
    let any_kind = random.one_in(3);
    // Soon found: each kind is drawn as often as the others.
    for _ in 0..8 {
        scenario.strategy = Scenario::random_strategy(random);
        if any_kind || discriminant(&scenario.strategy) == kind {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::machine::scenario::WORKLOADS;

    fn assert_runnable(scenario: &Scenario) {
        assert_eq!(scenario.check(), Ok(()), "{scenario:?}");
        let Topology { possible, boot_cpus } = scenario.topology;
        assert!((2..=4).contains(&possible) && (1..=possible).contains(&boot_cpus), "{scenario:?}");
        assert!(!scenario.workloads.is_empty(), "{scenario:?}");
        let different: HashSet<_> = scenario.workloads.iter().collect();
        assert_eq!(different.len(), scenario.workloads.len(), "{scenario:?}");
        assert!(scenario.workloads.iter().all(|w| WORKLOADS.contains(&w.as_str())), "{scenario:?}");
        let threads = scenario.threads * scenario.workloads.len() as u32;
        assert!(scenario.threads >= 1 && threads <= MOST_THREADS, "{scenario:?}");
        let operations = FEWEST_OPERATIONS..=MOST_OPERATIONS;
        assert!(operations.contains(&scenario.operations), "{scenario:?}");
        assert!((TICKS.0..=TICKS.1).contains(&scenario.tick_us), "{scenario:?}");
        assert!(scenario.plugs.len() <= MOST_PLUGS, "{scenario:?}");
        for plug in &scenario.plugs {
            assert!((1..possible).contains(&plug.cpu), "{scenario:?}");
            assert!(plug.after <= LONGEST_PAUSE, "{scenario:?}");
            assert!(plug.fail.is_none_or(|step| step < STEPS_TO_FAIL), "{scenario:?}");
        }
    }

    #[test]
    fn scenarios_of_seeds_are_within_the_bounds_of_changed_ones() {
        (0..1000).for_each(|seed| assert_runnable(&Scenario::from_seed(seed, &WORKLOADS)));
    }

    #[test]
    fn changes_of_changes_and_splices_of_them_can_be_run() {
        let mut random = Random::new(1, 0);
        let mut kept: Vec<_> = (0..20).map(|seed| Scenario::from_seed(seed, &WORKLOADS)).collect();
        for _ in 0..10_000 {
            let at = random.below(kept.len() as u64) as usize;
            let mut scenario = kept[at].clone();
            scenario.mutate(&mut random, &WORKLOADS);
            assert_runnable(&scenario);
            assert_ne!(scenario, kept[at], "nothing changed");
            let other = random.below(kept.len() as u64) as usize;
            let spliced = scenario.splice(&kept[other], &mut random);
            assert_runnable(&spliced);
            kept[at] = if random.one_in(2) { spliced } else { scenario };
        }
    }

    #[test]
    fn everything_about_a_scenario_can_change_and_mostly_little_does() {
        let original = Scenario::from_seed(3, &WORKLOADS);
        let mut random = Random::new(2, 0);
        let mut changed = [0; 8];
        let mut at_once = 0;
        for _ in 0..2000 {
            let mut scenario = original.clone();
            scenario.mutate(&mut random, &WORKLOADS);
            let differs = [
                scenario.seed != original.seed,
                scenario.topology != original.topology,
                scenario.workloads != original.workloads,
                scenario.threads != original.threads,
                scenario.operations != original.operations,
                scenario.tick_us != original.tick_us,
                scenario.plugs != original.plugs,
                scenario.strategy != original.strategy,
            ];
            let n = differs.iter().filter(|&&differs| differs).count();
            at_once += u32::from(n == 1);
            changed.iter_mut().zip(differs).for_each(|(n, differs)| *n += u32::from(differs));
        }
        assert!(changed.iter().all(|&n| n > 50), "{changed:?}");
        assert!(at_once > 1000, "{at_once}");
    }

    #[test]
    fn one_generator_gives_one_change() {
        let changed = |stream| {
            let mut scenario = Scenario::from_seed(5, &WORKLOADS);
            let mut random = Random::new(5, stream);
            (0..10).for_each(|_| scenario.mutate(&mut random, &WORKLOADS));
            scenario
        };
        assert_eq!(changed(1), changed(1));
        assert_ne!(changed(1), changed(2));
    }

    #[test]
    fn a_splice_has_the_first_plugs_of_one_and_the_last_of_the_other() {
        let mut random = Random::new(7, 0);
        let (a, b) = (Scenario::from_seed(10, &WORKLOADS), Scenario::from_seed(11, &WORKLOADS));
        let mut of_both = 0;
        for _ in 0..200 {
            let spliced = a.splice(&b, &mut random);
            let afters = |plugs: &[Plug]| plugs.iter().map(|p| p.after).collect::<Vec<_>>();
            let (of_a, of_b, plugs) = (afters(&a.plugs), afters(&b.plugs), afters(&spliced.plugs));
            let cut = plugs.iter().zip(&of_a).take_while(|(x, y)| x == y).count();
            assert!(of_b.ends_with(&plugs[cut..]), "{plugs:?} of {of_a:?} and {of_b:?}");
            of_both += u32::from(cut > 0 && cut < plugs.len());
        }
        assert!(of_both > 50, "{of_both}");
    }
}
