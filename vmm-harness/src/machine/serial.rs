//! A VM that goes through one scenario after the other.

use percpu_guest::abi::{BootMode, BootParams, Doorbell};

use super::cpus::{Clock, Cpus, Standing};
use super::restore::Snapshot;
use super::run::{Outcome, Run};
use super::scenario::{Scenario, Topology};
use super::schedule::Scheduler;
use crate::coverage::{Covered, Features};
use crate::crash;
use crate::diag::Symbols;
use crate::error::Error;
use crate::image::Image;
use crate::memory::GuestMem;
use crate::run::boot_defaults;
use crate::vm::{SerialVm, VmConfig};

/// Steps a microsecond of the guest's clock.
const STEPS_A_US: u32 = 100;
/// Bytes of guest memory.
const MEMORY: u64 = 64 << 20;
/// Bytes at its end that the guest does not know of, for the host's use.
const KEPT: u64 = 2 << 20;
/// How often a guest that boots may ring before it counts as hung.
const BOOT_BELLS: u64 = 10_000;

/// The deterministic machine.
pub struct Machine<'a> {
    pub(super) image: &'a Image,
    pub(super) vm: SerialVm,
    pub(super) mem: GuestMem,
    pub(super) topology: Topology,
    pub(super) cpus: Cpus,
    pub(super) clock: Clock,
    /// The moment from which every run begins.
    snapshot: Option<Snapshot>,
}

impl<'a> Machine<'a> {
    /// Boots a guest up to the moment from which every run begins.
    pub fn boot(image: &'a Image, topology: Topology, ring: u8) -> Result<Self, Error> {
        if image.header().restore == 0 {
            return Err(Error::not_instrumented(image.path()));
        }
        let boot = BootParams {
            tsc_mhz: STEPS_A_US,
            possible: topology.possible,
            boot_cpus: topology.boot_cpus,
            boot_mode: BootMode::Direct as u32,
            ..boot_defaults(ring)
        };
        let vm = SerialVm::new(image, VmConfig { boot, memory: MEMORY, kept: KEPT })?;
        let mem = GuestMem::new(vm.memory().clone());
        let mut machine = Self {
            image,
            vm,
            topology,
            cpus: Cpus::new(mem.clone(), topology.possible),
            clock: Clock::new(mem.clone()),
            mem,
            snapshot: None,
        };
        machine.go_to_ready()?;
        let snapshot = Snapshot::take(&mut machine.vm, image, &machine.mem, &machine.cpus)?;
        machine.snapshot = Some(snapshot);
        Ok(machine)
    }

    /// Runs the guest until it says that it has booted.
    fn go_to_ready(&mut self) -> Result<(), Error> {
        self.vm.start(0)?;
        self.cpus.set(0, Standing::Ready);
        for _ in 0..BOOT_BELLS {
            match Run::new(self, Scheduler::boot()).advance() {
                Ok((Doorbell::Ready, _)) => return Ok(()),
                Ok(_) => {}
                Err(stopped) => return Err(Error::GuestBoot(stopped.describe(self).to_string())),
            }
        }
        Err(Error::GuestBoot(format!("it is not done after {BOOT_BELLS} exits")))
    }

    /// Puts the guest back to where it had booted, and lets it go through a scenario; with symbols,
    /// the outcome says where CPUs stood.
    pub fn run(
        &mut self,
        scenario: &Scenario,
        symbols: Option<&Symbols>,
    ) -> Result<Outcome, Error> {
        assert_eq!(self.topology, scenario.topology, "the machine was booted for the scenario");
        let mut snapshot = self.snapshot.take().expect("every machine has booted");
        let restored = snapshot.restore(&mut self.vm, &mut self.cpus);
        self.snapshot = Some(snapshot);
        let reset = restored?;
        let (now, points) = (self.clock.now()?, self.clock.points()?);
        let run = Run::new(self, Scheduler::new(scenario, now, points)).name_places(symbols);
        let outcome = run.complete(scenario)?;
        let features = self.features()?;
        Ok(Outcome { reset, features, ..outcome })
    }

    /// What the guest has reached by now, boot included.
    pub fn features(&self) -> Result<Features, Error> {
        let edges = match self.image.edges() {
            Some(edges) => edges.read(&self.mem)?,
            None => Covered::new(),
        };
        Ok(Features { edges, ..Features::new() })
    }

    pub(super) fn scene<'s>(&'s self, judge: Option<&'s crate::judge::Judge>) -> crash::Scene<'s> {
        crash::Scene {
            vm: &self.vm,
            mem: &self.mem,
            image: self.image,
            judge,
            possible: self.topology.possible,
        }
    }
}
