//! The other kinds of counters: lazy ones, which threads and interrupts make per-CPU by getting into
//! each other's way, and hierarchical ones.
//!
//! Those that all share are conserved sums, which the host reads from memory (S1): the lazy ones'
//! words, or parts, and the hierarchical ones' leaves. A hierarchical counter of a thread's own must
//! read as its maker was promised (K2).

use core::cell::UnsafeCell;
use core::sync::atomic::Ordering;

use percpu_core::counter::{HierarchicalCounter, LazyCounter};
use percpu_core::cpu;
use percpu_guest::abi::{AreaContent, EventKind, Invariant, SumKind};

use crate::workloads::slots;
use percpu_guest::kernel::arch::tsc;
use percpu_guest::kernel::workload::{Worker, announce_sum, book_interrupt, checked};
use percpu_guest::kernel::{events, shared};

/// Each becomes per-CPU once, so there are some, and all threads go from one to the next.
const LAZY: usize = 16;
/// How long all are at one of them, in nanoseconds or, in a short run, in operations.
const LAZY_TURN: u64 = if cfg!(percpu_steps) { 8 } else { 300_000_000 };
/// One addition in so many finds that its counter had better be per-CPU.
const UPGRADES: u64 = if cfg!(percpu_steps) { 4 } else { 1 << 20 };
/// How far off reads of the hierarchical counters may be.
const ERRORS: [u64; 2] = [100, 5000];
/// Additions of a round to each.
const ADDITIONS: u32 = if cfg!(percpu_steps) { 2 } else { 4 };

static LAZIES: [LazyCounter; LAZY] = [const { LazyCounter::new(-7) }; LAZY];

/// A counter that is made once, before any thread reads it.
struct Slot(UnsafeCell<Option<HierarchicalCounter>>);
// SAFETY: written by `init`, which ends before the first thread of the workload starts.
unsafe impl Sync for Slot {}
static TREES: [Slot; ERRORS.len()] = [const { Slot(UnsafeCell::new(None)) }; ERRORS.len()];

fn tree(i: usize) -> &'static HierarchicalCounter {
    // SAFETY: nobody writes any more; see `Sync` above.
    unsafe { (*TREES[i].0.get()).as_ref() }.expect("made by init")
}

fn make(initial: i64, error: u64) -> HierarchicalCounter {
    let trees = |error| HierarchicalCounter::new(initial, error);
    match trees(error) {
        Ok(counter) => counter,
        // With many CPUs there is more error to be had only.
        Err(percpu_core::counter::HierarchicalError::MaxError { smallest, .. }) => {
            trees(smallest).expect("memory for a counter")
        }
        Err(error) => panic!("no counter: {error}"),
    }
}

pub(super) fn init() {
    for (slot, counter) in (slots::LAZY_COUNTERS..).zip(&LAZIES) {
        announce_sum(SumKind::Lazy, counter.address(), slot, -7);
    }
    for (i, place) in TREES.iter().enumerate() {
        let counter = make(0, ERRORS[i]);
        announce_sum(SumKind::Word, counter.leaves().raw(), slots::TREES + i as u32, 0);
        // SAFETY: no thread of the workload runs yet.
        unsafe { *place.0.get() = Some(counter) };
    }
}

/// The lazy counter whose turn it is.
fn lazy() -> usize {
    let now = if cfg!(percpu_steps) {
        shared::header().operations_done.load(Ordering::Relaxed)
    } else {
        tsc::now_ns()
    };
    (now / LAZY_TURN) as usize % LAZY
}

/// A thread's own hierarchical counter.
pub(super) struct Tree {
    counter: HierarchicalCounter,
    value: i64,
}

impl Tree {
    pub(super) fn new(worker: &Worker) -> Self {
        let value = i64::from(worker.row()) * 10;
        let counter = make(value, ERRORS[worker.index() as usize % ERRORS.len()]);
        // No sum that the host follows; but it is to know whose area that is.
        let (area, size) = (counter.leaves().raw() as u64, size_of::<i64>() as u64);
        events::emit(EventKind::Alloc, [area, size, size, AreaContent::Any as u64, 0]);
        Self { counter, value }
    }

    pub(super) fn work(&mut self, worker: &mut Worker) {
        for _ in 0..ADDITIONS {
            let amount = worker.rng.below(100) as i64 - 30;
            let which = lazy();
            if worker.rng.one_in(UPGRADES) {
                // Where there is no memory the counter stays what it is.
                let _ = LAZIES[which].make_per_cpu();
            }
            LAZIES[which].add(amount);
            worker.book(slots::LAZY_COUNTERS + which as u32, amount);
            let which = worker.rng.below(ERRORS.len() as u64) as usize;
            tree(which).add(amount);
            worker.book(slots::TREES + which as u32, amount);
            self.counter.add(amount);
            self.value += amount;
            self.check();
        }
    }

    pub(super) fn end(self) {
        let area = self.counter.leaves().raw() as u64;
        events::emit(EventKind::Free, [area, 0, 0, 0, 0]);
    }

    /// K2: nobody else adds, so nothing is under way.
    fn check(&self) {
        let (seen, bound) = (self.counter.read(), self.counter.error_bound());
        let exact = self.counter.sum();
        checked(Invariant::K2);
        if seen.abs_diff(self.value) > bound || exact != self.value {
            let off = seen.abs_diff(self.value).max(exact.abs_diff(self.value));
            let address = self.counter.leaves().raw() as u64;
            events::violation(Invariant::K2, cpu::this_cpu_raw(), address, off, bound + 1);
        }
    }
}

/// The timer interrupt's share.
pub(super) fn on_interrupt() {
    let which = lazy();
    LAZIES[which].add(3);
    book_interrupt(slots::LAZY_COUNTERS + which as u32, 3);
    tree(0).add(-2);
    book_interrupt(slots::TREES, -2);
}
