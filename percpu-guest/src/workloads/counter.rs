//! Counters: many writers, batches down to two, and a thousand counters that come and go while CPUs
//! do.
//!
//! | file | counters | what is judged |
//! |---|---|---|
//! | this one | written by all threads and by interrupts | K1, K2 at rest |
//! | `own` | a thread's own, summed after each addition | K1, K2, K6 at once |
//! | `limited` | a thread's own, with a limit | K4 |
//! | `fleet` | a thousand, made and destroyed together | K1, K5 |
//! | `kinds` | lazy and hierarchical ones | S1 at rest, K2 at once |
//! | `still` | changed by a CPU that comes up, by nobody else | K3, K5, K6 at each plug |

mod fleet;
mod kinds;
mod limited;
mod own;
mod still;

use core::cell::UnsafeCell;

use percpu_core::counter::PercpuCounter;
use percpu_core::var::PerCpuPtr;
use percpu_core::view::CounterView;
use percpu_core::{percpu, preempt};
use percpu_guest::abi::{ALL_ROWS, CounterRole, EventKind, Invariant};

use super::{parts, slots};
use percpu_guest::kernel::arch::tsc;
use percpu_guest::kernel::workload::{Worker, book_interrupt, checked};
use percpu_guest::kernel::{events, shared};

use fleet::Fleet;
use kinds::Tree;
use limited::Limited;
use own::Owned;

/// Counters that live as long as the kernel and that all threads write: in a short run few, so that
/// threads and interrupts meet at them.
const SHARED_COUNTERS: usize = if cfg!(percpu_steps) { 4 } else { 8 };
/// The first of them are given small amounts, the others large ones.
const SMALL_AMOUNTS: usize = SHARED_COUNTERS / 2;
/// Additions of a round between two boundaries.
const ROUND: u32 = if cfg!(percpu_steps) { 2 } else { 32 };

static COUNTERS: [Slot; SHARED_COUNTERS] = [const { Slot::new() }; SHARED_COUNTERS];

percpu! {
    /// The counter to which the thread of this CPU adds, or did: interrupts go there, too.
    static HERE: PerCpu<u32> = 0;
}

/// A counter that is made once, before any thread reads it.
struct Slot(UnsafeCell<Option<PercpuCounter>>);
// SAFETY: written by `init`, which ends before the first thread of the workload starts.
unsafe impl Sync for Slot {}

impl Slot {
    const fn new() -> Self {
        Self(UnsafeCell::new(None))
    }

    fn get(&self) -> &PercpuCounter {
        // SAFETY: nobody writes any more; see `Sync` above.
        unsafe { (*self.0.get()).as_ref() }.expect("made by init")
    }

    /// Fills the slot.
    ///
    /// # Safety
    ///
    /// Nobody reads yet.
    unsafe fn put(&self, counter: PercpuCounter) {
        // SAFETY: passed on to the caller.
        unsafe { *self.0.get() = Some(counter) };
    }
}

/// Makes the shared counters.
fn init() {
    for (i, slot) in COUNTERS.iter().enumerate() {
        let initial = i as i64 * 1000 - 3000;
        let counter = PercpuCounter::new(initial).expect("memory for a counter");
        let place = slots::COUNTERS + i as u32;
        announce(&counter, initial, place, ALL_ROWS, CounterRole::Plain);
        // SAFETY: no thread of the workload runs yet.
        unsafe { slot.put(counter) };
    }
    kinds::init();
    still::init();
}

