//! Machines that are kept from run to run, one for each topology.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use percpu_guest::abi::Stay;

use super::{FuzzConfig, MachineKind, Parallel, Picture, Style};
use crate::diag::Symbols;
use crate::error::Error;
use crate::image::Image;
use crate::machine::{Entry, Machine, Outcome, Scenario, Schedule, Strategy, Topology, Trace};
use crate::vm::Engine;

/// Changes of a schedule of which each is looked for.
const MOST_STRIKES: usize = 32;

/// Machines, one for each topology that was asked for.
pub struct Machines<'a> {
    image: &'a Image,
    engine: Engine,
    ring: u8,
    made: HashMap<Topology, Machine<'a>>,
    /// In place of all those.
    parallel: Option<Parallel<'a>>,
}

impl<'a> Machines<'a> {
    /// None yet.
    pub fn new(image: &'a Image, engine: Engine, ring: u8) -> Self {
        Self { image, engine, ring, made: HashMap::new(), parallel: None }
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
        Ok(Self { parallel, ..Self::new(image, config.host.engine, config.ring) })
    }

    /// Runs a scenario on the machine that fits.
    pub fn run(&mut self, scenario: &Scenario) -> Result<Outcome, Error> {
        scenario.check().map_err(|flaw| Error::Usage(flaw.to_string()))?;
        match &self.parallel {
            Some(parallel) => parallel.run(scenario),
            None => self.machine(scenario)?.run(scenario),
        }
    }

    /// Where CPUs stood: functions and lines for each [`Entry::Stay`], the innermost first.
    pub fn places(&self, trace: &Trace) -> Vec<String> {
        let symbols = Symbols::load(self.image.bytes());
        let place = |stay: &Stay| {
            let sites = stay.sites.iter().take_while(|&&site| site != 0).take(2);
            sites.map(|site| symbols.describe(site - 1)).collect::<Vec<_>>().join(" < ")
        };
        trace.stays().map(place).collect()
    }

    /// What draws runs of this guest.
    pub fn picture(&self, style: Style) -> Picture {
        Picture::new(Symbols::load(self.image.bytes()), style)
    }

    /// What each change of a given schedule does: the first stay of a run that is another one without
    /// it. `None` where it does nothing, and nothing at all where there are many.
    pub fn strikes(&mut self, scenario: &Scenario) -> Result<Vec<Option<Stay>>, Error> {
        let Strategy::Given(schedule) = &scenario.strategy else { return Ok(Vec::new()) };
        if schedule.changes.len() > MOST_STRIKES || self.parallel.is_some() {
            return Ok(Vec::new());
        }
        let mut strikes = Vec::new();
        let mut before: Option<Trace> = None;
        for n in 0..=schedule.changes.len() {
            let changes = schedule.changes[..n].to_vec();
            let strategy = Strategy::Given(Schedule { changes, ..schedule.clone() });
            let trace = self.run(&Scenario { strategy, ..scenario.clone() })?.trace;
            if let Some(before) = before {
                let from = before.parting(&trace).map(|(at, ..)| at);
                let stays = from.map(|from| &trace.entries()[from..]).unwrap_or_default();
                strikes.push(stays.iter().find_map(|entry| match entry {
                    Entry::Stay(stay) => Some(*stay),
                    _ => None,
                }));
            }
            before = Some(trace);
        }
        Ok(strikes)
    }

    fn machine(&mut self, scenario: &Scenario) -> Result<&mut Machine<'a>, Error> {
        let topology = scenario.topology;
        if !self.made.contains_key(&topology) {
            self.made
                .insert(topology, Machine::boot(self.image, topology, self.engine, self.ring)?);
        }
        Ok(self.made.get_mut(&topology).expect("just made"))
    }
}
