//! Machines that are kept from run to run, one for each topology.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use percpu_guest::abi::Stay;

use super::{FuzzConfig, MachineKind, Parallel};
use crate::diag::Symbols;
use crate::error::Error;
use crate::image::Image;
use crate::machine::{Machine, Outcome, Scenario, Topology, Trace};

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

    fn machine(&mut self, scenario: &Scenario) -> Result<&mut Machine<'a>, Error> {
        let topology = scenario.topology;
        if !self.made.contains_key(&topology) {
            self.made.insert(topology, Machine::boot(self.image, topology, self.ring)?);
        }
        Ok(self.made.get_mut(&topology).expect("just made"))
    }
}
