//! Coverage from outside: what runs of the guest reach, and what the next run does not inherit.

mod common;

use percpu_guest::abi::Workload;
use vmm_harness::coverage::{Covered, Features};
use vmm_harness::diag::Symbols;
use vmm_harness::fuzz::Machines;
use vmm_harness::host::{Host, RingChoice};
use vmm_harness::image::Image;
use vmm_harness::machine::{Ending, Random, Scenario};

fn machine_for(test: impl FnOnce(&Image, Machines<'_>)) {
    if common::no_vm() {
        return;
    }
    let image = Image::open(&common::steps_image()).expect("a guest image");
    let ring = Host::probe().expect("a host that runs VMs").choose_ring(RingChoice::Auto).0;
    test(&image, Machines::new(&image, ring));
}

/// A scenario of one workload without plugs.
fn only(workload: Workload) -> Scenario {
    let mut scenario = Scenario::from_seed(1);
    scenario.workloads = vec![workload];
    scenario.plugs.clear();
    scenario
}

/// Whether any of these edges leads into a function of that name.
fn reaches(image: &Image, edges: &Covered, function: &str) -> bool {
    let symbols = Symbols::load(image.bytes());
    let places = image.edges().expect("an instrumented image").places();
    edges.iter().any(|edge| symbols.describe(places[edge]).contains(function))
}

#[test]
fn a_run_reaches_what_its_workload_does_and_nothing_of_the_run_before() {
    machine_for(|image, mut machines| {
        let mut edges = |workload| machines.run(&only(workload)).expect("a run").features.edges;
        let (statics, alloc) = (edges(Workload::Statics), edges(Workload::Alloc));
        assert!(statics == edges(Workload::Statics), "what is reached depends on the run before");
        // Pages are put behind areas that are allocated, and boot allocates none.
        for function in ["::take_growing", "alloc::memory::populate"] {
            assert!(reaches(image, &alloc, function), "allocations do not reach {function}");
            assert!(!reaches(image, &statics, function), "statics reach {function}");
        }
        // What boot reached is part of either.
        for edges in [&alloc, &statics] {
            assert!(reaches(image, edges, "percpu_core::area::"), "boot is missing");
        }
    });
}

#[test]
fn changed_scenarios_run_and_hold() {
    machine_for(|_, mut machines| {
        let mut random = Random::new(1, 0);
        let mut known = Features::new();
        let mut kept: Vec<_> = (0..4).map(Scenario::from_seed).collect();
        let mut additions = 0;
        for i in 0..60 {
            let mut scenario = kept[i % kept.len()].clone();
            if i % 5 == 4 {
                scenario = scenario.splice(&kept[0], &mut random);
            }
            scenario.mutate(&mut random);
            let outcome = machines.run(&scenario).expect("a run");
            assert!(matches!(outcome.ending, Ending::Held), "{scenario}: {:?}", outcome.ending);
            if known.add(&outcome.features).any() {
                additions += 1;
                kept.push(scenario);
            }
        }
        assert!(additions > 5, "{additions} of 60 runs reached something new");
    });
}
