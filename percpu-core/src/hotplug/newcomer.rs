//! The side of the CPU that comes and goes.

use core::fmt;
use core::ops::Range;

use super::record::{Phase, Record, Request, record, try_record};
use super::standing::{CpuState, set_state};
use super::steps::{self, Section, StepError};
use super::{callback, control};
use crate::cpu::{self, CpuId, MASKS};
use crate::platform::{Global, Platform};
use crate::unwind::for_each_to_the_end;

/// Why a CPU that arrived is sent away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArriveError {
    /// Nobody waits for it, or no longer; or it has no unit yet, because it was never brought up.
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
/// # Panics
///
/// If a STARTING step does. The CPU is sent away then, as for an error.
///
/// # Safety
///
/// The caller is `cpu`, just started; its offset is installed, interrupts are masked, and it holds
/// no guard. A CPU that was started unasked may have no offset to install
/// ([`try_offset`](crate::area::try_offset)); it gets the error, too.
pub unsafe fn arrive(cpu: CpuId) -> Result<(), ArriveError> {
    let record = try_record(cpu).ok_or(ArriveError::NotExpected)?;
    let mut spins = 0;
    while record.phase() == Phase::Kicked {
        Global::relax(spins);
        spins = spins.saturating_add(1);
    }
    if !record.advance(Phase::Go, Phase::Starting) {
        return Err(ArriveError::NotExpected);
    }
    let positions = steps::positions(Section::Starting);
    let done = positions.start..positions.start;
    let mut way = Starting { cpu, record, done, error: StepError::PANICKED };
    for position in positions {
        let step = steps::at(position);
        set_state(cpu, CpuState::GoingUp(Some(step.id)));
        if let Err(error) = callback::run_on(cpu, || step.start_up(cpu, None)) {
            way.error = error;
            return Err(ArriveError::StepFailed);
        }
        way.done.end = position + 1;
    }
    core::mem::forget(way);
    // In this order a reader of starting ∪ online ∪ dying finds the CPU at every moment.
    MASKS.online.set(cpu, true);
    MASKS.starting.set(cpu, false);
    record.set_phase(Phase::Online);
    Ok(())
}

/// A CPU that runs its STARTING steps. Dropping it undoes them, and has the CPU sent away.
struct Starting {
    cpu: CpuId,
    record: &'static Record,
    /// The steps that were started up; the one behind them failed.
    done: Range<usize>,
    error: StepError,
}

impl Drop for Starting {
    fn drop(&mut self) {
        undo(self.cpu, self.done.clone());
        self.record.set_failed_step(steps::at(self.done.end).id, self.error);
        self.record.set_phase(Phase::Failed);
    }
}

/// Serves one request to `cpu`'s hotplug thread: the start-up or tear-down of one ONLINE step.
/// Linux: `cpuhp_thread_fun`.
///
/// Called in a loop by a thread that is bound to `cpu`, with interrupts and preemption on.
///
/// # Panics
///
/// If the calling thread is not `cpu`'s hotplug thread, as far as that can be told: it runs on another
/// CPU, or the kernel [knows](super::CpuOps::is_hotplug_thread). And if the callback does, or leaves
/// preemption off; the request was answered then.
pub fn serve(cpu: CpuId) -> Serve {
    let here = cpu::current();
    assert!(
        here == cpu && control::is_hotplug_thread(cpu),
        "hotplug::serve({cpu:?}) is called by a thread that is not that CPU's hotplug thread, on \
         {here:?}"
    );
    let record = record(cpu);
    if record.is_early() {
        record.set_early(false);
    }
    let request = record.request();
    match request {
        Request::StartUp | Request::TearDown | Request::Undo | Request::Redo => {}
        Request::Die if record.claim_death() => return Serve::Die,
        Request::Die | Request::None | Request::Running | Request::Done => return Serve::Idle,
    }
    let Some(claimed) = record.claim(request) else { return Serve::Idle };
    claimed.carry_out(request, cpu);
    Serve::Worked
}

/// Returns whether [`serve`] would find a request: for a scheduler that wakes the hotplug thread only
/// then.
pub fn has_work(cpu: CpuId) -> bool {
    let is_request = |request| !matches!(request, Request::None | Request::Running | Request::Done);
    try_record(cpu).is_some_and(|record| is_request(record.request()))
}

/// Takes this CPU out of the online mask and runs the STARTING tear-downs. Linux: `take_cpu_down`.
///
/// # Panics
///
/// If a tear-down does; the others were run. The caller goes on to [`dead`] all the same, or the thread
/// that takes the CPU down waits for ever.
///
/// # Safety
///
/// The caller is `cpu`, which got [`Serve::Die`] and then masked interrupts; nothing but the
/// caller's way to [`dead`] runs on it from now on. A CPU that got `Serve::Die` must go this way: the
/// request cannot be taken back any more.
pub unsafe fn die(cpu: CpuId) {
    let record = record(cpu);
    // In this order a reader of online ∪ dying finds the CPU at every moment.
    MASKS.dying.set(cpu, true);
    MASKS.online.set(cpu, false);
    record.clear_request();
    record.set_phase(Phase::Dying);
    undo(cpu, steps::positions(Section::Starting));
}

/// Runs tear-downs in reverse, also those behind one that panics.
fn undo(cpu: CpuId, positions: Range<usize>) {
    for_each_to_the_end(positions.rev(), |position| {
        let step = steps::at(position);
        set_state(cpu, CpuState::GoingDown(Some(step.id)));
        callback::run_on(cpu, || step.undo(cpu, None));
    });
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
