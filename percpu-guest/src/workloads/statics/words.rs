//! Words that are no integers: a pointer, and two words that change as one.

use percpu_core::var::{DoubleWord, RawPtr};
use percpu_core::{cpu, percpu};
use percpu_guest::abi::{Invariant, PAIR_FACTOR, SumKind};

use super::WORDS_FROM;
use percpu_guest::kernel::workload::{Worker, announce_sum, book_interrupt, checked};
use percpu_guest::kernel::{events, shared};

percpu! {
    /// An address that moves on, nothing is behind it.
    static POINTER: PerCpu<RawPtr<u8>> = RawPtr::null();
    /// `high` is [`PAIR_FACTOR`] times `low`.
    static PAIR: PerCpu<DoubleWord> = DoubleWord { low: 0, high: 0 };
}

const MOVED: u32 = WORDS_FROM;
const LOW: u32 = WORDS_FROM + 1;
const HIGH: u32 = WORDS_FROM + 2;

pub(super) fn init() {
    announce_sum(SumKind::Word, POINTER.ptr().raw(), MOVED, 0);
    announce_sum(SumKind::Word, PAIR.ptr().raw(), LOW, 0);
    announce_sum(SumKind::Word, PAIR.ptr().raw() + 8, HIGH, 0);
}

/// Moves the pointer on, or takes it away.
fn shift(random: u64, amount: usize) -> i64 {
    let mut before = POINTER.read();
    match random % 3 {
        0 => return -(POINTER.xchg(RawPtr::null()).get().addr() as i64),
        1 => loop {
            let new = RawPtr::new(before.get().wrapping_byte_add(amount));
            match POINTER.cmpxchg(before, new) {
                Ok(_) => break,
                Err(seen) => before = seen,
            }
        },
        _ => loop {
            let new = RawPtr::new(before.get().wrapping_byte_add(amount));
            if POINTER.try_cmpxchg(&mut before, new) {
                break;
            }
        },
    }
    amount as i64
}

/// Changes both words, or looks at them. What was added to the first.
fn change_pair(random: u64, amount: u64, in_interrupt: bool) -> u64 {
    let mut before = PAIR.read();
    check_pair(before, in_interrupt);
    match random % 4 {
        0 => {
            let taken = PAIR.xchg(DoubleWord { low: 0, high: 0 });
            check_pair(taken, in_interrupt);
            taken.low.wrapping_neg()
        }
        1 => loop {
            match PAIR.cmpxchg(before, moved(before, amount)) {
                Ok(_) => break amount,
                Err(seen) => {
                    check_pair(seen, in_interrupt);
                    before = seen;
                }
            }
        },
        _ => loop {
            let new = moved(before, amount);
            if PAIR.try_cmpxchg(&mut before, new) {
                break amount;
            }
            check_pair(before, in_interrupt);
        },
    }
}

fn moved(pair: DoubleWord, amount: u64) -> DoubleWord {
    let more = amount.wrapping_mul(PAIR_FACTOR);
    DoubleWord { low: pair.low.wrapping_add(amount), high: pair.high.wrapping_add(more) }
}

/// S2: both are of one moment.
fn check_pair(pair: DoubleWord, in_interrupt: bool) {
    checked(Invariant::S2);
    let expected = pair.low.wrapping_mul(PAIR_FACTOR);
    if pair.high != expected {
        let report = if in_interrupt { events::violation_in_interrupt } else { events::violation };
        let words = PAIR.ptr().raw() as u64;
        report(Invariant::S2, cpu::this_cpu_raw(), words, pair.high, expected);
    }
}

pub(super) fn work(worker: &mut Worker, amount: u64) {
    let random = worker.rng.next_u64();
    if worker.rng.one_in(2) || !pairs_work() {
        worker.book(MOVED, shift(random, amount as usize));
    } else {
        let low = change_pair(random, amount, false);
        worker.book(LOW, low as i64);
        worker.book(HIGH, low.wrapping_mul(PAIR_FACTOR) as i64);
    }
}

pub(super) fn on_interrupt() {
    let random = percpu_guest::kernel::arch::tsc::now();
    book_interrupt(MOVED, shift(random, 5));
    if pairs_work() {
        let low = change_pair(random >> 2, 3, true);
        book_interrupt(LOW, low as i64);
        book_interrupt(HIGH, low.wrapping_mul(PAIR_FACTOR) as i64);
    }
}

/// Whether there is an instruction for two words: KVM's emulator has none.
fn pairs_work() -> bool {
    shared::boot().emulated == 0
}
