//! `cargo bench -p percpu-core --bench counter`: the counters under criterion, beside one atomic and
//! the counter of Linux 2.6.
//!
//! Each CPU is a thread that is a CPU of the feature `host`; an operation on per-CPU data looks
//! first whether the thread is one, which a kernel's does not. `cargo xtask bench core` measures
//! without it.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use percpu_core::counter::{Count, HierarchicalCounter, LazyCounter, PercpuCounter, v26};
use percpu_core::cpu::CpuId;
use percpu_core::host;

const CPUS: usize = 8;

/// What every kernel has.
struct Atomic(AtomicI64);

impl Count for Atomic {
    #[inline]
    fn add(&self, amount: i64) {
        self.0.fetch_add(amount, Relaxed);
    }

    #[inline]
    fn read(&self) -> i64 {
        self.0.load(Relaxed)
    }

    #[inline]
    fn sum(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// All counters, by what they are called here.
trait Bench {
    fn bench<C: Count>(&mut self, name: &str, counter: C);

    fn all(&mut self) {
        self.bench("atomic", Atomic(AtomicI64::new(0)));
        self.bench("Linux 2.6", v26::Counter::<CPUS>::new());
        self.bench("percpu", PercpuCounter::new(0).unwrap());
        self.bench("lazy, one word", LazyCounter::new(0));
        self.bench("lazy, per CPU", upgraded());
        self.bench("hierarchical", HierarchicalCounter::new(0, 1000).unwrap());
    }
}

/// A lazy counter that is one word no more.
fn upgraded() -> LazyCounter {
    let counter = LazyCounter::new(0);
    counter.make_per_cpu().unwrap();
    counter
}

/// One CPU adds.
struct Add<'a>(&'a mut Criterion);

impl Bench for Add<'_> {
    fn bench<C: Count>(&mut self, name: &str, counter: C) {
        self.0.benchmark_group("add").bench_function(name, |b| {
            let _cpu = host::enter_any().unwrap();
            b.iter(|| black_box(&counter).add(black_box(1)));
        });
    }
}

/// As many CPUs as the machine has add at the same time.
struct AddAtOnce<'a>(&'a mut Criterion);

impl Bench for AddAtOnce<'_> {
    fn bench<C: Count>(&mut self, name: &str, counter: C) {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(CPUS);
        let mut group = self.0.benchmark_group(format!("add on {threads} CPUs at once"));
        group.bench_function(name, |b| {
            b.iter_custom(|adds| {
                on_threads(threads, || {
                    (0..adds).for_each(|_| black_box(&counter).add(black_box(1)));
                })
            });
        });
    }
}

/// How long the slowest of `threads` CPUs takes for `work`.
fn on_threads(threads: usize, work: impl Fn() + Sync) -> Duration {
    let start = Barrier::new(threads);
    let run = |n| {
        let _cpu = host::enter_when_free(CpuId::new(n).unwrap()).unwrap();
        start.wait();
        let begin = Instant::now();
        work();
        begin.elapsed()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|n| {
                let run = &run;
                scope.spawn(move || run(n))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
    })
}

/// One CPU reads what all have counted, exactly.
struct Sum<'a>(&'a mut Criterion);

impl Bench for Sum<'_> {
    fn bench<C: Count>(&mut self, name: &str, counter: C) {
        host::on_each_cpu(|_| counter.add(3));
        let mut group = self.0.benchmark_group(format!("sum of {CPUS} CPUs"));
        group.bench_function(name, |b| b.iter(|| black_box(black_box(&counter).sum())));
    }
}

/// One CPU reads what is cheap to read.
struct Read<'a>(&'a mut Criterion);

impl Bench for Read<'_> {
    fn bench<C: Count>(&mut self, name: &str, counter: C) {
        let mut group = self.0.benchmark_group("read");
        group.bench_function(name, |b| b.iter(|| black_box(black_box(&counter).read())));
    }
}

fn counters(c: &mut Criterion) {
    host::boot(CPUS).unwrap();
    Add(c).all();
    AddAtOnce(c).all();
    Sum(c).all();
    Read(c).all();
}

criterion_group!(benches, counters);
criterion_main!(benches);
