//! `cargo xtask bench alloc`: the allocator's speed and what it needs of memory, beside a baseline.
//! It can be run by itself, too.

use std::path::PathBuf;
use std::time::Instant;

use crate::load::Load;
use crate::load::baseline::Baseline;
use crate::load::subject::{Memory, Percpu, Ready, Subject, on_threads};
use crate::progress::Progress;
use crate::rows::{self, Beside, Rows, Values};
use crate::table::{Table, bytes};

/// What the baseline is.
const BASELINE: &str = "a lock around two trees";
/// Possible CPUs of the series that shows how costs grow with them.
const SERIES: [u32; 7] = [1, 2, 4, 8, 16, 32, 64];

#[derive(clap::Args)]
pub struct Args {
    /// Also write the numbers to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Possible CPUs; the chunk and thread series run with the first of them
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [8, 64],
        value_parser = clap::value_parser!(u32).range(1..=percpu_core::cpu::NR_CPUS as i64))]
    cpus: Vec<u32>,
    /// A tenth of the work: numbers to look at, not to quote
    #[arg(long)]
    quick: bool,
}

/// All numbers of a run.
struct Report {
    quick: bool,
    /// Rounds of each load; those of the subjects alternate.
    rounds: usize,
    loads: Vec<Row>,
    growth: Vec<Row>,
    chunks: Vec<Row>,
    threads: Vec<Throughput>,
}

/// One load.
struct Row {
    load: String,
    cpus: u32,
    /// Bytes of one unit that are live at the end.
    live_bytes: u64,
    percpu: Numbers,
    baseline: Numbers,
}

/// One load's numbers of one subject.
#[derive(Clone)]
struct Numbers {
    ns_per_op: Values,
    memory: Memory,
}

/// A load on one thread and on two at the same time.
struct Throughput {
    load: String,
    cpus: u32,
    percpu: Threads,
    baseline: Threads,
}

/// Nanoseconds in which one operation of all threads together ends.
struct Threads {
    one: Values,
    two: Values,
}

impl Threads {
    /// How many times as much two threads do as one.
    fn ratio(&self) -> f64 {
        self.one.min / self.two.min
    }
}

/// Measures everything and prints it.
pub fn run(args: &Args) -> Result<(), String> {
    if let Some(path) = &args.json {
        // A path that cannot be written to is not to be found out after minutes.
        let file = std::fs::File::options().append(true).create(true).open(path);
        file.map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    }
    enough_memory(&args.cpus)?;
    let cpus = args.cpus[0];
    let (rounds, scale) = if args.quick { (3, 10) } else { (7, 1) };
    let loads = loads(scale);
    let series: Vec<Load> =
        [10, 100, 1000].map(|chunks| Load::chunks(chunks, 100_000 / scale)).into();
    let threaded = [Load::fixed(8, 1000, 200_000 / scale), Load::mixed(1000, 200_000 / scale)];

    let growing = [Load::trace(), Load::mixed(1_000, 200_000 / scale)];

    let steps = loads.len() * args.cpus.len() + growing.len() * SERIES.len();
    let mut progress = Progress::new(steps + series.len() + threaded.len());
    let mut report = Report {
        quick: args.quick,
        rounds,
        loads: Vec::new(),
        growth: Vec::new(),
        chunks: Vec::new(),
        threads: Vec::new(),
    };
    for &cpus in &args.cpus {
        for load in &loads {
            progress.step(&format!("{}, {cpus} CPUs", load.name));
            report.loads.push(measure(load, cpus, rounds));
        }
    }
    for load in &growing {
        for cpus in SERIES {
            progress.step(&format!("{}, {cpus} CPUs", load.name));
            report.growth.push(measure(load, cpus, rounds));
        }
    }
    for load in &series {
        progress.step(&load.name);
        report.chunks.push(measure(load, cpus, rounds));
    }
    for load in &threaded {
        progress.step(&format!("{}, one and two threads", load.name));
        report.threads.push(measure_threads(load, cpus, rounds));
    }
    drop(progress);
    print(&report);
    args.json.as_ref().map_or(Ok(()), |path| crate::write_json(path, &as_rows(&report)))
}

