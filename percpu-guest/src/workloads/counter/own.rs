//! Counters of one thread's own: nobody else writes them, so a sum is exact at any moment, also
//! while CPUs go down, and a wrong one is found at once and where it came about.

use percpu_core::counter::PercpuCounter;
use percpu_core::cpu;
use percpu_guest::abi::{CounterRole, Invariant};

use super::{announce, check_local, destroy, usual_most};
use crate::workloads::slots;
use percpu_guest::kernel::events;
use percpu_guest::kernel::workload::{Worker, checked};

/// Counters that a thread has for itself, made and destroyed all the time.
const COUNTERS: usize = 4;
/// Additions to one of them in a round.
const ADDITIONS: u32 = if cfg!(percpu_steps) { 2 } else { 8 };
/// The first of them are added to under the general batch, so that their locals grow and that it
/// matters when it shrinks.
const UNDER_GENERAL_BATCH: usize = 2;

/// A counter, and what it began with.
struct Own {
    counter: PercpuCounter,
    initial: i64,
}

/// A thread's counters.
pub(super) struct Owned([Option<Own>; COUNTERS]);

impl Owned {
    pub(super) const fn new() -> Self {
        Self([const { None }; COUNTERS])
    }

    /// Makes a counter, or uses it, or checks and destroys it.
    pub(super) fn work(&mut self, worker: &mut Worker) {
        let which = worker.rng.below(COUNTERS as u64) as usize;
        let slot = slots::OWN_COUNTERS + which as u32;
        let own = &mut self.0[which];
        let Some(mine) = own else {
            let initial = worker.rng.below(100) as i64;
            if let Ok(counter) = PercpuCounter::new(initial) {
                worker.book(slot, -worker.booked(slot));
                announce(&counter, initial, slot, worker.row().into(), CounterRole::Plain);
                *own = Some(Own { counter, initial });
            }
            return;
        };
        let most = usual_most();
        for _ in 0..ADDITIONS {
            // Before the addition, which may fold what it finds.
            check_compare(&mine.counter, mine.initial + worker.booked(slot));
            let amount = worker.rng.below(2 * most) as i64;
            let amount = if which < UNDER_GENERAL_BATCH {
                // Mostly to one side.
                let amount = if worker.rng.one_in(8) { -amount } else { amount / 2 };
                mine.counter.add(amount);
                amount
            } else {
                let amount = amount - most as i64;
                mine.counter.add_batch(amount, if worker.rng.one_in(2) { 2 } else { 32 });
                amount
            };
            worker.book(slot, amount);
            let expected = mine.initial + worker.booked(slot);
            check_local(&mine.counter);
            check_sum(&mine.counter, expected);
            check_read(&mine.counter, expected);
        }
        if worker.rng.one_in(4)
            && let Some(mine) = own.take()
        {
            destroy(mine.counter);
        }
    }

    pub(super) fn end(self) {
        self.0.into_iter().flatten().for_each(|own| destroy(own.counter));
    }
}

/// K1, and K6 where a CPU goes down meanwhile.
fn check_sum(counter: &PercpuCounter, expected: i64) {
    let here = cpu::this_cpu_raw();
    let dying = !cpu::dying().is_empty();
    let seen = counter.sum();
    let invariant = if dying { Invariant::K6 } else { Invariant::K1 };
    checked(invariant);
    if seen != expected {
        let address = counter.address() as u64;
        events::violation(invariant, here, address, seen as u64, expected as u64);
    }
}

/// K7, also where the batch has shrunk under what is in the locals.
fn check_compare(counter: &PercpuCounter, exact: i64) {
    checked(Invariant::K7);
    let seen = counter.compare(exact);
    if seen.is_ne() {
        let here = cpu::this_cpu_raw();
        events::violation(Invariant::K7, here, counter.address() as u64, seen as i64 as u64, 0);
    }
}

/// K2: what `read` gives is off by what is in the locals, at most.
fn check_read(counter: &PercpuCounter, expected: i64) {
    // The locals first: a CPU that dies meanwhile takes its local into what is read.
    let in_locals: u64 = cpu::booted_once()
        .iter()
        // SAFETY: the counter lives, and its locals are changed by `this_cpu` operations and atomics.
        .map(|cpu| u64::from(unsafe { counter.locals().read_on(cpu) }.unsigned_abs()))
        .sum();
    let seen = counter.read();
    checked(Invariant::K2);
    if seen.abs_diff(expected) > in_locals {
        let here = cpu::this_cpu_raw();
        let off = seen.abs_diff(expected);
        events::violation(Invariant::K2, here, counter.address() as u64, off, in_locals + 1);
    }
}
