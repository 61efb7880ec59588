//! `fuzz`, `replay`, `minimise`, `fuzz-merge`: the commands of the deterministic machine.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::coverage::{SourceCoverage, write_lcov_file};
use crate::error::{Error, Status};
use crate::fuzz::{
    self, Case, FuzzConfig, FuzzReport, Live, MachineKind, Machines, ScenarioReport, Seen, Shard,
    Style, image_name,
};
use crate::guest::{Guest, Kind, program};
use crate::host::RingChoice;
use crate::image::{Image, Workloads};
use crate::machine::{Scenario, Topology};
use crate::report;
use crate::vm::Engine;

use super::outputs::Outputs;
use super::{DEFAULT_SECONDS, EngineArg, ImageArg, interrupted, new_seed, prepare, seconds, seed};

#[derive(clap::Args)]
pub struct FuzzArgs {
    #[command(flatten)]
    image: ImageArg,
    /// Run these seeds and nothing else: from A up to, not including, B [default: from a new one on,
    /// and scenarios made by changing those that reached something new].
    #[arg(long, value_name = "A..B", value_parser = seeds)]
    seeds: Option<Seeds>,
    /// Begin no run after so many seconds [default: 10 if no seeds are given].
    #[arg(long, value_name = "S", value_parser = seconds)]
    time: Option<f64>,
    /// The machine; only the deterministic one can replay.
    #[arg(long, default_value = "deterministic", value_enum)]
    machine: MachineKind,
    /// Run this file's work, CPUs and plugs; seeds choose how CPUs take turns.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Threads that run scenarios, each on machines of its own.
    #[arg(long, default_value_t = 1, value_name = "J",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: u16,
    /// Run shard I of N, from 0/N to N-1/N: its part of the seeds, else seeds of its own.
    #[arg(long, default_value_t, value_name = "I/N")]
    shard: Shard,
    /// Directory of scenarios that reached something new, one a file: run at the beginning, added to,
    /// and changed if no seeds are given. Failures are kept in it, too.
    #[arg(long, value_name = "DIR")]
    corpus: Option<PathBuf>,
    /// Run each scenario twice, on two machines, and compare all that happened.
    #[arg(long)]
    verify: bool,
    /// Stop after so many failures.
    #[arg(long, default_value_t = 1, value_name = "N")]
    failures: u64,
    /// Try for so many seconds to make a failure small, 0 not to.
    #[arg(long, default_value = "5", value_name = "S", value_parser = seconds_or_none)]
    minimise: f64,
    /// Where failures are kept, in a directory `failures`, if there is no corpus.
    #[arg(long, env = "PERCPU_FUZZ_DIR", default_value = "target/fuzz", value_name = "DIR")]
    keep: PathBuf,
    #[command(flatten)]
    outputs: Outputs,
    /// Write which lines of percpu-core were reached to this file, in the form of lcov.
    #[arg(long, value_name = "FILE")]
    lcov: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArg,
    /// The guest's privilege level; auto takes 0 unless this host emulates it.
    #[arg(long, default_value = "auto")]
    ring: RingChoice,
}

#[derive(clap::Args)]
pub struct MergeArgs {
    /// Reports that `fuzz --json FILE` wrote, of one guest image.
    #[arg(value_name = "FILE", required = true)]
    reports: Vec<PathBuf>,
    #[command(flatten)]
    outputs: Outputs,
    /// Write which lines of percpu-core were reached to this file, in the form of lcov.
    #[arg(long, value_name = "FILE")]
    lcov: Option<PathBuf>,
    /// The guest's ELF image that the reports are of: without it there is no --lcov, and --html has no
    /// coverage.
    #[arg(long, env = "PERCPU_GUEST_IMAGE", value_name = "FILE")]
    image: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    image: ImageArg,
    /// A scenario's or a failure's file, or a seed.
    #[arg(value_name = "FILE|SEED")]
    what: String,
    /// Show all turns of all CPUs, each with where it ended in the source.
    #[arg(long)]
    trace: bool,
    #[command(flatten)]
    outputs: Outputs,
    #[command(flatten)]
    engine: EngineArg,
    /// The guest's privilege level [default: as in the failure's file, else 0 unless this host
    /// emulates it].
    #[arg(long)]
    ring: Option<RingChoice>,
}

