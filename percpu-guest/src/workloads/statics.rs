//! Static variables under migration, with interrupts that hit the same variables.
//!
//! Each variable is a conserved sum: what is added to any CPU's copy is entered in the ledger, so an
//! update that was lost, made twice, or made to another CPU's copy while that was changed too is
//! seen from outside (S1). The timer interrupt changes every variable that may be changed by one.
//!
//! `mixed` has the operations, `words` the variables that are no integers, `inside` those in which
//! somebody can be in the middle of something.

use percpu_core::var::{Alignment, PerCpu};
use percpu_core::{irq, percpu, preempt};
use percpu_guest::abi::SumKind;

use super::{parts, slots};
use percpu_guest::kernel::arch::tsc;
use percpu_guest::kernel::rng::Rng;
use percpu_guest::kernel::workload::{Worker, announce_sum, book_interrupt};

mod inside;
mod mixed;
mod words;

use mixed::Amount;

/// Operations of a round between two boundaries.
const ROUND: u32 = super::round(32);

percpu! {
    /// Changed by single instructions from threads and interrupts.
    static ADDED: PerCpu<u64> = 0;
    /// As `ADDED`, by every kind of single instruction, in each width, and in each place.
    static BYTES: PerCpu<u8> = 0;
    static SHORTS: PerCpu<i16> = 0;
    static HALVES: PerCpu<u32> = 0;
    static WORDS: PerCpu<u64> = 0;
    #[shared_aligned]
    static ON_A_LINE: PerCpu<i64> = 0;
    #[page_aligned]
    static ON_A_PAGE: PerCpu<usize> = 0;
    #[hot]
    static HOT: PerCpu<u64> = 0;
    #[read_mostly]
    static READ_MOSTLY: PerCpu<u32> = 0;
    /// Changed by threads alone, by the operations that rely on a guard.
    static GUARDED: PerCpu<u64> = 0;
    /// Changed by threads and interrupts, by the operations that rely on nothing, interrupts off.
    static UNGUARDED: PerCpu<u32> = 0;
    /// Bits that are set and cleared beside others that count.
    static FLAGS: PerCpu<u32> = 0;
    static BYTE_FLAGS: PerCpu<u8> = 0;
    /// Read, changed and written by threads, preemption off.
    static PINNED: PerCpu<u64> = 0;
    /// Read, changed and written by threads and interrupts, interrupts off.
    static MASKED: PerCpu<u64> = 0;
    /// Changed by compare and exchange from threads and interrupts.
    #[shared_aligned]
    static EXCHANGED: PerCpu<u64> = 0;
}

/// Ledger slots.
const ADD: u32 = slots::STATICS;
const PIN: u32 = slots::STATICS + 1;
const MASK: u32 = slots::STATICS + 2;
const EXCHANGE: u32 = slots::STATICS + 3;
const BYTE: u32 = slots::STATICS + 4;
const SHORT: u32 = slots::STATICS + 5;
const HALF: u32 = slots::STATICS + 6;
const WORD: u32 = slots::STATICS + 7;
const LINE: u32 = slots::STATICS + 8;
const PAGE: u32 = slots::STATICS + 9;
const FLAG: u32 = slots::STATICS + 10;
const BYTE_FLAG: u32 = slots::STATICS + 11;
const HOTS: u32 = slots::STATICS + 12;
const MOSTLY: u32 = slots::STATICS + 13;
const GUARD: u32 = slots::STATICS + 14;
const NO_GUARD: u32 = slots::STATICS + 15;
/// Of the words that are no integers, and of protected data.
const WORDS_FROM: u32 = slots::STATICS + 16;
const INSIDE_FROM: u32 = slots::STATICS + 20;

/// Announces the variables.
fn init() {
    announce_sum(SumKind::Word, ADDED.ptr().raw(), ADD, 0);
    announce_sum(SumKind::Word, PINNED.ptr().raw(), PIN, 0);
    announce_sum(SumKind::Word, MASKED.ptr().raw(), MASK, 0);
    announce_sum(SumKind::Word, EXCHANGED.ptr().raw(), EXCHANGE, 0);
    announce_sum(SumKind::Byte, BYTES.ptr().raw(), BYTE, 0);
    announce_sum(SumKind::Quarter, SHORTS.ptr().raw(), SHORT, 0);
    announce_sum(SumKind::Half, HALVES.ptr().raw(), HALF, 0);
    announce_sum(SumKind::Word, WORDS.ptr().raw(), WORD, 0);
    announce_sum(SumKind::Word, ON_A_LINE.ptr().raw(), LINE, 0);
    announce_sum(SumKind::Word, ON_A_PAGE.ptr().raw(), PAGE, 0);
    announce_sum(SumKind::Word, HOT.ptr().raw(), HOTS, 0);
    announce_sum(SumKind::Half, READ_MOSTLY.ptr().raw(), MOSTLY, 0);
    announce_sum(SumKind::Word, GUARDED.ptr().raw(), GUARD, 0);
    announce_sum(SumKind::Half, UNGUARDED.ptr().raw(), NO_GUARD, 0);
    announce_sum(SumKind::Half, FLAGS.ptr().raw(), FLAG, 0);
    announce_sum(SumKind::Byte, BYTE_FLAGS.ptr().raw(), BYTE_FLAG, 0);
    words::init();
    inside::init();
}

