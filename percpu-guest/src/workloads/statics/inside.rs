//! Data in which somebody can be in the middle of something: cells and locks, which an interrupt
//! tries to enter while a thread is inside, and statistics, which other CPUs read meanwhile.

use core::mem::size_of;

use percpu_core::local::{IrqCell, LocalLock, SeqStats};
use percpu_core::{cpu, irq, percpu, preempt};
use percpu_guest::abi::{Invariant, PAIR_FACTOR, STATS as NUMBERS, SumKind};

use super::{INSIDE_FROM, dawdle};
use percpu_guest::kernel::events;
use percpu_guest::kernel::rng::Rng;
use percpu_guest::kernel::workload::{Worker, announce_sum, book_interrupt, checked};

/// What is protected.
struct Inside {
    sum: u64,
    /// Those inside: one at most.
    users: u64,
}

impl Inside {
    const fn new() -> Self {
        Self { sum: 0, users: 0 }
    }

    /// S3: goes in, adds by a read and a write, and comes out, alone all the while.
    fn add(&mut self, amount: u64, wait: impl FnOnce(), in_interrupt: bool) {
        checked(Invariant::S3);
        // The compiler must not believe that nobody comes in between: that is the question.
        let this = core::ptr::from_mut(self);
        // SAFETY: `this` is valid, as `self` is.
        unsafe {
            let users = (&raw mut (*this).users).read_volatile() + 1;
            (&raw mut (*this).users).write_volatile(users);
            if users != 1 {
                let report =
                    if in_interrupt { events::violation_in_interrupt } else { events::violation };
                report(Invariant::S3, cpu::this_cpu_raw(), this.addr() as u64, users, 1);
            }
            let sum = (&raw mut (*this).sum).read_volatile();
            wait();
            (&raw mut (*this).sum).write_volatile(sum.wrapping_add(amount));
            let users = (&raw mut (*this).users).read_volatile();
            (&raw mut (*this).users).write_volatile(users - 1);
        }
    }
}

percpu! {
    static CELL: PerCpu<IrqCell<Inside>> = IrqCell::new(Inside::new());
    static LOCK: PerCpu<LocalLock<Inside>> = LocalLock::new(Inside::new());
    /// Written by threads and interrupts.
    static STATS: PerCpu<SeqStats<NUMBERS>> = SeqStats::new();
    /// Written by threads alone.
    static PINNED_STATS: PerCpu<SeqStats<NUMBERS>> = SeqStats::new();
}

const IN_CELL: u32 = INSIDE_FROM;
const IN_LOCK: u32 = INSIDE_FROM + 1;
const IN_STATS: u32 = INSIDE_FROM + 2;
const IN_PINNED: u32 = INSIDE_FROM + 3;

pub(super) fn init() {
    // The value lies behind the flag that says whether it is in use; so do the users. At rest there
    // are none.
    let (cell, lock) = (CELL.ptr().raw(), LOCK.ptr().raw());
    let value = align_of::<Inside>();
    announce_sum(SumKind::Word, cell + value + core::mem::offset_of!(Inside, sum), IN_CELL, 0);
    announce_sum(SumKind::Word, lock + value + core::mem::offset_of!(Inside, sum), IN_LOCK, 0);
    announce_sum(SumKind::Stats, STATS.ptr().raw(), IN_STATS, 0);
    announce_sum(SumKind::Stats, PINNED_STATS.ptr().raw(), IN_PINNED, 0);
}

const _: () = assert!(size_of::<IrqCell<Inside>>() == size_of::<Inside>() + align_of::<Inside>());

pub(super) fn work(worker: &mut Worker, amount: u64) {
    let mut rng = Rng::new(worker.rng.next_u64(), 0);
    let slot = match worker.rng.below(7) {
        0 | 1 => {
            let pin = preempt::disable();
            let added =
                CELL.with_mut(&pin, |inside| inside.add(amount, || dawdle(&mut rng), false));
            drop(pin);
            // No handler is interrupted by a thread, so nobody is inside.
            entered(added.is_ok(), CELL.ptr().raw());
            IN_CELL
        }
        2 => {
            let masked = irq::disable();
            let added = CELL.with_mut_irq(&masked, |inside| inside.add(amount, || (), false));
            drop(masked);
            entered(added.is_ok(), CELL.ptr().raw());
            IN_CELL
        }
        3 => {
            LOCK.lock().add(amount, || dawdle(&mut rng), false);
            IN_LOCK
        }
        4 => {
            LOCK.lock_irqsave().add(amount, || (), false);
            IN_LOCK
        }
        5 => {
            for _ in 0..amount {
                let masked = irq::disable();
                STATS.update(&masked, numbers(1));
            }
            check_stats(&mut rng);
            IN_STATS
        }
        _ => {
            for _ in 0..amount {
                let pin = preempt::disable();
                PINNED_STATS.update_pinned(&pin, numbers(1));
            }
            check_stats(&mut rng);
            IN_PINNED
        }
    };
    worker.book(slot, amount as i64);
}

fn numbers(first: u64) -> [u64; NUMBERS] {
    let mut numbers = [first.wrapping_mul(PAIR_FACTOR); NUMBERS];
    numbers[0] = first;
    numbers
}

/// S3, the other way: a thread, which nobody can be in the middle of, is let in.
fn entered(entered: bool, object: usize) {
    if !entered {
        events::violation(Invariant::S3, cpu::this_cpu_raw(), object as u64, 1, 0);
    }
}

/// S2: any CPU's numbers are seen as of one moment.
fn check_stats(rng: &mut Rng) {
    let stats = if rng.one_in(2) { &STATS } else { &PINNED_STATS };
    for cpu in cpu::online().iter() {
        checked(Invariant::S2);
        let seen = stats.snapshot(cpu);
        let expected = numbers(seen[0]);
        if let Some((seen, expected)) = seen.iter().zip(&expected).find(|(a, b)| a != b) {
            let object = stats.ptr().raw() as u64;
            events::violation(Invariant::S2, cpu.index() as u32, object, *seen, *expected);
        }
    }
}

/// The timer interrupt's share: it goes in where nobody is, and is turned away where somebody is.
pub(super) fn on_interrupt() {
    let pin = preempt::disable();
    if CELL.with_mut(&pin, |inside| inside.add(1, || (), true)).is_ok() {
        book_interrupt(IN_CELL, 1);
    }
    if let Some(mut inside) = LOCK.try_lock() {
        inside.add(1, || (), true);
        book_interrupt(IN_LOCK, 1);
    }
    let masked = irq::disable();
    STATS.update(&masked, numbers(1));
    book_interrupt(IN_STATS, 1);
}
