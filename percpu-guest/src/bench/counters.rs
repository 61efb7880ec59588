//! Counters.

use percpu_core::counter::{HierarchicalCounter, LazyCounter, PercpuCounter, v26};
use percpu_guest::abi::{BenchTarget, MAX_CPUS};

use super::harness::Variant;
use super::team::Team;
use super::{Bench, Family, Row, bare, with_online};
use percpu_guest::kernel::arch::tsc;
use percpu_guest::kernel::shared;

/// CPUs that `sum` is measured over: as many as the bare loads read.
const SUMMED: u32 = 8;

/// How far off a read of the hierarchical counter may be: as far as one of `PercpuCounter` with as
/// many CPUs.
const MAX_ERROR: u64 = 32 * SUMMED as u64;

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
        Row::new("LazyCounter::add, one word", "add gs:[r], r", lazy),
        Row::new("LazyCounter::add, per CPU", "add gs:[r], r", lazy_per_cpu),
        Row::new("HierarchicalCounter::add", "add gs:[r], r", hierarchical),
        Row::new("HierarchicalCounter::add, two CPUs", "add gs:[r], r", hierarchical_on_two),
        Row::new("HierarchicalCounter::read", "mov r, gs:[r]", hierarchical_read),
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

fn lazy(bench: &mut Bench) {
    let counter = LazyCounter::new(0);
    bench.alone(|| counter.add(1), bare::add);
}

/// One for which two CPUs have contended. Where they do not do so within some seconds, nothing is
/// measured.
fn lazy_per_cpu(bench: &mut Bench) {
    const PATIENCE_NS: u64 = 20_000_000_000;
    let counter = LazyCounter::new(0);
    let add = || counter.add(1);
    with_online(2, || {
        let team = Team::start(2.min(shared::boot().possible), &add, &add);
        team.order(Variant::Subject);
        let until = tsc::now_ns() + PATIENCE_NS;
        while counter.parts().is_none() && tsc::now_ns() < until {
            add();
        }
        drop(team);
        if counter.parts().is_some() {
            bench.alone(add, bare::add);
        }
    });
}

fn hierarchy() -> HierarchicalCounter {
    HierarchicalCounter::new(0, MAX_ERROR).expect("memory for a counter")
}

fn hierarchical(bench: &mut Bench) {
    let counter = hierarchy();
    bench.alone(|| counter.add(1), bare::add);
}

fn hierarchical_on_two(bench: &mut Bench) {
    let counter = hierarchy();
    bench.together(2, || counter.add(1), bare::add);
}

fn hierarchical_read(bench: &mut Bench) {
    let counter = hierarchy();
    bench.alone(|| bare::sink(counter.read() as u64), bare::read);
}
