//! `bench`: how fast percpu-core and its machines are; and `boot-once`, which that starts to see how long
//! a process takes.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use percpu_guest::abi::MAX_CPUS;

use super::run::Boot;
use super::{EngineArg, ImageArg, interrupted, prepare};
use crate::bench::{self, BenchConfig, BenchReport, Comparison, Subject};
use crate::error::{Error, Status};
use crate::guest::Kind;
use crate::host::{EngineChoice, RingChoice};
use crate::image::Image;
use crate::report::{self, colours_wanted};

/// Columns of a table that is written to no terminal.
const COLUMNS: usize = 120;

/// What is measured is a machine of its own: real interrupts, both ways to boot.
const ENGINE: EngineArg = EngineArg { engine: EngineChoice::Kvm };

#[derive(clap::Args)]
pub struct BenchArgs {
    /// What to measure.
    #[arg(default_value = "all", value_name = "SUBJECT")]
    subject: Subject,
    #[command(flatten)]
    image: ImageArg,
    /// The guest of the deterministic machine: without it that machine's reset is not measured.
    #[arg(long, env = "PERCPU_STEPS_IMAGE", value_name = "FILE")]
    steps_image: Option<PathBuf>,
    /// The benchmark program of percpu-core's own: without it the allocator is not measured.
    #[arg(long, env = "PERCPU_ALLOC_BENCH", value_name = "FILE")]
    alloc_program: Option<PathBuf>,
    /// A tenth of the work: numbers to look at, not to quote.
    #[arg(long)]
    quick: bool,
    /// Also write the numbers to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write them to this file as charts, for a browser.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Compare with an earlier report (--json): the ratio of each row, new to old.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Add the rows of another program, in the same form.
    #[arg(long, value_name = "FILE")]
    add: Vec<PathBuf>,
    /// CPUs that are online while operations are measured; what several do at once is measured on at
    /// most so many, and as many cores as this host has [default: the host's cores, 2 to 8].
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// CPUs of the largest machine that is booted and plugged.
    #[arg(long, value_name = "N", default_value_t = MAX_CPUS as u32)]
    max_cpus: u32,
    /// The guest's privilege level; auto takes 0 unless this host emulates it.
    #[arg(long, default_value = "auto")]
    ring: RingChoice,
}

pub fn bench(args: &BenchArgs) -> Result<Status, Error> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let cpus = args.cpus.unwrap_or_else(|| cores.clamp(2, 8));
    bench::check_cpus(cpus)?;
    crate::run::check_cpus(1, args.max_cpus)?;
    // What is wrong with a file is not to be found out after minutes.
    for path in args.json.iter().chain(&args.html) {
        report::check_writable(path)?;
    }
    let mut added = Vec::new();
    for path in &args.add {
        added.push(bench::read_rows(path)?);
    }
    let old = args.compare.as_deref().map(BenchReport::read).transpose()?;
    let image = args.image.open(Kind::Speed)?;
    let (host, ring) = prepare(&image, cpus, &ENGINE, args.ring)?;
    let steps_image = args.steps_image.as_deref().map(Image::open).transpose()?;
    let config = BenchConfig {
        subject: args.subject,
        image: &image,
        steps_image: steps_image.as_ref(),
        alloc_program: args.alloc_program.as_deref(),
        cpus,
        most_cpus: args.max_cpus,
        ring,
        quick: args.quick,
    };
    let mut report = bench::run(&config, &host, &*interrupted()?)?;
    for rows in added {
        report.add(rows);
    }
    let comparison = old.map(|old| Comparison::of(&old, &report));
    show(&report, comparison.as_ref());
    if let Some(path) = &args.json {
        report.write_json(path)?;
    }
    if let Some(path) = &args.html {
        bench::page(&report, comparison.as_ref()).write(path)?;
    }
    Ok(report.status())
}

/// Writes the tables. As in `run`: a closed pipe is the reader's choice.
fn show(report: &BenchReport, comparison: Option<&Comparison>) {
    let mut out = std::io::stdout().lock();
    let terminal = console::Term::stdout();
    let size = terminal.size_checked().filter(|_| out.is_terminal());
    let columns = size.map_or(COLUMNS, |(_, columns)| columns.into());
    let colours = colours_wanted(&out);
    let _ = bench::write_table(&mut out, report, columns, colours);
    if let Some(comparison) = comparison {
        let _ = bench::write_comparison(&mut out, comparison, columns, colours);
    }
}

#[derive(clap::Args)]
pub struct BootOnceArgs {
    #[command(flatten)]
    image: ImageArg,
    /// CPUs that are online at the end.
    #[arg(long, value_name = "N")]
    cpus: u32,
    /// How CPUs are started.
    #[arg(long)]
    boot: Boot,
    /// The guest's privilege level.
    #[arg(long)]
    ring: RingChoice,
}

pub fn boot_once(args: &BootOnceArgs) -> Result<Status, Error> {
    crate::run::check_cpus(args.cpus, args.cpus)?;
    let image = args.image.open(Kind::Speed)?;
    let (host, ring) = prepare(&image, args.cpus, &ENGINE, args.ring)?;
    let moments = bench::boot_once(&image, args.cpus, args.boot.into(), ring, &host)?;
    let _ = writeln!(std::io::stdout(), "{moments}");
    Ok(Status::Held)
}
