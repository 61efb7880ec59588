//! `cargo bench -p percpu-core`: the allocator under criterion, beside a baseline.
//!
//! For whoever changes the allocator: criterion compares with the run before. Pick a group by name,
//! as in `cargo bench -p percpu-core -- trace`. `cargo xtask bench alloc` prints one table.

mod load;

use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};

use load::Load;
use load::baseline::Baseline;
use load::subject::{Percpu, Ready, Subject, on_threads};

const CPUS: u32 = 8;
const MANY_CPUS: u32 = 64;
const OPS: usize = 10_000;
const FILL: usize = 200_000;

/// Measures `load` on both subjects.
fn both(group: &mut BenchmarkGroup<'_, WallTime>, load: &Load, cpus: u32) {
    group.throughput(Throughput::Elements(load.ops() as u64));
    one::<Percpu>(group, load, cpus);
    one::<Baseline>(group, load, cpus);
}

fn one<S: Subject>(group: &mut BenchmarkGroup<'_, WallTime>, load: &Load, cpus: u32) {
    group.bench_function(BenchmarkId::new(S::NAME, format!("{}, {cpus} CPUs", load.name)), |b| {
        if load.repeats {
            let mut ready = Ready::<S>::new(load, cpus);
            b.iter(|| ready.run(load));
        } else {
            let run = |mut ready: Ready<S>| {
                ready.run(load);
                ready
            };
            b.iter_batched(|| Ready::new(load, cpus), run, BatchSize::PerIteration);
        }
    });
}

/// Measures loads on both subjects, as a group.
fn group(c: &mut Criterion, name: &str, loads: impl IntoIterator<Item = (Load, u32)>) {
    let mut group = c.benchmark_group(name);
    group.sample_size(20);
    for (load, cpus) in loads {
        both(&mut group, &load, cpus);
    }
    group.finish();
}

fn trace(c: &mut Criterion) {
    group(c, "trace", [CPUS, MANY_CPUS].map(|cpus| (Load::trace(), cpus)));
}

fn one_size(c: &mut Criterion) {
    let few = |cpus| (Load::fixed(8, 1_000, OPS), cpus);
    let loads = [few(CPUS), (Load::fixed(8, 100_000, OPS), CPUS), few(MANY_CPUS)];
    group(c, "one size", loads);
}

fn mixed_sizes(c: &mut Criterion) {
    let mixed = |live, cpus| (Load::mixed(live, OPS), cpus);
    let at_many = mixed(10_000, MANY_CPUS);
    let loads = [mixed(1_000, CPUS), mixed(10_000, CPUS), mixed(100_000, CPUS), at_many];
    group(c, "mixed sizes", loads);
}

fn fill_and_free(c: &mut Criterion) {
    group(c, "fill and free", [(Load::fill(FILL), CPUS), (Load::drain(FILL), CPUS)]);
}

fn fragments(c: &mut Criterion) {
    group(c, "fragments", [4, 8].map(|size| (Load::holes(size, OPS), CPUS)));
}

fn chunks(c: &mut Criterion) {
    group(c, "chunks", [10, 100, 1_000].map(|chunks| (Load::chunks(chunks, OPS), CPUS)));
}

fn threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("threads");
    group.sample_size(20);
    for load in [Load::fixed(8, 1_000, OPS), Load::mixed(1_000, OPS)] {
        for count in [1, 2] {
            group.throughput(Throughput::Elements((count * load.ops()) as u64));
            at_once::<Percpu>(&mut group, &load, count);
            at_once::<Baseline>(&mut group, &load, count);
        }
    }
    group.finish();
}

/// Measures the time in which each of `count` threads does the whole load once.
fn at_once<S: Subject>(group: &mut BenchmarkGroup<'_, WallTime>, load: &Load, count: usize) {
    let name = format!("{}, threads: {count}", load.name);
    group.bench_function(BenchmarkId::new(S::NAME, name), |b| {
        b.iter_custom(|times| {
            let subject = S::new(CPUS, load.shape);
            on_threads(&subject, load, count, times)
        });
    });
}

criterion_group!(benches, trace, one_size, mixed_sizes, fill_and_free, fragments, chunks, threads);
criterion_main!(benches);
