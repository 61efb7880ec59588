//! A benchmark in place of workloads: what the operations of percpu-core cost, in ticks of the time
//! stamp counter, each beside the bare instructions, a shared `lock xadd` and a spin lock.
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

use percpu_guest::abi::{
    BENCH_ROWS, BenchAxis, BenchGroup, BenchRow, BenchTarget, Doorbell, EventKind,
};

use percpu_guest::kernel::arch::doorbell;
use percpu_guest::kernel::cpus::{self, CONTROL_CPU};
use percpu_guest::kernel::{events, sched, shared};

use harness::Bench;

/// Rows under one heading.
struct Family {
    name: &'static str,
    rows: &'static [Row],
}

/// Every row of the group [`BenchGroup::Core`], in the order of the table.
const CORE: &[Family] = &[operations::STATICS, operations::STRENGTHS, guards::GUARDS, local::LOCAL];
/// Those of [`BenchGroup::Counter`].
const COUNTER: &[Family] = &[counters::COUNTERS, counters::SUMS, references::REFERENCES];

/// One thing to measure.
struct Row {
    name: &'static str,
    bare: &'static str,
    target: BenchTarget,
    /// The target's bound, in hundredths.
    bound: u32,
    axis: BenchAxis,
    x: u32,
    run: fn(&mut Bench),
}

impl Row {
    /// `run` measures `name` beside the instructions that `bare` names.
    const fn new(name: &'static str, bare: &'static str, run: fn(&mut Bench)) -> Self {
        Self { name, bare, target: BenchTarget::None, bound: 0, axis: BenchAxis::None, x: 1, run }
    }

    /// The same, with something to reach.
    const fn target(self, target: BenchTarget, bound: u32) -> Self {
        Self { target, bound, ..self }
    }

    /// The same, by so many CPUs at the same time.
    const fn at_once(self, cpus: u32) -> Self {
        Self { axis: BenchAxis::AtOnce, x: cpus, ..self }
    }

    /// The same, with so many CPUs online.
    const fn online(self, cpus: u32) -> Self {
        Self { axis: BenchAxis::Online, x: cpus, ..self }
    }

    /// Whether there are CPUs enough.
    fn is_possible(&self) -> bool {
        let boot = shared::boot();
        match self.axis {
            BenchAxis::None => true,
            BenchAxis::AtOnce => self.x <= boot.bench_at_once,
            BenchAxis::Online => self.x <= boot.possible,
        }
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
    let families = match BenchGroup::from_code(shared::boot().bench_group) {
        Some(BenchGroup::Core) => CORE,
        Some(BenchGroup::Counter) => COUNTER,
        None => panic!("the host asks for a group of rows that there is not"),
    };
    let rows = || {
        let all = families.iter().flat_map(|f| f.rows.iter().map(|row| (f.name, row)));
        all.filter(|(_, row)| row.is_possible())
    };
    let planned = rows().count();
    assert!(planned <= BENCH_ROWS, "the table has no room for {planned} rows");
    let checked = u32::from(cfg!(debug_assertions));
    shared::bench().debug_assertions.store(checked, Ordering::Relaxed);
    shared::bench().planned.store(planned as u32, Ordering::Release);
    for (number, (family, row)) in rows().enumerate() {
        let mut bench = Bench::new(row.x);
        (row.run)(&mut bench);
        publish(number, family, row, &bench);
    }
    events::emit_and_ring(EventKind::TestDone, [1, 0, 0, 0, 0]);
}

/// Tells the host of the row numbered `number`.
fn publish(number: usize, family: &str, row: &Row, bench: &Bench) {
    let [subject, bare, shared, locked] = bench.times();
    let content = BenchRow {
        family: text(family),
        name: text(row.name),
        bare_name: text(row.bare),
        cpus: bench.cpus(),
        rounds: bench.rounds(),
        target: row.target as u32,
        bound: row.bound,
        axis: row.axis as u32,
        x: row.x,
        subject,
        bare,
        shared,
        locked,
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
    let up = |cpu| cpus::up(cpu).unwrap_or_else(|e| panic!("CPU {cpu} stays down: {e:?}"));
    let down = |cpu| cpus::down(cpu).unwrap_or_else(|e| panic!("CPU {cpu} stays up: {e:?}"));
    (boot.boot_cpus..cpus).for_each(up);
    (cpus..boot.boot_cpus).for_each(down);
    f();
    (boot.boot_cpus..cpus).for_each(down);
    (cpus..boot.boot_cpus).for_each(up);
}
