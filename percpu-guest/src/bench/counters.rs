//! Counters.

use percpu_core::counter::{HierarchicalCounter, LazyCounter, PercpuCounter, v26};
use percpu_guest::abi::{BenchTarget, MAX_CPUS};

use super::harness::Variant;
use super::team::Team;
use super::{Bench, Family, Row, bare, with_online};
use percpu_guest::kernel::arch::tsc;
use percpu_guest::kernel::shared;

/// How far off a read of the hierarchical counter may be for each CPU that can be: as far as one of
/// `PercpuCounter`.
const MAX_ERROR: u64 = 32;

/// The counter of Linux 2.6, which is a static.
static OLD: v26::Counter<MAX_CPUS> = v26::Counter::new();

/// `percpu_counter` and its relatives.
pub const COUNTERS: Family = Family {
    name: "counters",
    rows: &[
        Row::new("PercpuCounter::add", ADD, add).target(BenchTarget::Nanoseconds, 280),
        Row::new("PercpuCounter::add", ADD, add_at_once)
            .at_once(2)
            .target(BenchTarget::PartOfShared, 1000),
        Row::new("PercpuCounter::add", ADD, add_at_once)
            .at_once(4)
            .target(BenchTarget::PartOfShared, 1000),
        Row::new("PercpuCounter::add", ADD, add_at_once)
            .at_once(8)
            .target(BenchTarget::PartOfShared, 1000),
        Row::new("PercpuCounter::add_batch(1, 1024)", ADD, add_batch),
        Row::new("PercpuCounter::add_local", ADD, add_local),
        Row::new("PercpuCounter::read", "mov r, gs:[r]", read),
        Row::new("PercpuCounter::limited_add, far", ADD, limited_far),
        Row::new("limited_add and sub, near the limit", "2 x add gs:[r], r", limited_near),
        Row::new("PercpuCounter::compare, far", "mov r, gs:[r]", compare_far),
        Row::new("PercpuCounter::compare, near", "mov r, gs:[r]", compare_near),
        Row::new("LazyCounter::add, one word", ADD, lazy),
        Row::new("LazyCounter::add, per CPU", ADD, lazy_per_cpu),
        Row::new("HierarchicalCounter::add", ADD, hierarchical),
        Row::new("HierarchicalCounter::add", ADD, hierarchical_at_once).at_once(2),
        Row::new("HierarchicalCounter::read", "mov r, gs:[r]", hierarchical_read),
        Row::new("v26::Counter::add", ADD, |b| b.alone(|| OLD.add(1), bare::add)),
    ],
};

/// What it costs to look at every CPU.
pub const SUMS: Family = Family {
    name: "sums",
    rows: &[
        Row::new("PercpuCounter::sum", LOADS, sum).online(1),
        Row::new("PercpuCounter::sum", LOADS, sum).online(2),
        Row::new("PercpuCounter::sum", LOADS, sum).online(4),
        Row::new("PercpuCounter::sum", LOADS, sum).online(8).target(BenchTarget::Nanoseconds, 1000),
        Row::new("PercpuCounter::sum", LOADS, sum).online(16),
        Row::new("PercpuCounter::sum", LOADS, sum).online(32),
        Row::new("PercpuCounter::sum", LOADS, sum).online(64),
    ],
};

const ADD: &str = "add gs:[r], r";
const LOADS: &str = "mov r, [m] a CPU";

fn counter() -> PercpuCounter {
    PercpuCounter::new(0).expect("memory for a counter")
}

fn add(bench: &mut Bench) {
    let counter = counter();
    bench.alone(|| counter.add(1), bare::add);
}

fn add_at_once(bench: &mut Bench) {
    let counter = counter();
    bench.together(|| counter.add(1), bare::add);
}

fn add_batch(bench: &mut Bench) {
    let counter = counter();
    bench.alone(|| counter.add_batch(1, 1024), bare::add);
}

fn add_local(bench: &mut Bench) {
    let counter = counter();
    bench.alone(|| counter.add_local(1), bare::add);
}

fn read(bench: &mut Bench) {
    let counter = counter();
    bench.alone(|| bare::sink(counter.read() as u64), bare::read);
}

fn limited_far(bench: &mut Bench) {
    let counter = counter();
    bench.alone(|| bare::sink(counter.limited_add(i64::MAX, 1).into()), bare::add);
}

/// One so near that each addition is decided by the exact sum.
fn limited_near(bench: &mut Bench) {
    let counter = counter();
    let up_and_down = || {
        bare::sink(counter.limited_add(1, 1).into());
        counter.sub(1);
    };
    bench.alone(up_and_down, bare::two_adds);
}

fn compare_far(bench: &mut Bench) {
    let counter = counter();
    bench.alone(|| bare::sink(counter.compare(i64::MAX) as u64), bare::read);
}

fn compare_near(bench: &mut Bench) {
    let counter = counter();
    bench.alone(|| bare::sink(counter.compare(0) as u64), bare::read);
}

fn sum(bench: &mut Bench) {
    let counter = counter();
    let online = bench.x();
    with_online(online, || {
        bench.alone(|| bare::sink(counter.sum() as u64), || bare::loads(online));
    });
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
    let max_error = MAX_ERROR * u64::from(shared::boot().possible);
    HierarchicalCounter::new(0, max_error).expect("memory for a counter")
}

fn hierarchical(bench: &mut Bench) {
    let counter = hierarchy();
    bench.alone(|| counter.add(1), bare::add);
}

fn hierarchical_at_once(bench: &mut Bench) {
    let counter = hierarchy();
    bench.together(|| counter.add(1), bare::add);
}

fn hierarchical_read(bench: &mut Bench) {
    let counter = hierarchy();
    bench.alone(|| bare::sink(counter.read() as u64), bare::read);
}