/// Refuses numbers of CPUs whose units would not fit into memory.
fn enough_memory(cpus: &[u32]) -> Result<(), String> {
    /// Bytes of a unit in the largest load, and in the longest series of chunks, with room to spare.
    const LOAD: u64 = 12 << 20;
    const SERIES: u64 = 36 << 20;
    let most = cpus.iter().map(|&cpus| u64::from(cpus) * LOAD).max().unwrap_or(0);
    let needed = most.max(u64::from(cpus[0]) * SERIES);
    // Where Linux does not say, it is tried.
    match available_memory() {
        Some(available) if available < needed => Err(format!(
            "--cpus {}: needs {} of memory, and {} are available; take fewer CPUs",
            cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            bytes(needed),
            bytes(available),
        )),
        _ => Ok(()),
    }
}

fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

fn loads(scale: usize) -> Vec<Load> {
    let (ops, fill) = (200_000 / scale, 200_000 / scale);
    vec![
        Load::trace(),
        Load::fixed(8, 1_000, ops),
        Load::fixed(8, 100_000, ops),
        Load::mixed(1_000, ops),
        Load::mixed(10_000, ops),
        Load::mixed(100_000, ops),
        Load::fill(fill),
        Load::drain(fill),
        Load::holes(4, ops),
        Load::holes(8, ops),
    ]
}

/// Rounds of the two subjects, one after the other: what disturbs the one disturbs the other.
fn measure(load: &Load, cpus: u32, rounds: usize) -> Row {
    let (mut percpu, mut baseline) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        percpu.push(round::<Percpu>(load, cpus));
        baseline.push(round::<Baseline>(load, cpus));
    }
    Row {
        load: load.name.clone(),
        cpus,
        live_bytes: load.live_bytes(),
        percpu: Numbers::of(&percpu),
        baseline: Numbers::of(&baseline),
    }
}

/// Nanoseconds an operation, and memory at the end.
fn round<S: Subject>(load: &Load, cpus: u32) -> (f64, Memory) {
    let mut ready = Ready::<S>::new(load, cpus);
    let start = Instant::now();
    ready.run(load);
    let ns = start.elapsed().as_nanos() as f64;
    (ns / load.ops() as f64, ready.subject.memory())
}

impl Numbers {
    fn of(rounds: &[(f64, Memory)]) -> Self {
        let times: Vec<f64> = rounds.iter().map(|round| round.0).collect();
        // The same in every round: a load knows no chance.
        let memory = rounds.last().map(|round| round.1).unwrap_or_default();
        Self { ns_per_op: Values::of(&times), memory }
    }
}

fn measure_threads(load: &Load, cpus: u32, rounds: usize) -> Throughput {
    let mut times: [[Vec<f64>; 2]; 2] = Default::default();
    for _ in 0..rounds {
        for threads in [1, 2] {
            let all = [
                threads_round::<Percpu>(load, cpus, threads),
                threads_round::<Baseline>(load, cpus, threads),
            ];
            for (times, time) in times.iter_mut().zip(all) {
                times[threads - 1].push(time / (threads * load.ops()) as f64);
            }
        }
    }
    let [percpu, baseline] =
        times.map(|[one, two]| Threads { one: Values::of(&one), two: Values::of(&two) });
    Throughput { load: load.name.clone(), cpus, percpu, baseline }
}

/// Nanoseconds in which each thread does the load once.
fn threads_round<S: Subject>(load: &Load, cpus: u32, threads: usize) -> f64 {
    let subject = S::new(cpus, load.shape);
    on_threads(&subject, load, threads, 1).as_nanos() as f64
}

