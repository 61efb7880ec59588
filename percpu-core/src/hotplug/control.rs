//! The side of the thread that brings a CPU up or down.

use super::readers;
use super::record::{Phase, Request, record};
use super::steps::{self, Section, Startup, Step, StepError, StepId, Teardown};
use super::{CpuOps, HotplugError, RegisterError};
use crate::area;
use crate::cpu::{self, CpuId, MASKS};
use crate::platform::{Global, NoMemory, Platform};
use crate::preempt;
use crate::sync::{Mutex, SpinLock};

/// Held by the one thread that changes a mask or the steps. Linux: `cpu_add_remove_lock` and
/// `cpuhp_state_mutex`.
static CONTROL: Mutex<()> = Mutex::new(());

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
    MASKS.present.set(boot, true);
    MASKS.online.set(boot, true);
    MASKS.active.set(boot, true);
}

/// Records that `cpu` is plugged in. Linux: `set_cpu_present`.
pub fn set_present(cpu: CpuId) {
    MASKS.present.set(cpu, true);
}

/// Registers a step at the end of its section, and runs its start-up for the CPUs that are up, in
/// ascending order and where the section says: a PREPARE step here, the others on the CPU's hotplug
/// thread. Linux: `cpuhp_setup_state`.
///
/// The boot CPU's start-up runs here as well as long as it has no hotplug thread. The caller may
/// sleep, and holds no [`CpusReadGuard`](super::CpusReadGuard).
///
/// # Errors
///
/// There is no room; or the start-up failed on a CPU, and was undone on those before it.
pub fn register(
    section: Section,
    name: &'static str,
    startup: Option<Startup>,
    teardown: Option<Teardown>,
) -> Result<StepId, RegisterError> {
    let _control = CONTROL.lock();
    let step = steps::insert(section, name, startup, teardown).ok_or(RegisterError::Full)?;
    for cpu in cpu::possible().iter() {
        steps::take_failure(step.id, cpu);
    }
    for cpu in cpu::online().iter() {
        if let Err(error) = run(&step, cpu, Request::StartUp) {
            for done in cpu::online().iter().take_while(|&done| done < cpu) {
                undo(&step, done);
            }
            steps::remove(step.id);
            return Err(RegisterError::Step { cpu, error });
        }
    }
    Ok(step.id)
}

/// Runs a step's tear-down for the CPUs that are up, and takes it out. Linux:
/// `cpuhp_remove_state`.
pub fn unregister(id: StepId) {
    let _control = CONTROL.lock();
    let Some(step) = steps::get(id) else { return };
    for cpu in cpu::online().iter() {
        undo(&step, cpu);
    }
    steps::remove(id);
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
    for position in prepare.clone() {
        let step = steps::at(position);
        if let Err(error) = step.start_up(cpu) {
            undo_prepare(cpu, prepare.start..position);
            return Err(failed(&step, error));
        }
    }
    if let Err(error) = kick(cpu) {
        undo_prepare(cpu, prepare);
        return Err(error);
    }
    let online = steps::positions(Section::Online);
    for position in online.clone() {
        let step = steps::at(position);
        if let Err(error) = run(&step, cpu, Request::StartUp) {
            for done in (online.start..position).rev() {
                undo(&steps::at(done), cpu);
            }
            take_down(cpu);
            return Err(failed(&step, error));
        }
    }
    MASKS.active.set(cpu, true);
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
        if let Err(error) = run(&step, cpu, Request::TearDown) {
            for undone in position + 1..online.end {
                redo(&steps::at(undone), cpu);
            }
            MASKS.active.set(cpu, true);
            return Err(failed(&step, error));
        }
    }
    take_down(cpu);
    Ok(())
}

/// Starts the CPU and waits until it is online.
fn kick(cpu: CpuId) -> Result<(), HotplugError> {
    let (ops, record) = (ops(), record(cpu));
    preempt::reset(cpu);
    record.clear_request();
    record.set_phase(Phase::Kicked);
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
                return Err(failed(&step, error));
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
    record.post(Request::Die, 0);
    ops.wake(cpu);
    while record.phase() != Phase::Dead {
        Global::yield_now();
    }
    ops.reap(cpu);
    undo_prepare(cpu, steps::positions(Section::Prepare));
    // Not earlier: until here a step may have had per-CPU values to fold. Not later: a CPU that is
    // dying for ever would be summed again after its next life.
    MASKS.dying.set(cpu, false);
    record.set_phase(Phase::Offline);
}

fn undo_prepare(cpu: CpuId, positions: core::ops::Range<usize>) {
    for position in positions.rev() {
        steps::at(position).undo(cpu);
    }
}

/// Runs a start-up or tear-down for a CPU that is up, where the step's section says.
fn run(step: &Step, cpu: CpuId, request: Request) -> Result<(), StepError> {
    let record = record(cpu);
    // Without a callback all that is left is the injected failure, which needs no trip to the CPU.
    let callback = match request {
        Request::StartUp => step.startup.is_some(),
        _ => step.teardown.is_some(),
    };
    if step.section == Section::Prepare || record.is_early() || !callback {
        return match request {
            Request::StartUp => step.start_up(cpu),
            Request::TearDown => step.tear_down(cpu),
            _ => {
                step.undo(cpu);
                Ok(())
            }
        };
    }
    record.post(request, step.id.index() as u32);
    ops().wake(cpu);
    loop {
        if let Some(result) = record.take_answer() {
            return result;
        }
        Global::yield_now();
    }
}

/// Runs a tear-down as part of a roll-back: it cannot fail.
fn undo(step: &Step, cpu: CpuId) {
    let _ = run(step, cpu, Request::Undo);
}

/// Runs a start-up as part of a roll-back: if it fails there is nothing better left to do than to
/// say so.
fn redo(step: &Step, cpu: CpuId) {
    if let Err(error) = run(step, cpu, Request::StartUp) {
        Global::log(format_args!(
            "hotplug: CPU {cpu} stays up without step {}: {error}",
            step.name
        ));
    }
}

fn failed(step: &Step, error: StepError) -> HotplugError {
    HotplugError::Step { id: step.id, name: step.name, error }
}
