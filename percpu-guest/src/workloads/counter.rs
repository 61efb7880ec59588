//! Counters: many writers, batches down to one, counters that come and go during plugs.

use core::cell::UnsafeCell;

use percpu_core::counter::PercpuCounter;
use percpu_guest::abi::{EventKind, Invariant};

use super::{Worker, book_interrupt, slots};
use crate::events;

/// Counters that live as long as the kernel and that all threads write.
const SHARED_COUNTERS: usize = 8;
/// Counters that a thread has for itself, made and destroyed all the time.
const OWN_COUNTERS: usize = 4;
/// Additions of a round between two boundaries.
const ROUND: u32 = 32;
/// Additions to a counter of the thread's own, of which it makes some a round.
const OWN_ADDITIONS: u32 = 8;

static COUNTERS: [Slot; SHARED_COUNTERS] = [const { Slot(UnsafeCell::new(None)) }; SHARED_COUNTERS];

/// A counter that is made once, before any thread reads it.
struct Slot(UnsafeCell<Option<PercpuCounter>>);
// SAFETY: written by `init`, which ends before the first thread of the workload starts.
unsafe impl Sync for Slot {}

impl Slot {
    fn get(&self) -> &PercpuCounter {
        // SAFETY: nobody writes any more; see `Sync` above.
        unsafe { (*self.0.get()).as_ref() }.expect("made by init")
    }
}

/// Makes the shared counters.
pub(super) fn init() {
    for (i, slot) in COUNTERS.iter().enumerate() {
        let initial = i as i64 * 1000 - 3000;
        let counter = PercpuCounter::new(initial).expect("memory for a counter");
        announce(&counter, initial, slots::COUNTERS + i as u32, u64::MAX);
        // SAFETY: no thread of the workload runs yet.
        unsafe { *slot.0.get() = Some(counter) };
    }
}

fn announce(counter: &PercpuCounter, initial: i64, slot: u32, row: u64) {
    events::emit(
        EventKind::CounterInit,
        [counter.address() as u64, initial as u64, u64::from(slot), row, 0],
    );
}

/// A counter that only its thread writes, and what it began with.
struct Own {
    counter: PercpuCounter,
    initial: i64,
}

pub(super) fn run(mut worker: Worker) {
    let mut own: [Option<Own>; OWN_COUNTERS] = [const { None }; OWN_COUNTERS];
    loop {
        for _ in 0..ROUND {
            let which = worker.rng.below(SHARED_COUNTERS as u64) as usize;
            let amount = worker.rng.below(21) as i64 - 10;
            let counter = COUNTERS[which].get();
            let added = match worker.rng.below(4) {
                // Nearly every addition folds.
                0 => {
                    counter.add_batch(amount, 2);
                    amount
                }
                1 => {
                    counter.sub(amount);
                    -amount
                }
                2 => {
                    counter.inc();
                    1
                }
                _ => {
                    counter.add(amount);
                    amount
                }
            };
            worker.book(slots::COUNTERS + which as u32, added);
        }
        let which = worker.rng.below(OWN_COUNTERS as u64) as usize;
        renew(&mut worker, &mut own[which], slots::OWN_COUNTERS + which as u32);
        if !worker.boundary() {
            break;
        }
    }
    for one in own.into_iter().flatten() {
        destroy(one);
    }
}

/// Makes the thread's counter, or uses it, or checks and destroys it.
fn renew(worker: &mut Worker, own: &mut Option<Own>, slot: u32) {
    let Some(mine) = own else {
        let initial = worker.rng.below(100) as i64;
        if let Ok(counter) = PercpuCounter::new(initial) {
            worker.book(slot, -worker.booked(slot));
            announce(&counter, initial, slot, u64::from(worker.row));
            *own = Some(Own { counter, initial });
        }
        return;
    };
    for _ in 0..OWN_ADDITIONS {
        let amount = worker.rng.below(100) as i64 - 50;
        let cpu = percpu_core::cpu::this_cpu_raw();
        mine.counter.add_batch(amount, if worker.rng.one_in(2) { 2 } else { 32 });
        worker.book(slot, amount);
        // Nobody else writes it, so the sum is exact at once, and a wrong one is this CPU's work.
        let seen = mine.counter.sum();
        let expected = mine.initial + worker.booked(slot);
        if seen != expected {
            let address = mine.counter.address() as u64;
            events::violation(Invariant::K1, cpu, address, seen as u64, expected as u64);
        }
    }
    if worker.rng.one_in(4)
        && let Some(mine) = own.take()
    {
        destroy(mine);
    }
}

/// The timer interrupt's share: an addition that stays local mostly, and one that folds.
pub(super) fn on_interrupt() {
    for (i, (amount, batch)) in [(1, 32), (-2, 2)].into_iter().enumerate() {
        COUNTERS[i].get().add_batch(amount, batch);
        book_interrupt(slots::COUNTERS + i as u32, amount);
    }
}

fn destroy(own: Own) {
    events::emit(EventKind::CounterDestroy, [own.counter.address() as u64, 0, 0, 0, 0]);
    drop(own.counter);
}