/// The same in the form of all benchmarks.
fn as_rows(report: &Report) -> Rows {
    let mut all = Vec::new();
    let mut push = |family, name: &str, cpus, unit, values: Values, beside: Vec<Beside>| {
        let (name, axis) = (name.to_owned(), "CPUs");
        all.push(rows::Row { group: "alloc", family, name, axis, x: cpus, unit, values, beside });
    };
    let is_growing = |row: &&Row| report.growth.iter().any(|other| other.load == row.load);
    let loads = report.loads.iter().filter(|row| !is_growing(row));
    let times = [("an operation", loads.chain(&report.growth).collect::<Vec<_>>())];
    let chunks = [("an operation with many chunks", report.chunks.iter().collect())];
    for (family, loads) in times.iter().chain(&chunks) {
        for row in loads {
            let beside = vec![row.baseline.ns_per_op.beside("baseline", BASELINE)];
            push(family, &row.load, row.cpus, "ns", row.percpu.ns_per_op, beside);
        }
    }
    let first = report.loads.first().map(|row| row.cpus);
    for row in report.loads.iter().filter(|row| Some(row.cpus) == first) {
        let populated = Values::of(&[row.percpu.memory.populated as f64]);
        let live = Values::of(&[row.live_bytes as f64]).beside("live", "bytes that are allocated");
        push("memory of a unit", &row.load, row.cpus, "B", populated, vec![live]);
    }
    for Throughput { load, cpus, percpu, baseline } in &report.threads {
        let both = [("one thread", percpu.one, baseline.one), ("two", percpu.two, baseline.two)];
        for (threads, percpu, baseline) in both {
            let beside = vec![baseline.beside("baseline", BASELINE)];
            push("by threads", &format!("{load}: {threads}"), *cpus, "ns", percpu, beside);
        }
    }
    let notes = vec![format!("alloc: on the host, {} rounds of each load", report.rounds)];
    Rows { schema: rows::SCHEMA, quick: report.quick, rows: all, notes }
}

fn print(report: &Report) {
    let rows = |rows: &[Row], title: &str| {
        let mut table = Table::new(&[
            title,
            "CPUs",
            "ns/op",
            "median",
            "baseline",
            "median",
            "ratio",
            "chunks",
            "peak",
            "live",
            "populated",
            "reserved",
        ]);
        for row in rows {
            let (ours, other) = (&row.percpu, &row.baseline);
            table.row(&[
                row.load.clone(),
                row.cpus.to_string(),
                format!("{:.1}", ours.ns_per_op.min),
                format!("{:.1}", ours.ns_per_op.median),
                format!("{:.1}", other.ns_per_op.min),
                format!("{:.1}", other.ns_per_op.median),
                format!("{:.2}", ours.ns_per_op.min / other.ns_per_op.min),
                ours.memory.chunks.to_string(),
                ours.memory.peak_chunks.to_string(),
                bytes(row.live_bytes),
                bytes(ours.memory.populated),
                bytes(ours.memory.reserved),
            ]);
        }
        println!("{table}");
    };
    rows(&report.loads, "load");
    rows(&report.growth, "by CPUs");
    rows(&report.chunks, "chunks");
    let mut table = Table::new(&[
        "threads",
        "CPUs",
        "one: Mop/s",
        "two: Mop/s",
        "ratio",
        "baseline",
        "two",
        "ratio",
    ]);
    for Throughput { load, cpus, percpu, baseline } in &report.threads {
        let mut cells = vec![load.clone(), cpus.to_string()];
        for threads in [percpu, baseline] {
            cells.push(format!("{:.2}", 1000.0 / threads.one.min));
            cells.push(format!("{:.2}", 1000.0 / threads.two.min));
            cells.push(format!("{:.2}", threads.ratio()));
        }
        table.row(&cells);
    }
    println!("{table}");
    println!(
        "ns/op: the fastest of {} rounds, in turns with the baseline, and the median. Live, \
         populated and\nreserved: bytes of one unit, the first chunk's static part included; \
         chunks: at the end, and at most.",
        report.rounds
    );
    if report.quick {
        println!("A tenth of the work (--quick): numbers to look at, not to quote.");
    }
}
