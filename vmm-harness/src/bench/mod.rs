//! A benchmark of percpu-core: the guest measures, row by row, and the host makes a table of it.

mod report;
pub(crate) mod table;

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use percpu_guest::abi::BootParams;

use crate::crash::{self, Scene};
use crate::error::{Error, Status};
use crate::host::HostInfo;
use crate::image::Image;
use crate::judge::Judge;
use crate::memory::GuestMem;
use crate::run::{boot_params, patience};
use crate::vm::{Vm, VmConfig, VmEventKind};

pub use report::{BenchReport, BenchRow, write_table};
use table::{Table, mhz};

/// CPUs that can be, at least: `sum` is measured over so many.
pub const POSSIBLE: u32 = 8;
/// Longest wait between two looks at the table.
const POLL: Duration = Duration::from_millis(50);
/// How long the guest may take for one row, boot included.
const ROW_LIMIT: Duration = Duration::from_secs(60);
/// Microseconds between timer interrupts: seldom, since each takes time from what is measured.
const TICK_US: u32 = 100_000;
/// Time between two plain lines where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// How thoroughly to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Rounds of each row.
    pub rounds: u32,
    /// Microseconds for which a subject is run at a stretch.
    pub stretch_us: u32,
}

impl Effort {
    /// For numbers to quote.
    pub const FULL: Self = Self { rounds: 101, stretch_us: 400 };
    /// For numbers to look at.
    pub const QUICK: Self = Self { rounds: 9, stretch_us: 100 };
}

/// What to measure on.
#[derive(Clone, Copy, Debug)]
pub struct BenchConfig {
    /// CPUs online while most rows are measured.
    pub cpus: u32,
    /// 0 or 3.
    pub ring: u8,
    /// How thoroughly.
    pub effort: Effort,
}

impl BenchConfig {
    /// CPUs that can be.
    pub fn possible(&self) -> u32 {
        self.cpus.max(POSSIBLE)
    }
}

/// Measures. The report holds the rows there are, also when the guest or the user ended it early.
pub fn run(
    image: &Image,
    config: &BenchConfig,
    host: &HostInfo,
    interrupted: &AtomicBool,
) -> Result<BenchReport, Error> {
    let boot = BootParams {
        possible: config.possible(),
        boot_cpus: config.cpus,
        tick_us: TICK_US,
        bench_rounds: config.effort.rounds,
        bench_us: config.effort.stretch_us,
        ..boot_params(config.ring, host)
    };
    let memory = VmConfig::memory_for(config.possible());
    let vm = Vm::new(image, VmConfig::new(boot, memory))?;
    let mem = GuestMem::new(vm.memory().clone());
    let mut judge = Judge::new(mem.clone(), config.possible())?;
    vm.start()?;

    let mut table = Table::new(&mem);
    let mut report = BenchReport::new(config, mhz(&mem)?);
    let mut live = Live::new();
    let limit = ROW_LIMIT * patience(config.ring, host);
    let mut deadline = Instant::now() + limit;
    while !table.is_complete() {
        let event = vm.next_event(Instant::now() + POLL);
        // The guest's events are of no interest, but it waits for room for them.
        judge.drain();
        let scene =
            Scene { vm: &vm, mem: &mem, image, judge: Some(&judge), possible: config.possible() };
        match event.map(|event| (event.cpu, event.kind)) {
            Some((cpu, VmEventKind::Crashed(crash))) => {
                report.ended_early(Status::Crashed, crash::report(&scene, cpu, &crash)?);
                break;
            }
            Some((_, VmEventKind::Exit)) => {
                let crash = crash::hang(&scene, "the guest stopped by itself", &[]);
                report.ended_early(Status::Hung, crash);
                break;
            }
            _ => {}
        }
        match table.new_rows() {
            Ok(rows) if !rows.is_empty() => {
                report.rows.extend(rows);
                deadline = Instant::now() + limit;
            }
            Ok(_) => {}
            Err(nonsense) => {
                report.ended_early(Status::Crashed, crash::hang(&scene, &nonsense, &[]));
                break;
            }
        }
        if Instant::now() > deadline {
            let late = format!("no row was measured within {limit:?}");
            report.ended_early(Status::Hung, crash::hang(&scene, &late, &[]));
            break;
        }
        if interrupted.load(Ordering::Relaxed) {
            report.interrupted = true;
            break;
        }
        live.show(table.planned(), report.rows.last(), report.rows.len());
    }
    live.finish();
    report.debug_assertions = table.has_debug_assertions();
    vm.park_all();
    Ok(report)
}

/// What one sees meanwhile, on standard error: a bar on a terminal, else a line every few seconds.
struct Live {
    bar: Option<ProgressBar>,
    printed: Instant,
}

impl Live {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("[{pos}/{len}] {bar:30} {wide_msg}");
            ProgressBar::new(0).with_style(style.expect("the template is a constant"))
        });
        Self { bar, printed: Instant::now() }
    }

    fn show(&mut self, planned: usize, last: Option<&BenchRow>, done: usize) {
        let name = last.map_or("", |row| &row.name);
        match &self.bar {
            Some(bar) => {
                bar.set_length(planned as u64);
                bar.set_position(done as u64);
                bar.set_message(name.to_owned());
            }
            None if self.printed.elapsed() >= PLAIN_EVERY => {
                eprintln!("[{done}/{planned}] {name}");
                self.printed = Instant::now();
            }
            None => {}
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
