//! The side of the thread that brings a CPU up or down.

use core::ops::Range;

use super::instances::InstanceRef;
use super::readers;
use super::record::{Phase, Request, record};
use super::standing::{CpuState, set_state};
use super::steps::{self, Callbacks, Section, Step, StepError};
use super::{CpuOps, HotplugError};
use crate::area;
use crate::cpu::{self, CpuId, MASKS};
use crate::platform::{Global, NoMemory, Platform};
use crate::preempt;
use crate::sync::{Mutex, SpinLock};

/// Held by the one thread that changes a mask, the steps or their instances. Linux:
/// `cpu_add_remove_lock` and `cpuhp_state_mutex`.
pub(super) static CONTROL: Mutex<()> = Mutex::new(());

static OPS: SpinLock<Option<&'static dyn CpuOps>> = SpinLock::new(None);

fn ops() -> &'static dyn CpuOps {
    OPS.lock().expect("hotplug::init was called")
}

/// Begins hotplug: the kernel runs on CPU `boot` alone. Linux: `boot_cpu_init`.
///
/// # Panics
///
/// If it is called twice, or before the per-CPU areas are set up.
pub fn init(ops: &'static dyn CpuOps, boot: CpuId) {
    let before = OPS.lock().replace(ops);
    assert!(before.is_none(), "hotplug::init is called once");
    record(boot).set_phase(Phase::Online);
    record(boot).set_early(true);
    set_state(boot, CpuState::Online);
    MASKS.present.set(boot, true);
    MASKS.online.set(boot, true);
    MASKS.active.set(boot, true);
}

/// Records that `cpu` is plugged in. Linux: `set_cpu_present`.
pub fn set_present(cpu: CpuId) {
    MASKS.present.set(cpu, true);
}

/// Brings a CPU up. Linux: `cpu_up`.
///
/// If it is the first time, the CPU gets its [unit](area::add_unit) before anything else is done.
///
/// The caller may sleep, holds no guard and no [`CpusReadGuard`](super::CpusReadGuard), and is no
/// step's callback. When this returns, all steps were run and the CPU is active. A CPU that does
/// not arrive is given up; one that did is waited for, however long its steps take.
///
/// # Errors
///
/// Everything done was undone, except that a unit stays; the CPU is down.
pub fn cpu_up(cpu: CpuId) -> Result<(), HotplugError> {
    let _control = CONTROL.lock();
    if !cpu::present().contains(cpu) {
        return Err(HotplugError::NotPresent);
    }
    if cpu::online().contains(cpu) {
        return Err(HotplugError::AlreadyOnline);
    }
    // The first of all: whatever is done for the CPU may want its per-CPU data. The unit stays when
    // something else fails; it is as good at the next try.
    area::add_unit(cpu).map_err(|NoMemory| HotplugError::NoMemory)?;
    let _writer = readers::write_lock();

    let prepare = steps::positions(Section::Prepare);
    if let Err((position, error)) = start_up_all(cpu, prepare.clone()) {
        undo_prepare(cpu, prepare.start..position);
        return Err(failed(position, error));
    }
    // Its STARTING steps may make per-CPU values, which are to be folded if one of the steps fails.
    MASKS.starting.set(cpu, true);
    if let Err(error) = kick(cpu) {
        undo_prepare(cpu, prepare);
        MASKS.starting.set(cpu, false);
        return Err(error);
    }
    let online = steps::positions(Section::Online);
    if let Err((position, error)) = start_up_all(cpu, online.clone()) {
        for done in (online.start..position).rev() {
            let step = steps::at(done);
            set_state(cpu, CpuState::GoingDown(Some(step.id)));
            undo(&step, cpu, None);
        }
        take_down(cpu);
        return Err(failed(position, error));
    }
    set_state(cpu, CpuState::Online);
    MASKS.active.set(cpu, true);
    Ok(())
}

/// Runs the start-ups of steps for a CPU on its way up; the position of one that failed.
fn start_up_all(cpu: CpuId, positions: Range<usize>) -> Result<(), (usize, StepError)> {
    for position in positions {
        let step = steps::at(position);
        set_state(cpu, CpuState::GoingUp(Some(step.id)));
        run(&step, cpu, Request::StartUp, None).map_err(|error| (position, error))?;
    }
    Ok(())
}

