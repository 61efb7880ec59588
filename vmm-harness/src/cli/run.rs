//! `run`: the guest under load while CPUs come and go.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use percpu_guest::abi::{BootMode, Fault};

use super::outputs::Outputs;
use super::{DEFAULT_SECONDS, EngineArg, ImageArg, interrupted, new_seed, prepare, seconds, seed};
use crate::error::{Error, Status};
use crate::guest::{Kind, program};
use crate::host::RingChoice;
use crate::image::Image;
use crate::report;
use crate::run::{self, Length, RunConfig};

/// All workloads there are.
const ALL: &str = "all";
/// CPUs that can be, unless said otherwise.
const MAX_CPUS: u32 = 8;

#[derive(clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    image: ImageArg,
    /// CPUs that are online at the start.
    #[arg(long, default_value_t = 4, value_name = "N")]
    cpus: u32,
    /// CPUs that can be plugged in at most [default: 8, or --cpus if that is more].
    #[arg(long, value_name = "N")]
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
    /// What the guest does: all workloads of its image at once, or those named, as in statics,counter.
    #[arg(long, default_value = ALL, value_name = "NAME", value_delimiter = ',')]
    workload: Vec<String>,
    /// How CPUs are started: by the guest with INIT-SIPI, or directly by the host.
    #[arg(long, default_value = "direct")]
    boot: Boot,
    #[command(flatten)]
    engine: EngineArg,
    /// The guest's privilege level; auto takes 0 unless this host emulates it.
    #[arg(long, default_value = "auto")]
    ring: RingChoice,
    /// Seed of every random choice [default: a new one each time].
    #[arg(long, value_name = "X", value_parser = seed)]
    seed: Option<u64>,
    #[command(flatten)]
    outputs: Outputs,
    /// Make the guest misbehave on purpose, to see how that is reported.
    #[arg(long, default_value = "none", value_name = "NAME", value_parser = fault, hide = true)]
    fault: Fault,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Boot {
    Sipi,
    Direct,
}

impl From<Boot> for BootMode {
    fn from(boot: Boot) -> Self {
        match boot {
            Boot::Sipi => Self::Sipi,
            Boot::Direct => Self::Direct,
        }
    }
}

/// The workloads that are asked for.
fn workloads(named: &[String], image: &Image) -> Result<Vec<String>, Error> {
    if named == [ALL] {
        return Ok(image.workloads().names().map(str::to_owned).collect());
    }
    let mut names = Vec::new();
    for name in named {
        image.workloads().check(name).map_err(Error::Usage)?;
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    Ok(names)
}

fn fault(name: &str) -> Result<Fault, String> {
    Fault::ALL.iter().copied().find(|fault| fault.name() == name).ok_or_else(|| {
        let names: Vec<_> = Fault::ALL.iter().map(|f| f.name()).collect();
        format!("there is no such fault: give {}", names.join(", "))
    })
}

pub fn run(args: RunArgs, process_start: Instant) -> Result<Status, Error> {
    let max_cpus = args.max_cpus.unwrap_or(MAX_CPUS.max(args.cpus));
    let length = match (args.plugs, args.passes, args.seconds) {
        (Some(plugs), ..) => Length::Plugs(plugs),
        (None, Some(passes), _) => Length::Passes(passes),
        (None, None, seconds) => {
            Length::Time(Duration::from_secs_f64(seconds.unwrap_or(DEFAULT_SECONDS)))
        }
    };
    run::check_cpus(args.cpus, max_cpus)?;
    let image = args.image.open(Kind::Usual)?;
    let workloads = workloads(&args.workload, &image)?;
    run::check_length(length, &workloads)?;
    let (host, ring) = prepare(&image, max_cpus, &args.engine, args.ring)?;
    let seed = args.seed.unwrap_or_else(new_seed);
    let mut config = RunConfig {
        cpus: args.cpus,
        max_cpus,
        length,
        work: None,
        workloads,
        boot: args.boot.into(),
        ring,
        seed,
        fault: args.fault,
        live: true,
        replay: String::new(),
        process_start,
    };
    run::check_boot(config.boot, host.engine)?;
    config.replay = replay_command(&config, &args.workload.join(","));
    args.outputs.check()?;
    let interrupted = interrupted()?;
    let report = run::run(&image, &config, &host, &interrupted)?;
    let stdout = std::io::stdout();
    let colours = report::colours_wanted(&stdout);
    // A closed pipe is the reader's choice, and the verdict is in the exit status too.
    let _ = report::write_table(&mut stdout.lock(), &report, colours);
    let page = || Ok(report.page().render());
    args.outputs.write(|| report.to_json(), || report.to_junit(), page)?;
    Ok(report.verdict.status())
}

fn replay_command(config: &RunConfig, workload: &str) -> String {
    let length = match config.length {
        Length::Time(time) => format!("--seconds {}", time.as_secs_f64()),
        Length::Plugs(plugs) => format!("--plugs {plugs}"),
        Length::Passes(passes) => format!("--passes {passes}"),
    };
    let fault = match config.fault {
        Fault::None => String::new(),
        fault => format!(" --fault {}", fault.name()),
    };
    format!(
        "{} run --cpus {} --max-cpus {} {length} --workload {workload} --boot {} --ring {} --seed {:#x}{fault}",
        program(),
        config.cpus,
        config.max_cpus,
        run::boot_mode_name(config.boot),
        config.ring,
        config.seed,
    )
}
