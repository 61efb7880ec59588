//! `vmm-harness`: boots the percpu guest under KVM, plugs CPUs in and out, and judges its memory.

mod cli;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use percpu_guest::abi::{BootMode, Fault, Workload};
use vmm_harness::bench::{self, BenchConfig, Effort};
use vmm_harness::error::{Error, Status};
use vmm_harness::host::{Doctor, RingChoice};
use vmm_harness::image::Image;
use vmm_harness::report;
use vmm_harness::run::{self, Length, RunConfig};

use cli::deterministic::{self, FuzzArgs, MergeArgs, MinimiseArgs, ReplayArgs};
use cli::{DEFAULT_SECONDS, ImageArg, interrupted, new_seed, prepare, seconds, seed};

/// CPUs that can be, unless said otherwise.
const MAX_CPUS: u32 = 8;

/// Boots the percpu guest under KVM, plugs CPUs in and out, and judges its memory.
#[derive(Parser)]
#[command(version, bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the guest under load while CPUs come and go, and judge it.
    Run(RunArgs),
    /// Measure in the guest what the operations of percpu-core cost.
    ///
    /// Each is timed by the guest's time stamp counter, in rounds that alternate between it, the bare
    /// instructions written by hand, and a `lock xadd` on a word that all CPUs share.
    #[command(override_usage = "cargo xtask bench core [OPTIONS]")]
    Bench(BenchArgs),
    /// Run scenarios made out of seeds on the deterministic machine, one CPU at a time, and judge them.
    Fuzz(FuzzArgs),
    /// Run one scenario again, which goes as it went before.
    ///
    /// Ends with status 0 if every invariant held, 1 if not, and 1 too if a failure's file says that
    /// this guest's run goes otherwise.
    Replay(ReplayArgs),
    /// Look for the smallest scenario that fails as the given one does, and show it step by step.
    Minimise(MinimiseArgs),
    /// Add up the reports of a campaign's shards: seeds, coverage, and each failure once.
    FuzzMerge(MergeArgs),
    /// Say what this host's KVM can do, what will be used, and why.
    Doctor,
    /// List the guest tests that an image declares.
    List(ImageArg),
}

#[derive(clap::Args)]
struct RunArgs {
    #[command(flatten)]
    image: ImageArg,
    /// CPUs that are online at the start.
    #[arg(long, default_value_t = 4, value_name = "N")]
    cpus: u32,
    /// CPUs that can be plugged in at most [default: 8, or --cpus if that is more].
    #[arg(long, value_name = "M")]
    max_cpus: Option<u32>,
    /// How long the guest is kept under load [default: 10].
    #[arg(long, value_name = "S", conflicts_with = "plugs", value_parser = seconds)]
    seconds: Option<f64>,
    /// End after so many plugs and unplugs instead.
    #[arg(long, value_name = "P")]
    plugs: Option<u64>,
    /// End after so many passes of the workload trace instead.
    #[arg(long, value_name = "P", conflicts_with_all = ["seconds", "plugs"])]
    passes: Option<u64>,
    /// What the guest does: all at once, or one of statics, counter, alloc, mount, trace, refs.
    #[arg(long, default_value = "all", value_name = "NAME", value_parser = workloads)]
    workload: Workloads,
    /// How CPUs are started: by the guest with INIT-SIPI, or directly by the host.
    #[arg(long, default_value = "direct")]
    boot: Boot,
    /// The guest's privilege level; auto takes 0 unless this host emulates it.
    #[arg(long, default_value = "auto")]
    ring: RingChoice,
    /// Seed of every random choice [default: a new one each time].
    #[arg(long, value_name = "X", value_parser = seed)]
    seed: Option<u64>,
    /// Write the report to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Make the guest misbehave on purpose, to see how that is reported.
    #[arg(long, default_value = "none", value_name = "NAME", value_parser = fault, hide = true)]
    fault: Fault,
}

#[derive(clap::Args)]
struct BenchArgs {
    #[command(flatten)]
    image: ImageArg,
    /// A tenth of the rounds, and short ones: numbers to look at, not to quote.
    #[arg(long)]
    quick: bool,
    /// Also write the numbers to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// CPUs that are online; what several do at once is measured on two of them, and sums over
    /// eight, which are brought up for that.
    #[arg(long, default_value_t = 2, value_name = "N")]
    cpus: u32,
    /// The guest's privilege level; auto takes 0 unless this host emulates it.
    #[arg(long, default_value = "auto")]
    ring: RingChoice,
}

#[derive(Clone, Copy, ValueEnum)]
enum Boot {
    Sipi,
    Direct,
}

#[derive(Clone, Debug)]
struct Workloads(Vec<Workload>);

fn workloads(name: &str) -> Result<Workloads, String> {
    if name == "all" {
        return Ok(Workloads(Workload::ALL.to_vec()));
    }
    match Workload::ALL.iter().find(|workload| workload.name() == name) {
        Some(&workload) => Ok(Workloads(vec![workload])),
        None => Err(format!(
            "there is no such workload: give all, {}",
            Workload::ALL.iter().map(|w| w.name()).collect::<Vec<_>>().join(", ")
        )),
    }
}