#[derive(clap::Args)]
pub struct MinimiseArgs {
    #[command(flatten)]
    image: ImageArg,
    /// A scenario's or a failure's file, or a seed.
    #[arg(value_name = "FILE|SEED")]
    what: String,
    /// Look no longer than so many seconds.
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds)]
    time: f64,
    /// Where the smallest scenario is written [default: beside FILE.toml as FILE-minimal.toml, for a
    /// seed as target/fuzz/failures/seed-SEED-minimal.toml].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Where failures are kept, in a directory `failures`: a seed's smallest scenario is written there.
    #[arg(
        long,
        env = "PERCPU_FUZZ_DIR",
        default_value = "target/fuzz",
        value_name = "DIR",
        hide = true
    )]
    keep: PathBuf,
    #[command(flatten)]
    outputs: Outputs,
    #[command(flatten)]
    engine: EngineArg,
    /// The guest's privilege level [default: as in the failure's file, else 0 unless this host
    /// emulates it].
    #[arg(long)]
    ring: Option<RingChoice>,
}

#[derive(Clone, Debug)]
struct Seeds(std::ops::Range<u64>);

fn seeds(text: &str) -> Result<Seeds, String> {
    let (from, to) = text.split_once("..").ok_or("give two numbers, as 0..1000")?;
    let (from, to) = (seed(from)?, seed(to)?);
    if from < to { Ok(Seeds(from..to)) } else { Err("the second number must be larger".into()) }
}

fn seconds_or_none(text: &str) -> Result<f64, String> {
    if text == "0" { Ok(0.0) } else { seconds(text) }
}

pub fn fuzz(args: FuzzArgs) -> Result<Status, Error> {
    if args.verify && args.machine == MachineKind::Parallel {
        return Err(Error::Usage(
            "--verify compares two runs of a seed step by step, and on the parallel machine no two \
             runs are equal: leave out one of the two"
                .into(),
        ));
    }
    if args.lcov.is_some() && args.machine == MachineKind::Parallel {
        return Err(Error::Usage(
            "--lcov tells of what the deterministic machine ran: leave out --machine parallel"
                .into(),
        ));
    }
    let kind = match args.machine {
        MachineKind::Deterministic => Kind::Steps,
        MachineKind::Parallel => Kind::Usual,
    };
    let image = args.image.open(kind)?;
    let read = |path| Case::read(path, image.workloads());
    let scenario = args.scenario.as_deref().map(read).transpose()?.map(|case| case.scenario);
    let (host, ring) = prepare(&image, Topology::MOST_CPUS, &args.engine, args.ring)?;
    check(&args.outputs, args.lcov.as_deref())?;
    let seconds = args.time.or(args.seeds.is_none().then_some(DEFAULT_SECONDS));
    let change = args.seeds.is_none() && scenario.is_none();
    let seeds = match args.seeds {
        Some(seeds) => args.shard.part(seeds.0),
        None => args.shard.first_seed(new_seed())..u64::MAX,
    };
    let config = FuzzConfig {
        seeds,
        shard: args.shard,
        scenario,
        change,
        failures: args.corpus.as_ref().unwrap_or(&args.keep).join("failures"),
        corpus: args.corpus,
        time: seconds.map(Duration::from_secs_f64),
        jobs: args.jobs.into(),
        verify: args.verify,
        most_failures: args.failures.max(1),
        minimise: Duration::from_secs_f64(args.minimise),
        ring,
        machine: args.machine,
        host,
    };
    if config.jobs_at_once() < config.jobs {
        eprintln!(
            "one guest at a time runs in a process: --jobs 1 here; processes share the work by \
             --shard 0/{0}, --shard 1/{0} and so on",
            config.jobs
        );
    }
    let fuzz::Ended { report, error } = fuzz::run(&image, &config, &*interrupted()?)?;
    let written = write(&report, Some(&image), &args.outputs, args.lcov.as_deref());
    // What was found counts for more than what then went wrong, which is said all the same.
    match error.or(written.err()) {
        Some(error) if report.failures.is_empty() => Err(error),
        Some(error) => {
            eprintln!("error: {error}");
            Ok(report.status())
        }
        None => Ok(report.status()),
    }
}

