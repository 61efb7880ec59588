//! Counters.

use percpu_core::counter::{PercpuCounter, v26};
use percpu_guest::abi::{BenchTarget, MAX_CPUS};

use super::{Bench, Family, Row, bare, with_online};

/// CPUs that `sum` is measured over: as many as the bare loads read.
const SUMMED: u32 = 8;

/// The counter of Linux 2.6, which is a static.
static OLD: v26::Counter<MAX_CPUS> = v26::Counter::new();

/// `percpu_counter` and its relatives.
pub const COUNTERS: Family = Family {
    name: "counters",
    rows: &[
        Row::new("PercpuCounter::add", "add gs:[r], r", add).target(BenchTarget::Nanoseconds, 280),
        Row::new("PercpuCounter::add, two CPUs", "add gs:[r], r", add_on_two)
            .target(BenchTarget::PartOfShared, 1000),
        Row::new("PercpuCounter::add_local", "add gs:[r], r", add_local),
        Row::new("PercpuCounter::read", "mov r, gs:[r]", read),
        Row::new("PercpuCounter::sum, 8 CPUs online", "8 x mov r, [m]", sum)
            .target(BenchTarget::Nanoseconds, 1000),
        Row::new("v26::Counter::add", "add gs:[r], r", |b| b.alone(|| OLD.add(1), bare::add)),
    ],
};

fn counter() -> PercpuCounter {
    PercpuCounter::new(0).expect("memory for a counter")
}

fn add(bench: &mut Bench) {
    let counter = counter();
    bench.alone(|| counter.add(1), bare::add);
}

fn add_on_two(bench: &mut Bench) {
    let counter = counter();
    bench.together(2, || counter.add(1), bare::add);
}

fn add_local(bench: &mut Bench) {
    let counter = counter();
    bench.alone(|| counter.add_local(1), bare::add);
}

fn read(bench: &mut Bench) {
    let counter = counter();
    bench.alone(|| bare::sink(counter.read() as u64), bare::read);
}

fn sum(bench: &mut Bench) {
    let counter = counter();
    with_online(SUMMED, || bench.alone(|| bare::sink(counter.sum() as u64), bare::eight_loads));
}
