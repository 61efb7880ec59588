//! The `this_cpu` operations on a static variable.

use percpu_core::alloc::PerCpuBox;
use percpu_core::var::DoubleWord;
use percpu_core::{cpu, percpu, preempt};
use percpu_guest::abi::BenchTarget;

use super::{Bench, Family, Row, bare, harness};

percpu! {
    /// The subject of all of them.
    #[shared_aligned]
    static WORD: PerCpu<u64> = 0;
    #[shared_aligned]
    static HALF: PerCpu<u32> = 0;
    #[shared_aligned]
    static BYTE: PerCpu<u8> = 0;
    /// Stays 0, for comparisons that succeed.
    #[shared_aligned]
    static ZERO: PerCpu<u64> = 0;
    /// As `ZERO`.
    #[shared_aligned]
    static PAIR: PerCpu<DoubleWord> = DoubleWord { low: 0, high: 0 };
}

/// One instruction each, safe against interrupts and migration.
pub const STATICS: Family = Family {
    name: "this_cpu",
    rows: &[
        Row::new("PerCpu::<u64>::read", "mov r, gs:[r]", |b| {
            b.alone(|| bare::sink(WORD.read()), bare::read)
        }),
        Row::new("PerCpu::<u64>::write", "mov gs:[r], r", |b| {
            b.alone(|| WORD.write(1), bare::write)
        }),
        Row::new("PerCpu::<u64>::add", "add gs:[r], r", |b| b.alone(|| WORD.add(1), bare::add))
            .target(BenchTarget::TimesBare, 110),
        Row::new("PerCpu::<u32>::add", "add gs:[r], r", |b| {
            b.alone(|| HALF.add(1), bare::add_half)
        })
        .target(BenchTarget::TimesBare, 110),
        Row::new("PerCpu::<u8>::add", "add gs:[r], r", |b| b.alone(|| BYTE.add(1), bare::add_byte))
            .target(BenchTarget::TimesBare, 110),
        Row::new("PerCpu::<u64>::inc", "inc gs:[r]", |b| b.alone(|| WORD.inc(), bare::inc)),
        Row::new("PerCpu::<u64>::and", "and gs:[r], r", |b| {
            b.alone(|| WORD.and(u64::MAX), bare::and)
        }),
        Row::new("PerCpu::<u64>::or", "or gs:[r], r", |b| b.alone(|| WORD.or(0), bare::or)),
        Row::new("PerCpu::<u64>::add_return", "xadd gs:[r], r", |b| {
            b.alone(|| bare::sink(WORD.add_return(1)), bare::xadd)
        }),
        Row::new("PerCpu::<u64>::xchg", "mov r, gs:[r]; cmpxchg", |b| {
            b.alone(|| bare::sink(WORD.xchg(1)), bare::read_cmpxchg)
        }),
        Row::new("PerCpu::<u64>::cmpxchg", "cmpxchg gs:[r], r", |b| {
            b.alone(|| bare::sink(ZERO.cmpxchg(0, 0).is_ok().into()), bare::cmpxchg)
        }),
    ],
};

/// The same on several CPUs at once, with less or more to prove, and on other words.
pub const STRENGTHS: Family = Family {
    name: "this_cpu, other ways",
    rows: &[
        Row::new("PerCpu::<u64>::add", "add gs:[r], r", at_once)
            .at_once(2)
            .target(BenchTarget::TimesBare, 110),
        Row::new("PerCpu::<u64>::add", "add gs:[r], r", at_once)
            .at_once(4)
            .target(BenchTarget::TimesBare, 110),
        Row::new("PerCpu::<u64>::add", "add gs:[r], r", at_once)
            .at_once(8)
            .target(BenchTarget::TimesBare, 110),
        Row::new("pinned(&guard).add", "add gs:[r], r", |b| {
            let pin = preempt::disable();
            b.alone(|| WORD.pinned(&pin).add(1), bare::add);
        })
        .target(BenchTarget::TimesBare, 110),
        Row::new("asserted().add", "add gs:[r], r", |b| {
            let _pin = preempt::disable();
            b.alone(|| WORD.asserted().add(1), bare::add);
        })
        .target(BenchTarget::TimesBare, 110),
        Row::new("unguarded().add", "add gs:[r], r", |b| {
            b.alone(|| WORD.unguarded().add(1), bare::add)
        })
        .target(BenchTarget::TimesBare, 110),
        Row::new("unguarded().xchg", "mov r, gs:[r]; cmpxchg", |b| {
            b.alone(|| bare::sink(WORD.unguarded().xchg(1)), bare::read_cmpxchg)
        }),
        Row::new("PerCpu::<DoubleWord>::cmpxchg", "cmpxchg16b gs:[r]", double_word),
        Row::new("PerCpuBox::<u64>::add", "add gs:[r], r", dynamic),
        Row::new("PerCpu::<u64>::read_on", "mov r, gs:[r]", read_on),
    ],
};

/// Where ring 0 is emulated the instruction is not.
fn double_word(bench: &mut Bench) {
    if !harness::is_emulated() {
        let zero = DoubleWord { low: 0, high: 0 };
        bench.alone(|| bare::sink(PAIR.cmpxchg(zero, zero).is_ok().into()), bare::cmpxchg16b);
    }
}

fn dynamic(bench: &mut Bench) {
    let word = PerCpuBox::<u64>::try_new_zeroed().expect("memory for a word");
    bench.alone(|| word.add(1), bare::add);
}

fn read_on(bench: &mut Bench) {
    let cpu = cpu::current();
    bench.alone(|| bare::sink(WORD.read_on(cpu)), bare::read);
}

fn at_once(bench: &mut Bench) {
    bench.together(|| WORD.add(1), bare::add);
}