#[percpu_guest::workload(name = "statics", init = init, interrupt = on_interrupt)]
fn run(mut worker: Worker) {
    loop {
        for _ in 0..ROUND {
            let amount = 1 + worker.rng.below(9);
            match worker.rng.below(22) {
                0 => {
                    ADDED.add(amount);
                    worker.book(ADD, amount as i64);
                }
                1 => {
                    let pin = preempt::disable();
                    let before = PINNED.read();
                    dawdle(&mut worker.rng);
                    PINNED.write(before.wrapping_add(amount));
                    drop(pin);
                    worker.book(PIN, amount as i64);
                }
                2 => {
                    let masked = irq::disable();
                    let before = MASKED.read();
                    dawdle(&mut worker.rng);
                    MASKED.write(before.wrapping_add(amount));
                    drop(masked);
                    worker.book(MASK, amount as i64);
                }
                3 => {
                    exchange(amount);
                    worker.book(EXCHANGE, amount as i64);
                }
                4 => mix(&mut worker, &BYTES, BYTE, amount),
                5 => mix(&mut worker, &SHORTS, SHORT, amount),
                6 => mix(&mut worker, &HALVES, HALF, amount),
                7 => mix(&mut worker, &WORDS, WORD, amount),
                8 => mix(&mut worker, &ON_A_LINE, LINE, amount),
                9 => mix(&mut worker, &ON_A_PAGE, PAGE, amount),
                10 => worker.book(FLAG, mixed::flag(&FLAGS)),
                11 => worker.book(BYTE_FLAG, mixed::flag(&BYTE_FLAGS)),
                12 => mix(&mut worker, &HOT, HOTS, amount),
                13 => mix(&mut worker, &READ_MOSTLY, MOSTLY, amount),
                14 => {
                    let pin = preempt::disable();
                    let random = worker.rng.next_u64();
                    let variable =
                        if random >> 63 == 0 { GUARDED.pinned(&pin) } else { GUARDED.asserted() };
                    let change = mixed::change_here(&variable, random, amount);
                    drop(pin);
                    worker.book(GUARD, change);
                }
                15 => {
                    let masked = irq::disable();
                    let random = worker.rng.next_u64();
                    let change = mixed::change_here(&UNGUARDED.unguarded(), random, amount);
                    drop(masked);
                    worker.book(NO_GUARD, change);
                }
                16 | 17 => words::work(&mut worker, amount),
                _ => inside::work(&mut worker, amount),
            }
        }
        if !worker.boundary() {
            return;
        }
    }
}

fn mix<T: Amount, A: Alignment>(
    worker: &mut Worker,
    variable: &PerCpu<T, A>,
    slot: u32,
    amount: u64,
) {
    let change = mixed::change(variable, worker.rng.next_u64(), amount);
    worker.book(slot, change);
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
fn on_interrupt() {
    let now = tsc::now();
    for part in parts(16, now) {
        // Of each part's own.
        let random = now >> part;
        match part {
            0 => {
                ADDED.add(1);
                book_interrupt(ADD, 1);
            }
            1 => {
                MASKED.write(MASKED.read().wrapping_add(5));
                book_interrupt(MASK, 5);
            }
            2 => {
                exchange(7);
                book_interrupt(EXCHANGE, 7);
            }
            3 => mix_in_interrupt(&BYTES, BYTE, random),
            4 => mix_in_interrupt(&SHORTS, SHORT, random),
            5 => mix_in_interrupt(&HALVES, HALF, random),
            6 => mix_in_interrupt(&WORDS, WORD, random),
            7 => mix_in_interrupt(&ON_A_LINE, LINE, random),
            8 => mix_in_interrupt(&ON_A_PAGE, PAGE, random),
            9 => book_interrupt(FLAG, mixed::flag_in_interrupt(&FLAGS)),
            10 => book_interrupt(BYTE_FLAG, mixed::flag_in_interrupt(&BYTE_FLAGS)),
            11 => mix_in_interrupt(&HOT, HOTS, random),
            12 => mix_in_interrupt(&READ_MOSTLY, MOSTLY, random),
            // The handler stays where it is, and nothing comes in between.
            13 => book_interrupt(NO_GUARD, mixed::change_here(&UNGUARDED.unguarded(), random, 3)),
            14 => words::on_interrupt(),
            _ => inside::on_interrupt(),
        }
    }
}

fn mix_in_interrupt<T: Amount, A: Alignment>(variable: &PerCpu<T, A>, slot: u32, random: u64) {
    book_interrupt(slot, mixed::change(variable, random, 3));
}
