//! Benchmarks of percpu-core and of the machine that runs its guest: what was measured as rows of one
//! form, in a table, as JSON, beside an earlier report, and as charts.
//!
//! A subject is a group of rows, and a file here: [operations](self) by the guest's time stamp
//! counter (`core`, `counter`), the allocator by a program of its own, plugs, boots.

mod alloc;
mod boot;
mod compare;
mod facts;
mod guest;
pub(crate) mod guest_table;
mod html;
mod live;
mod operations;
mod plug;
mod report;
mod row;
mod terminal;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use percpu_guest::abi::{BootMode, MAX_CPUS};

use crate::error::Error;
use crate::host::HostInfo;
use crate::image::Image;
use crate::run::patience;

pub use compare::{Comparison, Verdict};
pub use facts::HostFacts;
use guest::Stop;
pub use html::page;
use live::Live;
pub use operations::check_cpus;
pub use report::{BenchReport, Rows, SCHEMA, read_rows};
pub use row::{Beside, Counts, Row, Target, Unit, Values};
pub use terminal::{write_comparison, write_table};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Subject {
    /// Operations on per-CPU data, guards and locks of one CPU, in the guest.
    Core,
    /// The allocator, on a trace of a Linux kernel and on made-up loads, on the host.
    Alloc,
    /// Counters and references, in the guest.
    Counter,
    /// CPUs that come and go.
    Plug,
    /// Start, boot, reset and end of machines.
    Boot,
    /// All of these.
    All,
}

impl Subject {
    const EACH: [Self; 5] = [Self::Core, Self::Alloc, Self::Counter, Self::Plug, Self::Boot];

    /// Its name on the command line, and its rows' group.
    pub fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Alloc => "alloc",
            Self::Counter => "counter",
            Self::Plug => "plug",
            Self::Boot => "boot",
            Self::All => "all",
        }
    }

    /// The groups of it.
    fn groups(self) -> Vec<Self> {
        if self == Self::All { Self::EACH.into() } else { vec![self] }
    }
}

/// How thoroughly to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Effort {
    /// Rounds of each row that the guest measures.
    rounds: u32,
    /// Microseconds for which an operation is run at a stretch.
    stretch_us: u32,
    /// Plugs of each machine, and how long they may take: then there are fewer.
    plugs: usize,
    plug_time: Duration,
    /// Processes for each number of CPUs, likewise.
    boots: usize,
    boot_time: Duration,
    /// Runs of the deterministic machine.
    resets: u64,
}

impl Effort {
    /// For numbers to quote.
    const FULL: Self = Self {
        rounds: 101,
        stretch_us: 400,
        plugs: 200,
        plug_time: Duration::from_secs(5),
        boots: 25,
        boot_time: Duration::from_secs(6),
        resets: 40,
    };
    /// For numbers to look at.
    const QUICK: Self = Self {
        rounds: 9,
        stretch_us: 100,
        plugs: 12,
        plug_time: Duration::from_millis(400),
        boots: 3,
        boot_time: Duration::from_millis(600),
        resets: 6,
    };
}

/// What to measure, and on what.
#[derive(Clone, Copy)]
pub struct BenchConfig<'a> {
    /// What.
    pub subject: Subject,
    /// The guest.
    pub image: &'a Image,
    /// The guest of the deterministic machine.
    pub steps_image: Option<&'a Image>,
    /// percpu-core's own program.
    pub alloc_program: Option<&'a Path>,
    /// CPUs online while most operations are measured.
    pub cpus: u32,
    /// CPUs of the largest machine that is booted or plugged.
    pub most_cpus: u32,
    /// 0 or 3.
    pub ring: u8,
    /// A tenth of the effort.
    pub quick: bool,
}

/// A benchmark under way.
struct Bench<'a> {
    image: &'a Image,
    steps_image: Option<&'a Image>,
    alloc_program: Option<&'a Path>,
    cpus: u32,
    most_cpus: u32,
    ring: u8,
    quick: bool,
    effort: Effort,
    host: &'a HostInfo,
    /// How much longer than usual things may take.
    patience: u32,
    interrupted: &'a AtomicBool,
    live: Live,
    report: BenchReport,
}

/// Measures. The report holds the rows there are, also when a guest or the user ended it early.
pub fn run(
    config: &BenchConfig<'_>,
    host: &HostInfo,
    interrupted: &AtomicBool,
) -> Result<BenchReport, Error> {
    let mut bench = Bench {
        image: config.image,
        steps_image: config.steps_image,
        alloc_program: config.alloc_program,
        cpus: config.cpus,
        most_cpus: config.most_cpus.min(MAX_CPUS as u32),
        ring: config.ring,
        quick: config.quick,
        effort: if config.quick { Effort::QUICK } else { Effort::FULL },
        host,
        patience: patience(config.ring, host),
        interrupted,
        live: Live::new(),
        report: BenchReport::new(HostFacts::gather(config.ring), config.quick),
    };
    for group in config.subject.groups() {
        bench.live.group(group.name());
        let measured = match group {
            Subject::Alloc => alloc::measure(&mut bench),
            Subject::Plug => plug::measure(&mut bench),
            Subject::Boot => boot::measure(&mut bench),
            _ => operations::measure(&mut bench, group),
        };
        match measured {
            Ok(()) => {}
            Err(Stop::Guest(status, crash)) => {
                bench.report.ended_early(status, crash);
                break;
            }
            Err(Stop::Interrupted) => {
                bench.report.interrupted = true;
                break;
            }
            Err(Stop::Failed(error)) => return Err(error),
        }
    }
    Ok(bench.report)
}

/// One boot and its end, for a process that measures nothing else: when was what, as JSON.
pub fn boot_once(
    image: &Image,
    cpus: u32,
    mode: BootMode,
    ring: u8,
    host: &HostInfo,
) -> Result<String, Error> {
    match boot::once(image, cpus, mode, ring, host) {
        Ok(moments) => Ok(serde_json::to_string(&moments).expect("numbers")),
        Err(Stop::Failed(error)) => Err(error),
        Err(Stop::Guest(_, crash)) => Err(Error::GuestBoot(crash.text)),
        Err(Stop::Interrupted) => Ok(String::new()),
    }
}
