//! Tests, each alone in a fresh machine.

use core::sync::atomic::{AtomicUsize, Ordering};

use free_list::{OBJECTS, Object};
use percpu_guest::kernel::cpus;
use percpu_guest::kernel::testing::run_on;

/// Takes all objects there are, and says how many.
fn take_all() -> usize {
    let mut seen = [false; OBJECTS];
    let mut taken: [Option<Object>; OBJECTS] = [const { None }; OBJECTS];
    let mut n = 0;
    while let Some(object) = free_list::take() {
        let before = core::mem::replace(&mut seen[object.number()], true);
        assert!(!before, "object {} was handed out twice", object.number());
        taken[n] = Some(object);
        n += 1;
    }
    taken.into_iter().flatten().for_each(free_list::give);
    n
}

#[percpu_guest::test(cpus = 1)]
fn every_object_is_handed_out_once() {
    free_list::init().expect("a place for the hotplug step");
    assert_eq!(take_all(), OBJECTS);
    // And again, now that they come from this CPU's list.
    assert_eq!(take_all(), OBJECTS);
}

#[percpu_guest::test(cpus = 2)]
fn what_a_cpu_had_is_there_for_others_once_it_is_down() {
    static ON_CPU_1: AtomicUsize = AtomicUsize::new(0);
    free_list::init().expect("a place for the hotplug step");
    run_on(1, || {
        let taken: [Option<Object>; 20] = core::array::from_fn(|_| free_list::take());
        ON_CPU_1.store(taken.iter().flatten().count(), Ordering::Relaxed);
        taken.into_iter().flatten().for_each(free_list::give);
    });
    assert_eq!(ON_CPU_1.load(Ordering::Relaxed), 20);
    cpus::down(1).expect("CPU 1 goes down");
    run_on(0, || assert_eq!(take_all(), OBJECTS));
}

#[percpu_guest::test(cpus = 1, possible = 2)]
fn a_cpu_that_comes_up_again_has_a_list() {
    free_list::init().expect("a place for the hotplug step");
    for _ in 0..3 {
        cpus::up(1).expect("CPU 1 comes up");
        run_on(1, || free_list::give(free_list::take().expect("there are objects")));
        cpus::down(1).expect("CPU 1 goes down");
    }
    run_on(0, || assert_eq!(take_all(), OBJECTS));
}
