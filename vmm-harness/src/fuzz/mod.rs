//! Fuzzing: scenarios out of seeds, one run after the other, on machines that are kept and reset.

mod case;
mod live;
mod minimise;
mod parallel;
mod report;
mod seen;
mod show;
pub(crate) mod store;

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use case::{Case, minimal_beside};
pub use minimise::{Minimal, minimise};
pub use parallel::Parallel;
pub use report::{Failure, FuzzReport, write_report};
pub use seen::{Likeness, Seen, image_name};
pub use show::{write_minimal, write_replay};

use crate::diag::Symbols;
use crate::error::Error;
use crate::host::HostInfo;
use crate::image::Image;
use crate::machine::{Ending, Machine, Outcome, Scenario, Topology};
use live::Live;

/// What scenarios run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineKind {
    /// One CPU at a time, as the seed says.
    #[default]
    Deterministic,
    /// A thread a CPU.
    Parallel,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct FuzzConfig {
    /// Seeds, in order.
    pub seeds: Range<u64>,
    /// No run begins after this time.
    pub time: Option<Duration>,
    /// Each seed runs on two machines, and the traces are compared.
    pub verify: bool,
    /// Failures after which it ends.
    pub most_failures: u64,
    /// Directory of the failures' files.
    pub failures: PathBuf,
    /// The guest's privilege level.
    pub ring: u8,
    /// The machine.
    pub machine: MachineKind,
    /// What the host can do.
    pub host: HostInfo,
}

/// Machines, one for each topology that was asked for.
pub struct Machines<'a> {
    image: &'a Image,
    ring: u8,
    made: HashMap<Topology, Machine<'a>>,
    /// In place of all those.
    parallel: Option<Parallel<'a>>,
}

impl<'a> Machines<'a> {
    /// None yet.
    pub fn new(image: &'a Image, ring: u8) -> Self {
        Self { image, ring, made: HashMap::new(), parallel: None }
    }

    /// The machines that `config` asks for.
    pub fn of(
        image: &'a Image,
        config: &FuzzConfig,
        interrupted: &'a AtomicBool,
    ) -> Result<Self, Error> {
        let parallel = match config.machine {
            MachineKind::Deterministic => None,
            MachineKind::Parallel => {
                Some(Parallel::new(image, config.host.clone(), config.ring, interrupted)?)
            }
        };
        Ok(Self { parallel, ..Self::new(image, config.ring) })
    }

    /// Runs a scenario on the machine that fits.
    pub fn run(&mut self, scenario: &Scenario) -> Result<Outcome, Error> {
        scenario.check().map_err(|flaw| Error::Usage(flaw.to_string()))?;
        match &self.parallel {
            Some(parallel) => parallel.run(scenario),
            None => self.machine(scenario)?.run(scenario, None),
        }
    }

    /// The same, saying where CPUs stood.
    pub fn explain(&mut self, scenario: &Scenario) -> Result<Outcome, Error> {
        let symbols = Symbols::load(self.image.bytes());
        self.machine(scenario)?.run(scenario, Some(&symbols))
    }

    fn machine(&mut self, scenario: &Scenario) -> Result<&mut Machine<'a>, Error> {
        let topology = scenario.topology;
        if !self.made.contains_key(&topology) {
            self.made.insert(topology, Machine::boot(self.image, topology, self.ring)?);
        }
        Ok(self.made.get_mut(&topology).expect("just made"))
    }
}

/// Runs the seeds and reports.
pub fn run(
    image: &Image,
    config: &FuzzConfig,
    interrupted: &AtomicBool,
) -> Result<FuzzReport, Error> {
    let began = Instant::now();
    let mut machines = Machines::of(image, config, interrupted)?;
    let mut others = Machines::new(image, config.ring);
    let mut report = FuzzReport::new(config);
    let mut live = Live::new();
    for seed in config.seeds.clone() {
        let late = config.time.is_some_and(|time| began.elapsed() >= time);
        report.interrupted = interrupted.load(Ordering::Relaxed);
        if late || report.interrupted || report.failures.len() as u64 >= config.most_failures {
            break;
        }
        let scenario = Scenario::from_seed(seed);
        let outcome = machines.run(&scenario)?;
        report.add(&outcome);
        let mut seen = Seen::of(&outcome, config.ring, image);
        if let (MachineKind::Parallel, Some(seen), Ending::Crashed(crash) | Ending::Hung(crash)) =
            (config.machine, &mut seen, &outcome.ending)
        {
            // Whoever cannot replay it to see more needs to see all of it now.
            seen.detail = crash.to_string();
        }
        if config.verify {
            let again = others.run(&scenario)?;
            let differ = Seen::of_two(&outcome, &again, config.ring, image);
            report.verified += u64::from(differ.is_none());
            seen = differ.or(seen);
        }
        if let Some(seen) = seen {
            let case = Case { failure: Some(seen), scenario };
            let file = case.write_below(&config.failures)?;
            live.say(&report.add_failure(&case, &file).to_string());
        }
        report.seconds = began.elapsed().as_secs_f64();
        live.show(&report);
    }
    live.finish();
    Ok(report)
}