/// Takes a CPU down. Linux: `cpu_down`.
///
/// The caller may sleep, holds no guard and no [`CpusReadGuard`](super::CpusReadGuard), and is no
/// step's callback. When this returns, the CPU executes nothing more and all tear-downs were run.
///
/// # Errors
///
/// Everything undone was done again; the CPU is up.
pub fn cpu_down(cpu: CpuId) -> Result<(), HotplugError> {
    let _control = CONTROL.lock();
    if !cpu::online().contains(cpu) {
        return Err(HotplugError::NotOnline);
    }
    if cpu::online().count() == 1 {
        return Err(HotplugError::LastCpu);
    }
    let _writer = readers::write_lock();

    MASKS.active.set(cpu, false);
    let online = steps::positions(Section::Online);
    for position in online.clone().rev() {
        let step = steps::at(position);
        set_state(cpu, CpuState::GoingDown(Some(step.id)));
        if let Err(error) = run(&step, cpu, Request::TearDown, None) {
            for undone in position + 1..online.end {
                let step = steps::at(undone);
                set_state(cpu, CpuState::GoingUp(Some(step.id)));
                // It is remembered if this fails.
                let _ = run(&step, cpu, Request::Redo, None);
            }
            set_state(cpu, CpuState::Online);
            MASKS.active.set(cpu, true);
            return Err(failed(position, error));
        }
    }
    take_down(cpu);
    Ok(())
}

/// Starts the CPU and waits until it is online.
fn kick(cpu: CpuId) -> Result<(), HotplugError> {
    let (ops, record) = (ops(), record(cpu));
    set_state(cpu, CpuState::GoingUp(None));
    preempt::reset(cpu);
    record.clear_request();
    record.set_phase(Phase::Kicked);
    // After that: a fold that still found the CPU down is over when this returns.
    cpu::count_again(cpu);
    if let Err(error) = ops.start(cpu) {
        record.set_phase(Phase::Abandoned);
        return Err(HotplugError::Start(error));
    }
    record.set_phase(Phase::Go);
    let deadline = Global::clock_ns().saturating_add(ops.arrival_timeout_ns());
    loop {
        match record.phase() {
            Phase::Online => return Ok(()),
            Phase::Failed => {
                ops.reap(cpu);
                record.set_phase(Phase::Offline);
                let (slot, error) = record.failed_step();
                let step = steps::in_slot(slot).expect("steps stay while a CPU is on its way");
                return Err(HotplugError::Step { id: step.id, name: step.name, error });
            }
            Phase::Go
                if Global::clock_ns() > deadline && record.advance(Phase::Go, Phase::Abandoned) =>
            {
                return Err(HotplugError::TimedOut);
            }
            _ => Global::yield_now(),
        }
    }
}

/// Takes an online CPU down, of which all ONLINE steps are undone.
fn take_down(cpu: CpuId) {
    let (ops, record) = (ops(), record(cpu));
    record.post(Request::Die, 0, None);
    ops.wake(cpu);
    while record.phase() != Phase::Dead {
        Global::yield_now();
    }
    ops.reap(cpu);
    undo_prepare(cpu, steps::positions(Section::Prepare));
    // Not earlier: until here a step may have had per-CPU values to fold. Not later: a CPU that is
    // dying for ever would look so in its next life.
    MASKS.dying.set(cpu, false);
    record.set_phase(Phase::Offline);
}

/// Runs PREPARE tear-downs in reverse for a CPU that is not up, which is down then.
fn undo_prepare(cpu: CpuId, positions: Range<usize>) {
    for position in positions.rev() {
        let step = steps::at(position);
        set_state(cpu, CpuState::GoingDown(Some(step.id)));
        step.undo(cpu, None);
    }
    set_state(cpu, CpuState::Offline);
}

/// Runs a start-up or tear-down where the step's section says: of all the step, or of one instance.
/// The caller holds the control lock, and the CPU is up, unless the step is a PREPARE step.
pub(super) fn run(
    step: &Step,
    cpu: CpuId,
    request: Request,
    instance: Option<InstanceRef>,
) -> Result<(), StepError> {
    let here = || request.carry_out(step, cpu, instance);
    if step.section == Section::Prepare {
        return here();
    }
    // Without a callback all that is left is the injected failure, which needs no trip to the CPU.
    let callback = match step.callbacks {
        Callbacks::Single(startup, teardown) => match request {
            Request::StartUp | Request::Redo => startup.is_some(),
            _ => teardown.is_some(),
        },
        Callbacks::Multi(list) => instance.is_some() || !list.is_empty(),
    };
    let record = record(cpu);
    if !callback || record.is_early() {
        return here();
    }
    record.post(request, step.id.index() as u32, instance);
    ops().wake(cpu);
    loop {
        if let Some(result) = record.take_answer() {
            return result;
        }
        Global::yield_now();
    }
}

/// Runs a tear-down as part of a roll-back or at a step's or an instance's end: it cannot fail.
pub(super) fn undo(step: &Step, cpu: CpuId, instance: Option<InstanceRef>) {
    let _ = run(step, cpu, Request::Undo, instance);
}

fn failed(position: usize, error: StepError) -> HotplugError {
    let step = steps::at(position);
    HotplugError::Step { id: step.id, name: step.name, error }
}
