//! The `this_cpu` operations on a static variable.

use percpu_core::percpu;
use percpu_guest::abi::BenchTarget;

use super::{Bench, Family, Row, bare};

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

/// The same through a pointer, and on several CPUs at once.
pub const STRENGTHS: Family = Family {
    name: "this_cpu, other ways",
    rows: &[Row::new("PerCpu::<u64>::add, two CPUs", "add gs:[r], r", two_cpus)
        .target(BenchTarget::TimesBare, 110)],
};

fn two_cpus(bench: &mut Bench) {
    bench.together(2, || WORD.add(1), bare::add);
}
