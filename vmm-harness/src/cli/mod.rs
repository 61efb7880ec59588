//! The commands of `vmm-harness`, a file a command; here what they have in common: arguments, and how
//! they begin.

mod bench;
mod deterministic;
mod outputs;
mod run;
mod tree;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::error::{Error, Status};
use crate::guest::{Guest, Kind, program};
use crate::host::{Doctor, EngineChoice, Host, HostInfo, RingChoice};
use crate::image::Image;
use crate::report;
use crate::vm::Engine;
use bench::{BenchArgs, BootOnceArgs};
use deterministic::{FuzzArgs, MergeArgs, MinimiseArgs, ReplayArgs};
use run::RunArgs;

/// Seconds of a run, unless said otherwise.
const DEFAULT_SECONDS: f64 = 10.0;

/// Boots the percpu guest under KVM, plugs CPUs in and out, and judges its memory.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the guest under load while CPUs come and go, and judge it.
    Run(RunArgs),
    /// Measure how fast percpu-core is, beside yardsticks, and how fast CPUs come and go and guests boot.
    ///
    /// Operations are timed by the guest's time stamp counter, in rounds that alternate between them,
    /// the bare instructions written by hand, a `lock xadd` and a spin lock on a word that all CPUs share.
    /// docs/benchmarks.md says what each row is and how noise is dealt with.
    Bench(BenchArgs),
    /// Boot a guest, take it down, and say when was what: what `bench boot` starts.
    #[command(hide = true)]
    BootOnce(BootOnceArgs),
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
    /// Write a script that completes commands and options in a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Tell all commands and options as JSON, for those who pass arguments on.
    #[command(hide = true)]
    Options,
    /// Say what this host's KVM can do, what will be used, and why.
    Doctor,
    /// List the guest tests and the workloads that an image declares.
    List(ImageArg),
}

#[derive(clap::Args)]
struct ImageArg {
    /// The guest's ELF image [default: a program that has a guest of its own builds it].
    #[arg(long, env = "PERCPU_GUEST_IMAGE", value_name = "FILE")]
    image: Option<PathBuf>,
}

impl ImageArg {
    /// The image that was named, else one of this kind of this program's guest.
    fn open(&self, kind: Kind) -> Result<Image, Error> {
        match &self.image {
            Some(path) => Guest::this().open(path),
            None => Guest::this().image(kind),
        }
    }
}

/// Lets freed memory stay with the process: many short runs would else have it zeroed by the host
/// again and again.
fn keep_memory() {
    const KEEP: i32 = 256 << 20;
    // A program may have started threads before it called `main_with`.
    if !std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1) {
        return;
    }
    // SAFETY: glibc calls mallopt unsafe beside other threads ("MT-Unsafe init"), and there is none.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEEP);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEEP);
    }
}

/// Does what the command line says: all that `vmm-harness` is.
pub fn main() -> ExitCode {
    main_with(Guest::default())
}

/// The same for a guest, which is built where no image is named, and judged by its own checks, too:
/// all that a program for it is.
pub fn main_with(guest: Guest) -> ExitCode {
    keep_memory();
    let process_start = Instant::now();
    guest.set();
    let command = Cli::command().bin_name(program());
    let arguments = command.get_matches();
    let cli = Cli::from_arg_matches(&arguments).unwrap_or_else(|error| error.exit());
    let result = match cli.command {
        Command::Run(args) => run::run(args, process_start),
        Command::Bench(args) => bench::bench(&args),
        Command::BootOnce(args) => bench::boot_once(&args),
        Command::Fuzz(args) => deterministic::fuzz(args),
        Command::Replay(args) => deterministic::replay(&args),
        Command::FuzzMerge(args) => deterministic::merge(&args),
        Command::Minimise(args) => deterministic::minimise(&args),
        Command::Completions { shell } => {
            let stdout = &mut std::io::stdout();
            clap_complete::generate(shell, &mut Cli::command(), "vmm-harness", stdout);
            Ok(Status::Held)
        }
        Command::Options => {
            let _ = writeln!(std::io::stdout(), "{}", tree::json(&Cli::command()));
            Ok(Status::Held)
        }
        Command::Doctor => {
            let stdout = std::io::stdout();
            let doctor = Doctor::examine().coloured(report::colours_wanted(&stdout));
            // As below: a closed pipe is the reader's choice.
            let _ = write!(stdout.lock(), "{doctor}");
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

fn list(args: &ImageArg) -> Result<Status, Error> {
    let image = args.open(Kind::Usual)?;
    let mut stdout = std::io::stdout().lock();
    let tests = image.tests().iter().map(|test| format!("{}: test", test.name));
    for line in tests.chain(image.workloads().names().map(|name| format!("{name}: workload"))) {
        if writeln!(stdout, "{line}").is_err() {
            break;
        }
    }
    Ok(Status::Held)
}

/// Parses a time.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 1e6 => Ok(seconds),
        _ => Err("give a number of seconds above 0, at most 1000000".into()),
    }
}

/// Parses a seed.
fn seed(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "give a number from 0 to 2^64 - 1, decimal or 0x...".into())
}

#[derive(clap::Args)]
struct EngineArg {
    /// What runs the guest: a virtual machine (kvm), or threads of this process, which need no
    /// virtualisation; auto takes kvm where it can be used.
    #[arg(long, env = "PERCPU_ENGINE", default_value = "auto", value_name = "NAME")]
    engine: EngineChoice,
}

/// What this host can do for `max_cpus` CPUs, and the ring to run the image in.
fn prepare(
    image: &Image,
    max_cpus: u32,
    engine: &EngineArg,
    ring: RingChoice,
) -> Result<(HostInfo, u8), Error> {
    let host = Host::find(engine.engine)?;
    host.require_vcpus(max_cpus)?;
    if host.engine == Engine::Threads && engine.engine == EngineChoice::Auto {
        eprintln!("the guest runs as threads of this process, without KVM: {}", host.why);
    }
    let ring = match ring {
        RingChoice::Ring0 if host.engine == Engine::Threads => {
            return Err(Error::Usage(
                "a process runs in ring 3: --ring 0 needs a virtual machine (--engine kvm)".into(),
            ));
        }
        _ if host.engine == Engine::Threads => 3,
        // Auto means what works.
        RingChoice::Auto if image.header().ring3_only != 0 => 3,
        choice => host.choose_ring(choice).0,
    };
    crate::run::check_ring(image, ring)?;
    Ok((host, ring))
}

/// Raised by the first Ctrl-C; the second ends the process at once.
fn interrupted() -> Result<Arc<AtomicBool>, Error> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, flag.clone())
            .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
            .map_err(Error::thread)?;
    }
    Ok(flag)
}

/// A seed that differs from run to run; short, so that people can repeat it.
fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (now.as_nanos() as u64 ^ u64::from(std::process::id()) << 20) & 0xffff_ffff
}
