//! Counters: many writers, batches down to one, counters that come and go during plugs.

use core::cell::UnsafeCell;

use percpu_core::counter::PercpuCounter;
use percpu_core::preempt;
use percpu_core::var::PerCpuPtr;
use percpu_core::view::CounterView;
use percpu_guest::abi::{EventKind, Invariant};

use super::{Worker, book_interrupt, slots};
use crate::{events, shared};

/// Counters that live as long as the kernel and that all threads write.
const SHARED_COUNTERS: usize = 8;
/// The first of them are given small amounts, the others large ones.
const SMALL_AMOUNTS: usize = 4;
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

/// Small amounts in every way there is; batches down to two, so that many additions fold.
fn add_little(random: u64, counter: &PercpuCounter) -> i64 {
    let amount = (random >> 8) as i64 % 11;
    match random % 4 {
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
    }
}

/// Amounts of either sign about as large as the batch: locals are large, too, and every third
/// addition folds.
fn add_much(random: u64, counter: &PercpuCounter) -> i64 {
    let most = largest_batch() - 1;
    let amount = (random >> 1) as i64 % (2 * most + 1) - most;
    counter.add(amount);
    amount
}

/// The batch when all possible CPUs are online.
fn largest_batch() -> i64 {
    (2 * i64::from(shared::boot().possible)).max(32)
}

/// K2 on the spot: whatever CPU this is by now, its local is below the batch. One that is not would
/// be folded by the next addition, long before the host looks.
fn check_local(counter: &PercpuCounter) {
    let view = core::ptr::with_exposed_provenance::<CounterView>(counter.address());
    // SAFETY: the counter exists, its node has the view's layout, and the locals' pointer and bound
    // are not changed while it does, but for the bound, which is read at once.
    let (locals, bound) =
        unsafe { ((*view).locals, (&raw const (*view).local_bound).read_volatile()) };
    let pin = preempt::disable();
    // SAFETY: the locals live as long as the counter, and all accesses are of this kind.
    let local = unsafe { PerCpuPtr::<i32>::from_raw(locals as usize).read() };
    let cpu = pin.cpu().index() as u32;
    drop(pin);
    let bound = i64::from(bound).max(largest_batch());
    if i64::from(local).abs() >= bound {
        let address = counter.address() as u64;
        events::violation(Invariant::K2, cpu, address, i64::from(local) as u64, bound as u64);
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
            let counter = COUNTERS[which].get();
            let added = if which < SMALL_AMOUNTS {
                add_little(worker.rng.next(), counter)
            } else {
                add_much(worker.rng.next(), counter)
            };
            check_local(counter);
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
