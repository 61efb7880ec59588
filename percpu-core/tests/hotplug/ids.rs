//! Ids of steps that are gone, and steps that stay.

use percpu_core::counter::PercpuCounter;
use percpu_core::host;
use percpu_core::hotplug::{self, RegisterError, Section, StepId};

use super::{CPUS, assert_up, system, take_log, victim};

fn nothing(section: Section) -> Result<StepId, RegisterError> {
    hotplug::register(section, "nothing", Some(|_| Ok(())), Some(|_| ()))
}

#[test]
fn an_id_of_a_step_that_is_gone_names_no_later_step() {
    let _system = system();
    let old = nothing(Section::Online).unwrap();
    hotplug::unregister(old);
    let new = nothing(Section::Online).unwrap();
    assert_eq!(new.index(), old.index(), "the slot is used again");
    assert_ne!(new, old);
    let stays = || hotplug::steps().any(|step| step.0 == new);
    hotplug::unregister(old);
    hotplug::unregister_nocalls(old);
    assert!(stays(), "a later step was taken out by an old id");
    hotplug::inject_failure(old, victim());
    hotplug::inject_instance_failure(old, 0, victim());
    hotplug::cpu_down(victim()).unwrap();
    hotplug::cpu_up(victim()).unwrap();
    assert_eq!(StepId::from_index(old.index()), Some(new));
    hotplug::unregister(new);
    assert!(!stays());
    for index in [0, 1, hotplug::MAX_STEPS, 1 << 31, (1 << 32) + 2, 1 << 50, usize::MAX] {
        let found = StepId::from_index(index);
        assert_eq!(found.is_some(), hotplug::steps().any(|step| step.0.index() == index));
    }
}

#[test]
fn the_crates_own_steps_stay_and_run_outermost() {
    let _system = system();
    let users = nothing(Section::Prepare).unwrap();
    let own: Vec<_> = hotplug::steps()
        .filter(|step| ["counter:dead", "counter:online", "alloc:dead"].contains(&step.2))
        .collect();
    assert_eq!(own.len(), 3);
    for step in &own {
        hotplug::unregister(step.0);
        hotplug::unregister_nocalls(step.0);
        assert!(hotplug::steps().any(|other| other.0 == step.0), "{step:?}");
    }
    assert_eq!(hotplug::steps().next().unwrap().2, "counter:dead");
    let counter = PercpuCounter::new(0).unwrap();
    host::on_each_cpu(|_| counter.add(10));
    hotplug::cpu_down(victim()).unwrap();
    assert_eq!(counter.sum(), 10 * CPUS as i64);
    hotplug::cpu_up(victim()).unwrap();
    assert_up(victim());
    hotplug::unregister(users);
    take_log();
}

#[test]
fn the_table_of_steps_fills_up_and_is_emptied() {
    let _system = system();
    let mut steps = Vec::new();
    let full = loop {
        match nothing(Section::Online) {
            Ok(step) => steps.push(step),
            Err(error) => break error,
        }
    };
    assert_eq!(full, RegisterError::Full);
    assert_eq!(hotplug::steps().count(), hotplug::MAX_STEPS);
    hotplug::cpu_down(victim()).unwrap();
    hotplug::cpu_up(victim()).unwrap();
    steps.into_iter().for_each(hotplug::unregister);
    assert_eq!(hotplug::steps().count(), 3);
}
