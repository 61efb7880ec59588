//! Static variables under migration, from threads and from interrupts at once.

use percpu_core::{irq, percpu, preempt};

use super::{Worker, announce_sum, book_interrupt, slots};
use crate::rng::Rng;

/// Operations of a round between two boundaries.
const ROUND: u32 = 32;

percpu! {
    /// Changed by single instructions from threads and interrupts.
    static ADDED: PerCpu<u64> = 0;
    /// As `ADDED`, with all the other single instructions.
    static MIXED: PerCpu<u64> = 0;
    /// Read, changed and written by threads, preemption off.
    static PINNED: PerCpu<u64> = 0;
    /// Read, changed and written by threads and interrupts, interrupts off.
    static MASKED: PerCpu<u64> = 0;
    /// Changed by compare and exchange from threads and interrupts.
    #[shared_aligned]
    static EXCHANGED: PerCpu<u64> = 0;
}

/// Ledger slots, in the order of the variables.
const ADD: u32 = slots::STATICS;
const MIX: u32 = slots::STATICS + 1;
const PIN: u32 = slots::STATICS + 2;
const MASK: u32 = slots::STATICS + 3;
const EXCHANGE: u32 = slots::STATICS + 4;

/// Announces the variables.
pub(super) fn init() {
    announce_sum(ADDED.ptr().raw(), ADD, 0);
    announce_sum(MIXED.ptr().raw(), MIX, 0);
    announce_sum(PINNED.ptr().raw(), PIN, 0);
    announce_sum(MASKED.ptr().raw(), MASK, 0);
    announce_sum(EXCHANGED.ptr().raw(), EXCHANGE, 0);
}

pub(super) fn run(mut worker: Worker) {
    loop {
        for _ in 0..ROUND {
            let amount = 1 + worker.rng.below(9);
            match worker.rng.below(5) {
                0 => {
                    ADDED.add(amount);
                    worker.book(ADD, amount as i64);
                }
                1 => mix(&mut worker, amount),
                2 => {
                    let pin = preempt::disable();
                    let before = PINNED.read();
                    dawdle(&mut worker.rng);
                    PINNED.write(before.wrapping_add(amount));
                    drop(pin);
                    worker.book(PIN, amount as i64);
                }
                3 => {
                    let masked = irq::disable();
                    let before = MASKED.read();
                    dawdle(&mut worker.rng);
                    MASKED.write(before.wrapping_add(amount));
                    drop(masked);
                    worker.book(MASK, amount as i64);
                }
                _ => {
                    exchange(amount);
                    worker.book(EXCHANGE, amount as i64);
                }
            }
        }
        if !worker.boundary() {
            return;
        }
    }
}

/// Every single-instruction operation but plain `add`.
fn mix(worker: &mut Worker, amount: u64) {
    let change = match worker.rng.below(5) {
        0 => {
            MIXED.sub(amount);
            -(amount as i64)
        }
        1 => {
            MIXED.inc();
            1
        }
        2 => {
            MIXED.dec();
            -1
        }
        3 => {
            MIXED.add_return(amount);
            amount as i64
        }
        // Takes what this CPU has and puts it into the ledger.
        _ => -(MIXED.xchg(0) as i64),
    };
    worker.book(MIX, change);
}

fn exchange(amount: u64) {
    let mut before = EXCHANGED.read();
    while let Err(seen) = EXCHANGED.cmpxchg(before, before.wrapping_add(amount)) {
        before = seen;
    }
}

/// A moment between a read and a write, in which a missing guard would show.
fn dawdle(rng: &mut Rng) {
    for _ in 0..rng.below(16) {
        core::hint::spin_loop();
    }
}

/// The timer interrupt's share.
pub(super) fn on_interrupt() {
    ADDED.add(1);
    book_interrupt(ADD, 1);
    MIXED.add(3);
    book_interrupt(MIX, 3);
    MASKED.write(MASKED.read().wrapping_add(5));
    book_interrupt(MASK, 5);
    exchange(7);
    book_interrupt(EXCHANGE, 7);
}
