//! A benchmark in place of workloads: what the operations of percpu-core cost, in ticks of the time
//! stamp counter, each beside the bare instructions and beside a shared `lock xadd`.
//!
//! Rows go to the host as they are measured; it makes a table of them.

mod bare;
mod counters;
mod guards;
mod harness;
mod local;
mod operations;
mod references;
mod team;

use core::sync::atomic::Ordering;

use percpu_guest::abi::{BENCH_ROWS, BenchRow, BenchTarget, Doorbell, EventKind};

use percpu_guest::kernel::arch::doorbell;
use percpu_guest::kernel::cpus::{self, CONTROL_CPU};
use percpu_guest::kernel::{events, sched, shared};

use harness::Bench;

/// Rows under one heading.
struct Family {
    name: &'static str,
    rows: &'static [Row],
}

/// Every row, in the order of the table.
const FAMILIES: &[Family] = &[
    operations::STATICS,
    operations::STRENGTHS,
    guards::GUARDS,
    counters::COUNTERS,
    references::REFERENCES,
    local::LOCAL,
];

/// One thing to measure.
struct Row {
    name: &'static str,
    bare: &'static str,
    target: BenchTarget,
    /// The target's bound, in hundredths.
    bound: u32,
    run: fn(&mut Bench),
}

impl Row {
    /// `run` measures `name` beside the instructions that `bare` names.
    const fn new(name: &'static str, bare: &'static str, run: fn(&mut Bench)) -> Self {
        Self { name, bare, target: BenchTarget::None, bound: 0, run }
    }

    /// The same, with something to reach.
    const fn target(self, target: BenchTarget, bound: u32) -> Self {
        Self { target, bound, ..self }
    }
}

#[used]
// SAFETY: the section holds the one function that starts the image's benchmark.
#[unsafe(link_section = "guest_bench")]
static START: fn() = start;

/// Starts the benchmark.
fn start() {
    sched::spawn_bound(run, CONTROL_CPU);
}

fn run(_cpu: usize) {
    let planned: usize = FAMILIES.iter().map(|family| family.rows.len()).sum();
    assert!(planned <= BENCH_ROWS, "the table has no room for {planned} rows");
    let checked = u32::from(cfg!(debug_assertions));
    shared::bench().debug_assertions.store(checked, Ordering::Relaxed);
    shared::bench().planned.store(planned as u32, Ordering::Release);
    let mut done = 0;
    for family in FAMILIES {
        for row in family.rows {
            let mut bench = Bench::new();
            (row.run)(&mut bench);
            publish(done, family.name, row, &bench);
            done += 1;
        }
    }
    events::emit_and_ring(EventKind::TestDone, [1, 0, 0, 0, 0]);
}

/// Tells the host of the row numbered `number`.
fn publish(number: usize, family: &str, row: &Row, bench: &Bench) {
    let [subject, bare, shared] = bench.times();
    let content = BenchRow {
        family: text(family),
        name: text(row.name),
        bare_name: text(row.bare),
        cpus: bench.cpus(),
        rounds: bench.rounds(),
        target: row.target as u32,
        bound: row.bound,
        subject,
        bare,
        shared,
    };
    // SAFETY: `BenchRow` is a view: plain integers without padding, a multiple of eight bytes long.
    let words: [u64; size_of::<BenchRow>() / 8] = unsafe { core::mem::transmute(content) };
    let table = shared::bench();
    for (slot, word) in table.rows[number].iter().zip(words) {
        slot.store(word, Ordering::Relaxed);
    }
    table.done.store(number as u32 + 1, Ordering::Release);
    doorbell::ring(Doorbell::Event, 0);
}

/// `text`, filled up with zeroes.
fn text<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

/// Has `cpus` CPUs online, or as many as are possible, while it calls `f`.
fn with_online(cpus: u32, f: impl FnOnce()) {
    let boot = shared::boot();
    let cpus = cpus.min(boot.possible);
    for cpu in boot.boot_cpus..cpus {
        cpus::up(cpu).unwrap_or_else(|e| panic!("CPU {cpu} does not come up: {e:?}"));
    }
    f();
    for cpu in boot.boot_cpus..cpus {
        cpus::down(cpu).unwrap_or_else(|e| panic!("CPU {cpu} does not go down: {e:?}"));
    }
}
