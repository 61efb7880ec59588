//! What all CPUs do with the free list while some of them come and go.

use core::sync::atomic::{AtomicU32, Ordering};

use free_list::{OBJECTS, Object};
use percpu_guest::kernel::workload::Worker;

use crate::HELD;

/// Who has each object, 0 for nobody: the workloads' own account of what they were given.
static OWNERS: [AtomicU32; OBJECTS] = [const { AtomicU32::new(0) }; OBJECTS];
/// In [`OWNERS`]: an interrupt handler.
const HANDLER: u32 = u32::MAX;

fn init() {
    free_list::init().expect("a place for the hotplug step");
}

fn take(owner: u32) -> Option<Object> {
    let object = free_list::take()?;
    let other = OWNERS[object.number()].swap(owner, Ordering::Relaxed);
    assert_eq!(other, 0, "object {} belongs to {other}", object.number());
    Some(object)
}

fn give(object: Object, owner: u32) {
    let other = OWNERS[object.number()].swap(0, Ordering::Relaxed);
    assert_eq!(other, owner, "object {} changed hands", object.number());
    free_list::give(object);
}

/// Each thread keeps some objects and takes or gives a few at a time; timer interrupts take one and
/// give it back.
#[percpu_guest::workload(init = init, interrupt = on_interrupt)]
fn churn(mut worker: Worker) {
    let mut kept: [Option<Object>; 40] = [const { None }; 40];
    let owner = worker.row() + 1;
    loop {
        for _ in 0..4 {
            let place = &mut kept[worker.rng.below(40) as usize];
            match place.take() {
                Some(object) => {
                    worker.book(HELD, -1);
                    give(object, owner);
                }
                None => {
                    *place = take(owner);
                    worker.book(HELD, place.is_some().into());
                }
            }
        }
        if !worker.boundary() {
            break;
        }
    }
    for object in kept.into_iter().flatten() {
        worker.book(HELD, -1);
        give(object, owner);
    }
}

fn on_interrupt() {
    if let Some(object) = take(HANDLER) {
        give(object, HANDLER);
    }
}
