//! Where each CPU stands on its way up or down, for whoever asks, and which steps it is without.
//!
//! Not kept in per-CPU memory: a CPU may be asked about that has none yet.

use core::sync::atomic::{AtomicU64, Ordering};

use super::steps::StepId;
use crate::cpu::{self, CpuId, NR_CPUS};

/// Where a CPU stands, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuState {
    /// It is down: it was never brought up, or all tear-downs were run.
    Offline,
    /// Start-ups run: it is brought up, or a failed take-down is rolled back.
    GoingUp(
        /// The latest step whose start-up was begun.
        Option<StepId>,
    ),
    /// It is up: all start-ups were run.
    Online,
    /// Tear-downs run: it is taken down, or a failed bring-up is rolled back.
    GoingDown(
        /// The latest step whose tear-down was begun.
        Option<StepId>,
    ),
}

/// Each CPU's [`CpuState`]: [`OFFLINE`] and so on in the lowest bits, and above them the step's id plus
/// one.
static STATES: [AtomicU64; NR_CPUS] = [const { AtomicU64::new(OFFLINE) }; NR_CPUS];

const OFFLINE: u64 = 0;
const GOING_UP: u64 = 1;
const ONLINE: u64 = 2;
const GOING_DOWN: u64 = 3;
/// Bits of these.
const KIND_BITS: u32 = 2;

/// Where `cpu` stands at this moment; where it stays while a
/// [`CpusReadGuard`](super::CpusReadGuard) is held. One load. Linux: the files `state` and `target`
/// of a CPU's `hotplug` directory.
pub fn state(cpu: CpuId) -> CpuState {
    let code = STATES[cpu.index()].load(Ordering::Relaxed);
    let step = (code >> KIND_BITS).checked_sub(1).map(StepId::from_bits);
    match code & ((1 << KIND_BITS) - 1) {
        GOING_UP => CpuState::GoingUp(step),
        ONLINE => CpuState::Online,
        GOING_DOWN => CpuState::GoingDown(step),
        _ => CpuState::Offline,
    }
}

/// Says where `cpu` stands; called by whoever moves it.
pub(super) fn set_state(cpu: CpuId, state: CpuState) {
    let with = |step: Option<StepId>| step.map_or(0, |step| (step.bits() + 1) << KIND_BITS);
    let code = match state {
        CpuState::Offline => OFFLINE,
        CpuState::GoingUp(step) => GOING_UP | with(step),
        CpuState::Online => ONLINE,
        CpuState::GoingDown(step) => GOING_DOWN | with(step),
    };
    STATES[cpu.index()].store(code, Ordering::Relaxed);
}

/// Steps that a CPU is up without, by slot: a start-up failed when a take-down was rolled back.
/// Their tear-downs are skipped, so that none runs for what was not started.
static MISSING: [AtomicU64; NR_CPUS] = [const { AtomicU64::new(0) }; NR_CPUS];

/// Records that `cpu` is up without the step.
pub(super) fn set_missing(step: StepId, cpu: CpuId) {
    MISSING[cpu.index()].fetch_or(1 << step.index(), Ordering::Relaxed);
}

/// Whether `cpu` is up without the step.
pub(super) fn is_missing(step: StepId, cpu: CpuId) -> bool {
    MISSING[cpu.index()].load(Ordering::Relaxed) & 1 << step.index() != 0
}

/// Forgets that `cpu` was up without the step; whether it was.
pub(super) fn take_missing(step: StepId, cpu: CpuId) -> bool {
    let bit = 1 << step.index();
    MISSING[cpu.index()].fetch_and(!bit, Ordering::Relaxed) & bit != 0
}

/// Forgets it for all CPUs.
pub(super) fn clear_missing(step: StepId) {
    for cpu in cpu::possible().iter() {
        take_missing(step, cpu);
    }
}