fn check(outputs: &Outputs, lcov: Option<&Path>) -> Result<(), Error> {
    outputs.check()?;
    lcov.map_or(Ok(()), report::check_writable)
}

/// Writes the table, and the files that were asked for; without the image nothing is said of the
/// source.
fn write(
    report: &FuzzReport,
    image: Option<&Image>,
    outputs: &Outputs,
    lcov: Option<&Path>,
) -> Result<(), Error> {
    // As in `run`: a closed pipe is the reader's choice.
    let _ = fuzz::write_report(&mut std::io::stdout().lock(), report);
    let wanted = outputs.html.is_some() || lcov.is_some();
    let coverage = report.coverage.as_ref().zip(image).filter(|_| wanted);
    // What goes wrong here is no reason to lose the other files.
    let source = coverage.map(|(coverage, image)| SourceCoverage::of(image, coverage)).transpose();
    let page =
        || Ok(fuzz::campaign_page(report, source.as_ref().ok().and_then(Option::as_ref)).render());
    let written = outputs.write(|| report.to_json(), || report.to_junit(), page);
    match (source?, lcov) {
        (Some(source), Some(path)) => write_lcov_file(path, &source).and(written),
        _ => written,
    }
}

pub fn merge(args: &MergeArgs) -> Result<Status, Error> {
    let read = |path: &PathBuf| Ok((path.clone(), fuzz::read_report(path)?));
    let reports = args.reports.iter().map(read).collect::<Result<Vec<_>, Error>>()?;
    let sum = fuzz::merge(&reports)?;
    if args.lcov.is_some() && args.image.is_none() {
        return Err(Error::Usage(
            "--lcov needs the guest that the reports are of: give it by --image".into(),
        ));
    }
    check(&args.outputs, args.lcov.as_deref())?;
    let image = args.image.as_deref().map(|image| Guest::this().open(image)).transpose()?;
    write(&sum, image.as_ref(), &args.outputs, args.lcov.as_deref())?;
    Ok(sum.status())
}

/// The scenario that was named, and the file it is from, if it is from a file.
fn case<'w>(what: &'w str, workloads: &Workloads) -> Result<(Case, Option<&'w Path>), Error> {
    match seed(what) {
        Ok(seed) => {
            workloads.require_some()?;
            let scenario = Scenario::from_seed(seed, &workloads.for_seeds());
            Ok((Case { failure: None, scenario }, None))
        }
        Err(_) => Ok((Case::read(Path::new(what), workloads)?, Some(Path::new(what)))),
    }
}

/// What was named, its file, the image, the engine, and the ring: what was asked for, else that of the failure.
fn prepare_for<'w>(
    what: &'w str,
    image: &ImageArg,
    engine: &EngineArg,
    ring: Option<RingChoice>,
) -> Result<(Case, Option<&'w Path>, Image, Engine, u8), Error> {
    let image = image.open(Kind::Steps)?;
    let (case, file) = case(what, image.workloads())?;
    let asked = ring.unwrap_or_default();
    let (host, mut usual) = prepare(&image, Topology::MOST_CPUS, engine, asked)?;
    if let (None, Engine::Kvm, Some(seen)) = (ring, host.engine, &case.failure) {
        crate::run::check_ring(&image, seen.ring)?;
        usual = seen.ring;
    }
    Ok((case, file, image, host.engine, usual))
}

