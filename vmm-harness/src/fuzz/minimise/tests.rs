//! Minimising against machines that are made up: what fails is said by a closure.

use super::cuts;
use super::search::{Ran, Search};
use super::size::size;
use crate::error::Error;
use crate::machine::scenario::WORKLOADS;
use crate::machine::{
    Change, Plug, Random, Scenario, Schedule, Span, Strategy, Topology, Unit, What,
};

/// More than any search takes.
const MOST_RUNS: u64 = 200_000;
const SPAN: Span = Span { steps: 16_000, points: 1000 };

/// A scenario of a seed with its schedule.
fn given(seed: u64) -> Scenario {
    let scenario = Scenario::from_seed(seed, &WORKLOADS);
    Scenario { strategy: Strategy::Given(Schedule::of(&scenario)), ..scenario }
}

/// The smallest of `scenario` that fails by `fails`, and the number of runs.
fn smallest(scenario: &Scenario, fails: impl Fn(&Scenario) -> bool, most: u64) -> (Scenario, u64) {
    assert!(fails(scenario), "it has to fail to begin with");
    let mut runs = 0;
    let mut least = size(scenario);
    let run = |candidate: &Scenario| {
        assert_eq!(candidate.check(), Ok(()), "{candidate:?}");
        assert!(size(candidate) < least, "{candidate:?} is no smaller");
        if runs == most {
            return Ok(None);
        }
        runs += 1;
        let fails = fails(candidate);
        if fails {
            least = size(candidate);
        }
        Ok(Some(Ran { fails, schedule: cuts::schedule(candidate).clone(), length: SPAN }))
    };
    let smallest = Search::new(scenario.clone(), SPAN, run).smallest().unwrap();
    assert!(fails(&smallest), "{smallest:?}");
    assert!(size(&smallest) <= size(scenario));
    (smallest, runs)
}

/// Four CPUs, all workloads, and as many changes as a walk has.
fn large() -> Scenario {
    let plug = |after, cpu| Plug { after, cpu, fail: Some(3) };
    let scenario = Scenario {
        topology: Topology { possible: 4, boot_cpus: 3 },
        workloads: ["statics", "counter", "refs"].map(str::to_owned).into(),
        threads: 3,
        operations: 200,
        plugs: vec![plug(5000, 1), plug(300, 2), plug(70_000, 3), plug(900, 2)],
        strategy: Strategy::Walk { turn: 60, unit: Unit::Points },
        ..Scenario::from_seed(11, &WORKLOADS)
    };
    Scenario { strategy: Strategy::Given(Schedule::of(&scenario)), ..scenario }
}

#[test]
fn what_is_not_needed_goes() {
    let needs = |s: &Scenario| {
        let plug = s.plugs.iter().any(|plug| plug.fail == Some(3));
        plug && s.workloads.contains(&"counter".to_owned()) && s.operations >= 7 && s.threads >= 2
    };
    let (left, runs) = smallest(&large(), needs, MOST_RUNS);
    assert_eq!((left.workloads.as_slice(), left.operations), (&["counter".to_owned()][..], 7));
    assert_eq!((left.threads, left.plugs.len()), (2, 1));
    assert_eq!(left.plugs[0], Plug { after: 0, cpu: 1, fail: Some(3) });
    assert_eq!(left.topology, Topology { possible: 2, boot_cpus: 1 });
    assert_eq!(left.tick_us, Scenario::LONGEST_TICK_US);
    let plain = Schedule { unit: Unit::Points, order: vec![0, 1], waits: 0, changes: Vec::new() };
    assert_eq!(cuts::schedule(&left), &plain);
    assert!(runs < 5000, "{runs}");
}

#[test]
fn a_race_is_found_again_where_the_work_that_is_left_moves_it_to() {
    // Each operation before it takes some points.
    let window = |s: &Scenario| {
        let begin = 40 + 4 * s.operations;
        let schedule = cuts::schedule(s);
        let mut at = schedule.changes.iter().filter(|change| change.what != What::Interrupt);
        schedule.unit == Unit::Points && at.any(|c| (begin..begin + 4).contains(&c.at))
    };
    let mut large = large();
    large = cuts::with_schedule(&large, |schedule| {
        schedule.changes.push(Change { at: 842, what: What::Demote });
        schedule.changes.sort_by_key(|change| change.at);
    });
    let (left, runs) = smallest(&large, window, MOST_RUNS);
    assert_eq!((left.operations, left.plugs.len()), (1, 0));
    let changes = &cuts::schedule(&left).changes;
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(changes[0].what, What::Demote);
    assert!(runs < 60_000, "{runs}");
}

