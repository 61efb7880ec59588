//! Machines that are kept from run to run, one for each topology.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use super::{FuzzConfig, MachineKind, Parallel};
use crate::diag::Symbols;
use crate::error::Error;
use crate::image::Image;
use crate::machine::{Machine, Outcome, Scenario, Topology};

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