pub fn replay(args: &ReplayArgs) -> Result<Status, Error> {
    args.outputs.check()?;
    let (case, _, image, engine, ring) =
        prepare_for(&args.what, &args.image, &args.engine, args.ring)?;
    let mut stdout = std::io::stdout().lock();
    let mut machines = Machines::new(&image, engine, ring);
    let outcome = machines.run(&case.scenario)?;
    let mut picture = machines.picture(Style::of_stdout());
    let run = (&case.scenario, &outcome);
    fuzz::write_replay(&mut stdout, &mut machines, &mut picture, run, args.trace)?;
    let mut status = outcome.ending.status();
    let name = image_name(&image);
    let mut likeness = None;
    if let Some(seen) = &case.failure {
        // Runs that differed from each other have to be seen to differ again.
        let again = match seen.is_of_two_runs() {
            true => Some(Machines::new(&image, engine, ring).run(&case.scenario)?),
            false => None,
        };
        let found = seen.compare(&outcome, again.as_ref(), ring, &name);
        let _ = writeln!(stdout, "{found}");
        status = found.status(status);
        likeness = Some(found.to_string());
    }
    if args.outputs.any() {
        let report = ScenarioReport::of_replay(&mut machines, &mut picture, run, (ring, &name))?;
        let replay = Some(format!("{} replay {}", program(), args.what));
        write_scenario(&ScenarioReport { likeness, replay, ..report }, &args.outputs)?;
    }
    Ok(status)
}

fn write_scenario(report: &ScenarioReport, outputs: &Outputs) -> Result<(), Error> {
    let page = || Ok(report.page().render());
    outputs.write(|| report.to_json(), || report.to_junit(), page)
}

pub fn minimise(args: &MinimiseArgs) -> Result<Status, Error> {
    args.outputs.check()?;
    let (case, file, image, engine, ring) =
        prepare_for(&args.what, &args.image, &args.engine, args.ring)?;
    let mut machines = Machines::new(&image, engine, ring);
    let limit = Duration::from_secs_f64(args.time);
    let mut stdout = std::io::stdout().lock();
    let mut live = Live::default();
    let watch = &mut |smaller: &_, runs| live.show_line(|| format!("{runs} runs: {smaller}"));
    let minimal = fuzz::minimise(&mut machines, &case.scenario, limit, &*interrupted()?, watch)?;
    live.finish();
    let mut picture = machines.picture(Style::of_stdout());
    let name = image_name(&image);
    let Some(minimal) = minimal else {
        let _ = writeln!(stdout, "{}\nHELD: there is nothing to minimise", case.scenario);
        if args.outputs.any() {
            let outcome = machines.run(&case.scenario)?;
            let run = (&case.scenario, &outcome);
            let of = (ring, name.as_str());
            let report = ScenarioReport::of_replay(&mut machines, &mut picture, run, of)?;
            write_scenario(&ScenarioReport { command: "minimise", ..report }, &args.outputs)?;
        }
        return Ok(Status::Held);
    };
    fuzz::write_minimal(&mut stdout, &mut machines, &mut picture, &minimal)?;
    let out = args.out.clone().unwrap_or_else(|| match file {
        Some(file) => fuzz::minimal_beside(file),
        None => {
            let name = format!("seed-{}-minimal.toml", case.scenario.seed);
            args.keep.join("failures").join(name)
        }
    });
    let status = minimal.outcome.ending.status();
    let failure = Seen::of(&minimal.outcome, ring, &name);
    Case { failure, scenario: minimal.scenario.clone() }.write(&out)?;
    let replay = format!("{} replay {}", program(), out.display());
    let _ = writeln!(stdout, "{}\n  {replay}", out.display());
    if args.outputs.any() {
        let of = (ring, name.as_str());
        let report = ScenarioReport::of_minimal(&mut machines, &mut picture, &minimal, of)?;
        let report = ScenarioReport { replay: Some(replay), ..report };
        write_scenario(&report, &args.outputs)?;
    }
    Ok(status)
}