#[test]
fn a_cpu_goes_with_all_that_names_it() {
    let scenario = cuts::with_schedule(&large(), |schedule| {
        schedule.order = vec![3, 1, 0, 2];
        let changes = [What::Promote(3), What::Promote(1), What::Demote, What::Promote(0)];
        schedule.changes = changes.map(|what| Change { at: 5, what }).into();
    });
    let fewer = cuts::without_cpu(&scenario, 1).unwrap();
    assert_eq!(fewer.check(), Ok(()));
    assert_eq!(fewer.topology, Topology { possible: 3, boot_cpus: 2 });
    let schedule = cuts::schedule(&fewer);
    assert_eq!(schedule.order, [2, 0, 1]);
    let left: Vec<_> = schedule.changes.iter().map(|change| change.what).collect();
    assert_eq!(left, [What::Promote(2), What::Demote, What::Promote(0)]);
    let plugs: Vec<_> = fewer.plugs.iter().map(|plug| (plug.after, plug.cpu)).collect();
    assert_eq!(plugs, [(5300, 1), (70_000, 2), (900, 1)], "the others keep their time");
    assert_eq!(cuts::without_cpu(&scenario, 0), None);
    assert_eq!(cuts::without_cpu(&scenario, 4), None);
}

#[test]
fn a_plug_is_saved_by_how_many_cpus_there_are_at_boot() {
    let scenario = large();
    let more = cuts::without_first_plug_in(&scenario).unwrap();
    assert_eq!((more.topology.boot_cpus, more.plugs.len()), (4, 3));
    let fewer = cuts::without_boot_cpu(&scenario, true).unwrap();
    assert_eq!((fewer.topology.boot_cpus, fewer.plugs.len()), (2, 3));
    assert_eq!(fewer.plugs[1].after, 70_300);
    let two = cuts::without_two_plugs(&scenario, 1).unwrap();
    assert_eq!(two.plugs.iter().map(|plug| plug.cpu).collect::<Vec<_>>(), [1, 3]);
}

/// Something that fails, chosen by `random`: it needs parts that the scenario has.
fn some_need(scenario: &Scenario, random: &mut Random) -> impl Fn(&Scenario) -> bool + use<> {
    let operations = random.between(1, scenario.operations);
    let workload =
        scenario.workloads[random.below(scenario.workloads.len() as u64) as usize].clone();
    let plug = scenario.plugs[random.below(scenario.plugs.len() as u64) as usize];
    let changes = &cuts::schedule(scenario).changes;
    let change = changes[random.below(changes.len() as u64) as usize];
    let (wide, with_plug) = (random.magnitude(1, 12), random.one_in(2));
    move |s: &Scenario| {
        let near = |c: &Change| {
            c.at.abs_diff(change.at) <= wide
                && std::mem::discriminant(&c.what) == std::mem::discriminant(&change.what)
        };
        s.operations >= operations
            && s.workloads.contains(&workload)
            && (!with_plug || s.plugs.iter().any(|p| p.fail == plug.fail))
            && cuts::schedule(s).changes.iter().any(near)
    }
}

#[test]
fn whatever_it_is_that_fails_the_result_fails_with_one_change_and_the_search_ends() {
    for seed in 0..60 {
        let scenario = given(seed);
        if cuts::schedule(&scenario).changes.is_empty() {
            continue;
        }
        let need = some_need(&scenario, &mut Random::new(seed, 9));
        let (left, runs) = smallest(&scenario, &need, MOST_RUNS);
        assert!(runs < MOST_RUNS, "seed {seed} does not end");
        assert_eq!(cuts::schedule(&left).changes.len(), 1, "seed {seed}: {left:?}");
        assert!(left.workloads.len() == 1 && left.plugs.len() <= 1, "seed {seed}: {left:?}");
    }
}

#[test]
fn a_search_that_is_ended_early_has_something_that_fails() {
    let need = some_need(&large(), &mut Random::new(3, 9));
    let mut before = u64::MAX;
    for most in [0, 1, 10, 100, 1000] {
        let (left, runs) = smallest(&large(), &need, most);
        assert!(runs <= most);
        assert!(size(&left) <= before, "more runs, and it is larger");
        before = size(&left);
    }
}

#[test]
fn one_scenario_gives_one_result() {
    let need = some_need(&large(), &mut Random::new(4, 9));
    assert_eq!(smallest(&large(), &need, MOST_RUNS), smallest(&large(), &need, MOST_RUNS));
}

#[test]
fn a_machine_that_cannot_go_on_ends_the_search() {
    let run = |_: &Scenario| Err(Error::Usage("no".into()));
    assert!(Search::new(large(), SPAN, run).smallest().is_err());
}
