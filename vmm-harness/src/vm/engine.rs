//! What executes the guest's instructions, as the machines above see it.

use std::fmt;
use std::sync::Arc;

use kvm_bindings::{kvm_regs, kvm_sregs};
use serde::{Deserialize, Serialize};

use super::boot::Entry;
use super::vcpu::Crash;
use crate::error::Error;

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// KVM: a CPU is a vCPU, the guest has memory of its own.
    #[default]
    Kvm,
    /// This process: a CPU is a thread, the guest lies at its own addresses among ours.
    Threads,
}

impl Engine {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Threads => "threads",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The engine of one guest: makes its CPUs and interrupts them. Holds guest memory for as long as
/// anything can run in it.
pub(super) trait Board: Send + Sync + fmt::Debug {
    /// A CPU that was never there. It lives as long as whoever gets it, at most as long as the board.
    fn create_cpu(&self, cpu: u32) -> Result<Box<dyn Cpu>, Error>;

    /// Raises `vector` on `cpu`, as a device's message-signalled interrupt does.
    fn interrupt(&self, cpu: u32, vector: u8) -> Result<(), Error>;
}

/// One CPU of the guest. It executes while somebody is in [`run`](Self::run), on that thread.
pub(super) trait Cpu: Send {
    /// Ticks of its time stamp counter a millisecond.
    fn tsc_khz(&self) -> Result<u32, Error>;

    /// Gives it the state of a new CPU that is about to execute its entry's first instruction.
    fn begin(&mut self, entry: &Entry) -> Result<(), Error>;

    /// Gives it the state of a new CPU that waits for INIT and SIPI.
    fn await_sipi(&mut self) -> Result<(), Error>;

    /// Waits until nothing of the host's is in the way of a run on this thread, which is to follow.
    fn ready(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Executes until it leaves the guest. It does at once while its [`Stopper`] is set, and when the
    /// thread gets the signal of [`kick`](super::kick).
    fn run(&mut self) -> Exit;

    /// Finishes the instruction that rang a doorbell: to be called before anything else than
    /// [`run`](Self::run).
    fn finish(&mut self) {}

    /// What ends a run that is about to begin.
    fn stopper(&self) -> Arc<dyn Stopper>;

    /// The registers; `None` if they cannot be read.
    fn registers(&self) -> Option<Registers>;

    /// The state between two instructions, from which [`load`](Self::load) lets it go on.
    fn save(&mut self) -> Result<Saved, Error>;

    /// Puts it back to where it was. Everything else of it (vector registers, model-specific registers,
    /// the APIC) the guest does not change once it runs.
    fn load(&mut self, saved: &Saved) -> Result<(), Error>;

    /// Makes it forget the translations it remembers. It is given `saved` thereby.
    fn load_and_forget(&mut self, saved: &Saved) -> Result<(), Error>;
}

/// The flag that keeps a CPU out of the guest. Set first and the thread kicked then, it ends a run
/// whether that has begun or not.
pub(super) trait Stopper: Send + Sync {
    /// Sets or clears it.
    fn set(&self, on: bool);
}

/// Why a CPU has left the guest.
#[derive(Debug)]
pub(super) enum Exit {
    /// A store to the doorbell page.
    Doorbell(u64),
    /// No reason of its own: it may go on.
    Nothing,
    /// It cannot go on.
    Crash(Crash),
}

/// Registers of a CPU between two instructions, in KVM's words. Where there is no KVM, of the second
/// half the GS base counts.
#[derive(Debug, Clone)]
pub struct Saved {
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
}

/// General registers and those that say where the CPU is.
#[derive(Debug, Clone, Copy)]
pub struct Registers {
    /// General registers.
    pub regs: kvm_regs,
    /// Control register 2: the last faulting address.
    pub cr2: u64,
    /// GS base.
    pub gs_base: u64,
    /// Current privilege level.
    pub cpl: u8,
}