fn fault(name: &str) -> Result<Fault, String> {
    Fault::ALL.iter().copied().find(|fault| fault.name() == name).ok_or_else(|| {
        let names: Vec<_> = Fault::ALL.iter().map(|f| f.name()).collect();
        format!("there is no such fault: give {}", names.join(", "))
    })
}

/// Lets freed memory stay with the process: many short runs would else have it zeroed by the host
/// again and again.
fn keep_memory() {
    const KEEP: i32 = 256 << 20;
    // SAFETY: no other thread exists yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEEP);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEEP);
    }
}

fn main() -> ExitCode {
    keep_memory();
    let process_start = Instant::now();
    let result = match Cli::parse().command {
        Command::Run(args) => run(args, process_start),
        Command::Bench(args) => bench(&args),
        Command::Fuzz(args) => deterministic::fuzz(args),
        Command::Replay(args) => deterministic::replay(&args),
        Command::FuzzMerge(args) => deterministic::merge(&args),
        Command::Minimise(args) => deterministic::minimise(&args),
        Command::Doctor => {
            let doctor = Doctor::examine();
            // As below: a closed pipe is the reader's choice.
            let _ = write!(std::io::stdout(), "{doctor}");
            Ok(doctor.status())
        }
        Command::List(args) => list(&args),
    };
    match result {
        Ok(status) => status.into(),
        Err(error) => {
            eprintln!("error: {error}");
            error.status().into()
        }
    }
}

fn run(args: RunArgs, process_start: Instant) -> Result<Status, Error> {
    let max_cpus = args.max_cpus.unwrap_or(MAX_CPUS.max(args.cpus));
    let length = match (args.plugs, args.passes, args.seconds) {
        (Some(plugs), ..) => Length::Plugs(plugs),
        (None, Some(passes), _) => Length::Passes(passes),
        (None, None, seconds) => {
            Length::Time(Duration::from_secs_f64(seconds.unwrap_or(DEFAULT_SECONDS)))
        }
    };
    run::check_cpus(args.cpus, max_cpus)?;
    run::check_length(length, &args.workload.0)?;
    let (image, host, ring) = prepare(&args.image, max_cpus, args.ring)?;
    let seed = args.seed.unwrap_or_else(new_seed);
    let mut config = RunConfig {
        cpus: args.cpus,
        max_cpus,
        length,
        work: None,
        workloads: args.workload.0,
        boot: match args.boot {
            Boot::Sipi => BootMode::Sipi,
            Boot::Direct => BootMode::Direct,
        },
        ring,
        seed,
        fault: args.fault,
        live: true,
        replay: String::new(),
        process_start,
    };
    config.replay = replay_command(&config);
    if let Some(path) = &args.json {
        report::check_writable(path)?;
    }
    let interrupted = interrupted()?;
    let report = run::run(&image, &config, &host, &interrupted)?;
    let stdout = std::io::stdout();
    let colours = report::colours_wanted(&stdout);
    // A closed pipe is the reader's choice, and the verdict is in the exit status too.
    let _ = report::write_table(&mut stdout.lock(), &report, colours);
    if let Some(path) = &args.json {
        report.write_json(path)?;
    }
    Ok(report.verdict.status())
}

fn bench(args: &BenchArgs) -> Result<Status, Error> {
    run::check_cpus(args.cpus, args.cpus.max(bench::POSSIBLE))?;
    let effort = if args.quick { Effort::QUICK } else { Effort::FULL };
    let (image, host, ring) = prepare(&args.image, args.cpus.max(bench::POSSIBLE), args.ring)?;
    if let Some(path) = &args.json {
        report::check_writable(path)?;
    }
    let config = BenchConfig { cpus: args.cpus, ring, effort };
    let report = bench::run(&image, &config, &host, &*interrupted()?)?;
    // As in `run`: a closed pipe is the reader's choice.
    let _ = bench::write_table(&mut std::io::stdout().lock(), &report);
    if let Some(path) = &args.json {
        report.write_json(path)?;
    }
    Ok(report.status())
}

fn replay_command(config: &RunConfig) -> String {
    let length = match config.length {
        Length::Time(time) => format!("--seconds {}", time.as_secs_f64()),
        Length::Plugs(plugs) => format!("--plugs {plugs}"),
        Length::Passes(passes) => format!("--passes {passes}"),
    };
    let workload = match config.workloads.as_slice() {
        [one] => one.name(),
        _ => "all",
    };
    format!(
        "cargo xtask run --cpus {} --max-cpus {} {length} --workload {workload} --boot {} --ring {} --seed {:#x}",
        config.cpus,
        config.max_cpus,
        run::boot_mode_name(config.boot),
        config.ring,
        config.seed,
    )
}

fn list(args: &ImageArg) -> Result<Status, Error> {
    let image = Image::open(&args.image)?;
    let mut stdout = std::io::stdout().lock();
    for test in image.tests() {
        if writeln!(stdout, "{}: test", test.name).is_err() {
            break;
        }
    }
    Ok(Status::Held)
}
