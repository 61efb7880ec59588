//! A VM that goes through one scenario after the other.

use percpu_guest::abi::{BootMode, BootParams, Doorbell};

use super::cpus::{Clock, Cpus};
use super::restore::Snapshot;
use super::run::{Outcome, Run};
use super::scenario::{Scenario, Topology};
use super::schedule::Schedule;
use crate::coverage::{Covered, Features};
use crate::crash;
use crate::diag::backtrace;
use crate::error::Error;
use crate::image::Image;
use crate::memory::GuestMem;
use crate::run::boot_defaults;
use crate::vm::{self, Engine, Registers, SerialVm, VmConfig};

/// Steps a microsecond of the guest's clock.
const STEPS_A_US: u32 = 100;
/// Bytes of guest memory.
const MEMORY: u64 = 64 << 20;
/// Bytes at its end that the guest does not know of, for the host's use.
const KEPT: u64 = 2 << 20;
/// Steps, and calls of the host, after which a guest that boots counts as hung.
const BOOT_STEPS: u64 = 100_000_000;
const BOOT_BELLS: u64 = 10_000;

/// Few CPUs, so that twice their number is more: the batch follows them up and down, and folds come
/// often in a short run.
const SMALLEST_BATCH: u32 = 2;

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
    pub fn boot(
        image: &'a Image,
        topology: Topology,
        engine: Engine,
        ring: u8,
    ) -> Result<Self, Error> {
        if image.header().restore == 0 {
            return Err(Error::not_instrumented(image.path()));
        }
        let boot = BootParams {
            tsc_mhz: STEPS_A_US,
            possible: topology.possible,
            boot_cpus: topology.boot_cpus,
            boot_mode: BootMode::Direct as u32,
            smallest_batch: SMALLEST_BATCH,
            ..boot_defaults(ring)
        };
        let vm = SerialVm::new(image, VmConfig { engine, boot, memory: MEMORY, kept: KEPT })?;
        let mem = GuestMem::new(vm.memory().clone());
        let mut machine = Self {
            image,
            vm,
            topology,
            cpus: Cpus::new(mem.clone()),
            clock: Clock::new(mem.clone()),
            mem,
            snapshot: None,
        };
        machine.go_to_ready()?;
        let snapshot = Snapshot::take(
            &mut machine.vm,
            image,
            &machine.mem,
            topology.possible,
            MEMORY - KEPT..MEMORY,
        )?;
        machine.snapshot = Some(snapshot);
        Ok(machine)
    }

    /// Runs the guest until it says that it has booted.
    fn go_to_ready(&mut self) -> Result<(), Error> {
        self.cpus.ask_at(BOOT_STEPS)?;
        for _ in 0..BOOT_BELLS {
            match Run::new(self).advance() {
                Ok(Doorbell::Ready) => return Ok(()),
                Ok(Doorbell::Switch) => break,
                Ok(_) => {}
                Err(stopped) => return Err(Error::GuestBoot(stopped.describe(self).to_string())),
            }
        }
        Err(Error::GuestBoot(format!("it is not done after {BOOT_STEPS} steps")))
    }

    /// Puts the guest back to where it had booted, and lets it go through a scenario.
    pub fn run(&mut self, scenario: &Scenario) -> Result<Outcome, Error> {
        assert_eq!(self.topology, scenario.topology, "the machine was booted for the scenario");
        let mut snapshot = self.snapshot.take().expect("every machine has booted");
        let restored = snapshot.restore(&mut self.vm);
        self.snapshot = Some(snapshot);
        let reset = restored?;
        let outcome = Run::new(self).complete(scenario, Schedule::of(scenario))?;
        let mut features = self.features()?;
        features.note_stays(outcome.trace.stays().map(|stay| (stay.cpu.into(), stay.sites[0])));
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

    /// Where the CPU stands that runs: return addresses, the innermost first.
    pub(super) fn stands(&self) -> Vec<u64> {
        let Some(Registers { regs, .. }) = self.vm.registers() else { return Vec::new() };
        let frames = backtrace(&self.mem, regs.rip, regs.rbp, regs.rsp);
        // The innermost is the instruction itself, which is no call.
        let addresses = frames.iter().map(|frame| frame.rip);
        addresses.enumerate().map(|(i, rip)| rip.wrapping_add(u64::from(i == 0))).collect()
    }

    pub(super) fn scene<'s>(&'s self, judge: Option<&'s crate::judge::Judge>) -> crash::Scene<'s> {
        crash::Scene {
            vm: self,
            mem: &self.mem,
            image: self.image,
            judge,
            possible: self.topology.possible,
        }
    }
}

/// The guest's CPUs, of which the vCPU is one; the others stand where they stopped.
impl vm::Machine for Machine<'_> {
    fn stop(&self) {}

    fn registers(&self) -> Vec<(u32, Option<Registers>)> {
        let running = self.cpus.running().unwrap_or(0);
        let of = |cpu| {
            if cpu == running {
                return self.vm.registers();
            }
            self.cpus.registers(cpu).ok().flatten()
        };
        (0..self.topology.possible).map(|cpu| (cpu, of(cpu))).collect()
    }
}
