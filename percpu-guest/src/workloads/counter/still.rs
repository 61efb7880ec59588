//! Counters that stand still while no CPU comes up: a CPU adds to them as it comes up, nobody else
//! ever does.
//!
//! So the host knows their value at any moment of an unplug, and how it must be spread over count
//! and locals before and after: a fold that loses or doubles something shows there (K3), and so does
//! a moment at which a dying CPU is not counted (K6).

use core::sync::atomic::{AtomicBool, Ordering};

use percpu_core::counter::PercpuCounter;
use percpu_core::cpu::{self, CpuId};
use percpu_core::hotplug::{self, Section};
use percpu_guest::abi::{ALL_ROWS, CounterRole, Invariant, MAX_CPUS};

use super::{Slot, announce};
use crate::workloads::slots;
use percpu_guest::kernel::workload::{book_interrupt, checked};
use percpu_guest::kernel::{events, ipi, shared};

const COUNTERS: usize = 4;

static STILL: [Slot; COUNTERS] = [const { Slot::new() }; COUNTERS];

/// Set once the counters are made and all CPUs that are up have added.
static READY: AtomicBool = AtomicBool::new(false);

fn initial(i: usize) -> i64 {
    500 - 300 * i as i64
}

fn slot(i: usize) -> u32 {
    slots::STILL_COUNTERS + i as u32
}

/// What a CPU adds when it comes up: not zero, less than a batch, of either sign.
fn share(i: usize, cpu: CpuId) -> i64 {
    let below = i64::from(shared::boot().smallest_batch);
    let amount = (7 * cpu.index() + 5 * i) as i64 % (below - 1) + 1;
    if i.is_multiple_of(2) { amount } else { -amount }
}

/// Makes the counters; CPUs that are up add to them now.
pub(super) fn init() {
    for (i, place) in STILL.iter().enumerate() {
        let counter = PercpuCounter::new(initial(i)).expect("memory for a counter");
        // SAFETY: nobody reads before the steps are registered.
        unsafe { place.put(counter) };
    }
    // Later than the counters' own step, so on the way down earlier: the CPU is dead and its locals
    // are not folded yet.
    hotplug::register(Section::Prepare, "workload:dying", None, Some(check_dying))
        .expect("a place for the workload's hotplug steps");
    // This is the thread that brings CPUs up and down: those that are up stay.
    for cpu in cpu::online().iter() {
        ipi::run_on_cpu(cpu.index() as u32, |_| add_share(), 0);
    }
    READY.store(true, Ordering::Release);
    for (i, place) in STILL.iter().enumerate() {
        announce(place.get(), initial(i), slot(i), ALL_ROWS, CounterRole::Still);
    }
}

/// A CPU has come up: that one, interrupts masked, and the plug is not done before this.
pub(super) fn on_cpu_up() {
    if READY.load(Ordering::Acquire) {
        add_share();
    }
}

/// Adds this CPU's share. Interrupts are masked.
fn add_share() {
    let cpu = cpu::current();
    for (i, place) in STILL.iter().enumerate() {
        place.get().add(share(i, cpu));
        book_interrupt(slot(i), share(i, cpu));
    }
}

/// K6 at the moment itself: `cpu` executes nothing more, and what it added is still its own.
fn check_dying(cpu: CpuId) {
    for (i, place) in STILL.iter().enumerate() {
        let added = (0..MAX_CPUS as u32)
            .map(|cpu| shared::control(cpu).irq_ledger[slot(i) as usize].load(Ordering::Relaxed));
        let expected = initial(i) + added.sum::<i64>();
        let seen = place.get().sum();
        checked(Invariant::K6);
        if seen != expected {
            let address = place.get().address() as u64;
            let cpu = cpu.index() as u32;
            events::violation(Invariant::K6, cpu, address, seen as u64, expected as u64);
        }
    }
}