/// Small amounts in every way there is; batches down to two, so that many additions fold.
fn add_little(random: u64, counter: &PercpuCounter) -> i64 {
    let amount = (random >> 8) as i64 % 11;
    match random % 6 {
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
        3 => {
            counter.dec();
            -1
        }
        4 => {
            counter.add(amount);
            counter.sync();
            amount
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

/// The largest amount that is added to counters of a thread's own: often less than the batch, so that
/// locals fill.
fn usual_most() -> u64 {
    if shared::boot().smallest_batch < 32 { 4 } else { 50 }
}

/// The batch when all possible CPUs are online.
fn largest_batch() -> i64 {
    let boot = shared::boot();
    i64::from(2 * boot.possible).max(boot.smallest_batch.into())
}

/// K2 on the spot: whatever CPU this is by now, its local is below the batch. One that is not would
/// be folded by the next addition, long before the host looks.
fn check_local(counter: &PercpuCounter) {
    let view = core::ptr::with_exposed_provenance::<CounterView>(counter.address());
    // SAFETY: the counter lives, at that address; both fields are written whole and by atomics, and
    // the local parts are read as such.
    let (local, cpu, bound) = unsafe {
        let locals = PerCpuPtr::<i32>::from_raw((&raw const (*view).locals).read() as usize);
        let pin = preempt::disable();
        let local = locals.read();
        let cpu = pin.cpu().index() as u32;
        drop(pin);
        // The bound is announced before the local may grow, and never shrinks.
        let bound = (&raw const (*view).local_bound).read_volatile() as i32;
        (local, cpu, largest_batch().max(i64::from(bound)))
    };
    checked(Invariant::K2);
    if i64::from(local).abs() >= bound {
        let address = counter.address() as u64;
        events::violation(Invariant::K2, cpu, address, i64::from(local) as u64, bound as u64);
    }
}

fn announce(counter: &PercpuCounter, initial: i64, slot: u32, row: u64, role: CounterRole) {
    let address = counter.address() as u64;
    let args = [address, initial as u64, u64::from(slot), row, role as u64];
    events::emit(EventKind::CounterInit, args);
}

fn announce_end(counter: &PercpuCounter) {
    events::emit(EventKind::CounterDestroy, [counter.address() as u64, 0, 0, 0, 0]);
}

/// Announces the end of a counter, and brings it about.
fn destroy(counter: PercpuCounter) {
    announce_end(&counter);
    drop(counter);
}

fn on_cpu_up() {
    still::on_cpu_up();
}

#[percpu_guest::workload(name = "counter", init = init, interrupt = on_interrupt, cpu_up = on_cpu_up)]
fn run(mut worker: Worker) {
    let mut own = Owned::new();
    let mut limited = Limited::new(&worker);
    let mut fleet = Fleet::new(&worker);
    let mut tree = Tree::new(&worker);
    loop {
        for _ in 0..ROUND {
            let which = worker.rng.below(SHARED_COUNTERS as u64) as usize;
            let counter = COUNTERS[which].get();
            HERE.write(which as u32);
            let added = if which < SMALL_AMOUNTS {
                add_little(worker.rng.next_u64(), counter)
            } else {
                add_much(worker.rng.next_u64(), counter)
            };
            check_local(counter);
            worker.book(slots::COUNTERS + which as u32, added);
        }
        // All of them, or, where an operation is to be a thing of its own, one.
        let turn = if cfg!(percpu_steps) { worker.rng.below(8) } else { 0 };
        let is_turn = |of: core::ops::Range<u64>| !cfg!(percpu_steps) || of.contains(&turn);
        if is_turn(0..4) {
            own.work(&mut worker);
        }
        if is_turn(4..5)
            && let Some(limited) = &mut limited
        {
            limited.work(&mut worker);
        }
        if is_turn(5..6) {
            fleet.work(&mut worker);
        }
        if is_turn(6..8) {
            tree.work(&mut worker);
        }
        if !worker.boundary() {
            break;
        }
    }
    // At the end of a short run the host looks at what is there: let it be something.
    if cfg!(percpu_steps) {
        return core::mem::forget((own, limited, fleet, tree));
    }
    own.end();
    if let Some(limited) = limited {
        limited.end();
    }
    fleet.end();
    tree.end();
}

/// The timer interrupt's share: an addition where the thread that is interrupted may be adding, and one
/// that folds.
fn on_interrupt() {
    let now = tsc::now();
    for part in parts(3, now) {
        match part {
            0 => match HERE.read() as usize {
                which @ SMALL_AMOUNTS.. => {
                    let added = add_much(now >> 4, COUNTERS[which].get());
                    book_interrupt(slots::COUNTERS + which as u32, added);
                }
                _ => add_in_interrupt(0, 1 + (now >> 4) as i64 % 12, 32),
            },
            1 => add_in_interrupt(1, -2, 2),
            _ => kinds::on_interrupt(),
        }
    }
}

fn add_in_interrupt(which: usize, amount: i64, batch: i32) {
    COUNTERS[which].get().add_batch(amount, batch);
    book_interrupt(slots::COUNTERS + which as u32, amount);
}
