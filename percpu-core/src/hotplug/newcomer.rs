//! The side of the CPU that comes and goes.

use core::fmt;
use core::ops::Range;

use super::record::{Phase, Request, record};
use super::standing::{CpuState, set_state};
use super::steps::{self, Section};
use crate::cpu::{CpuId, MASKS};
use crate::irq;
use crate::platform::{Global, Platform};

/// Why a CPU that arrived is sent away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArriveError {
    /// Nobody waits for it, or no longer.
    NotExpected,
    /// A STARTING step failed; the ones before it were undone.
    StepFailed,
}

impl fmt::Display for ArriveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotExpected => "nobody waits for this CPU",
            Self::StepFailed => "a STARTING step failed on this CPU",
        })
    }
}

impl core::error::Error for ArriveError {}

/// What a CPU's hotplug thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serve {
    /// Nothing: there was no request.
    Idle,
    /// Ask again: a request was served.
    Worked,
    /// Take the CPU down: [`die`], then [`dead`].
    Die,
}

/// Reports a freshly started CPU to the one that started it, and runs its STARTING steps. On
/// success the CPU is online. Linux: `notify_cpu_starting` and `cpuhp_ap_sync_alive`.
///
/// # Errors
///
/// The CPU is not wanted. It executes nothing more, until it is started anew.
///
/// # Safety
///
/// The caller is `cpu`, just started; its offset is installed, interrupts are masked, and it holds
/// no guard.
pub unsafe fn arrive(cpu: CpuId) -> Result<(), ArriveError> {
    let record = record(cpu);
    let mut spins = 0;
    while record.phase() == Phase::Kicked {
        Global::relax(spins);
        spins = spins.saturating_add(1);
    }
    if !record.advance(Phase::Go, Phase::Starting) {
        return Err(ArriveError::NotExpected);
    }
    let positions = steps::positions(Section::Starting);
    for position in positions.clone() {
        let step = steps::at(position);
        set_state(cpu, CpuState::GoingUp(Some(step.id)));
        if let Err(error) = step.start_up(cpu, None) {
            undo(cpu, positions.start..position);
            record.set_failed_step(step.id, error);
            record.set_phase(Phase::Failed);
            return Err(ArriveError::StepFailed);
        }
    }
    // In this order a reader of starting ∪ online ∪ dying finds the CPU at every moment.
    MASKS.online.set(cpu, true);
    MASKS.starting.set(cpu, false);
    record.set_phase(Phase::Online);
    Ok(())
}

/// Serves one request to `cpu`'s hotplug thread: the start-up or tear-down of one ONLINE step.
/// Linux: `cpuhp_thread_fun`.
///
/// Called in a loop by a thread that is bound to `cpu`, with interrupts and preemption on.
pub fn serve(cpu: CpuId) -> Serve {
    let record = record(cpu);
    if record.is_early() {
        record.set_early(false);
    }
    let request = record.request();
    match request {
        Request::StartUp | Request::TearDown | Request::Undo | Request::Redo => {}
        Request::Die => return Serve::Die,
        Request::None | Request::Running | Request::Done => return Serve::Idle,
    }
    let Some((slot, instance)) = record.claim(request) else { return Serve::Idle };
    let step = steps::in_slot(slot).expect("a step stays while it is asked for");
    // A STARTING step finds interrupts masked, also when it is registered while the CPU is up.
    let irq = (step.section == Section::Starting).then(irq::disable);
    let result = request.carry_out(&step, cpu, instance);
    drop(irq);
    record.answer(result);
    Serve::Worked
}

/// Whether [`serve`] would find a request: for a scheduler that wakes the hotplug thread only then.
pub fn has_work(cpu: CpuId) -> bool {
    !matches!(record(cpu).request(), Request::None | Request::Running | Request::Done)
}

/// Takes this CPU out of the online mask and runs the STARTING tear-downs. Linux: `take_cpu_down`.
///
/// # Safety
///
/// The caller is `cpu`, which got [`Serve::Die`] and then masked interrupts; nothing but the
/// caller's way to [`dead`] runs on it from now on.
pub unsafe fn die(cpu: CpuId) {
    let record = record(cpu);
    // In this order a reader of online ∪ dying finds the CPU at every moment.
    MASKS.dying.set(cpu, true);
    MASKS.online.set(cpu, false);
    record.clear_request();
    record.set_phase(Phase::Dying);
    undo(cpu, steps::positions(Section::Starting));
}

/// Runs tear-downs in reverse.
fn undo(cpu: CpuId, positions: Range<usize>) {
    for position in positions.rev() {
        let step = steps::at(position);
        set_state(cpu, CpuState::GoingDown(Some(step.id)));
        step.undo(cpu, None);
    }
}

/// Says that this CPU is dead: its last access to anything that others use. Linux:
/// `cpuhp_ap_report_dead`.
///
/// # Safety
///
/// The caller is `cpu`, after [`die`]; it executes nothing more that touches memory that others, or
/// its next life, rely on.
pub unsafe fn dead(cpu: CpuId) {
    record(cpu).advance(Phase::Dying, Phase::Dead);
}
