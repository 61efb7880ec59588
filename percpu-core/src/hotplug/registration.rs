//! Registering steps with one pair of callbacks, and taking them out.

use super::RegisterError;
use super::control::{CONTROL, run, undo};
use super::record::Request;
use super::steps::{self, Callbacks, Section, Startup, Step, StepId, Teardown};
use crate::cpu;

/// Registers a step at the end of its section, and runs its start-up for the CPUs that are up, in
/// ascending order and where the section says: a PREPARE step here, the others on the CPU's hotplug
/// thread. Linux: `cpuhp_setup_state`.
///
/// The boot CPU's start-up runs here as well as long as it has no hotplug thread. The caller may
/// sleep, is no step's callback, and holds no [`CpusReadGuard`](super::CpusReadGuard).
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
    let callbacks = Callbacks::Single(startup, teardown);
    let step = steps::insert(section, name, callbacks).ok_or(RegisterError::Full)?;
    for cpu in cpu::online().iter() {
        if let Err(error) = run(&step, cpu, Request::StartUp, None) {
            for done in cpu::online().iter().take_while(|&done| done < cpu) {
                undo(&step, done, None);
            }
            steps::remove(step.id);
            return Err(RegisterError::Step { cpu, error });
        }
    }
    Ok(step.id)
}

/// As [`register`], but runs nothing for the CPUs that are up: the caller has seen to them, and what
/// they have is torn down when they go down. Linux: `cpuhp_setup_state_nocalls`.
///
/// # Errors
///
/// There is no room.
pub fn register_nocalls(
    section: Section,
    name: &'static str,
    startup: Option<Startup>,
    teardown: Option<Teardown>,
) -> Result<StepId, RegisterError> {
    let _control = CONTROL.lock();
    let callbacks = Callbacks::Single(startup, teardown);
    Ok(steps::insert(section, name, callbacks).ok_or(RegisterError::Full)?.id)
}

/// Runs a step's tear-down for the CPUs that are up, in ascending order, and takes it out. Linux:
/// `cpuhp_remove_state`.
///
/// Called as [`register`] is. Does nothing if there is no such step, or if it is one of a
/// [`MultiStep`](super::MultiStep), which is taken out when that is dropped.
pub fn unregister(id: StepId) {
    let _control = CONTROL.lock();
    if let Some(step) = single(id) {
        for cpu in cpu::online().iter() {
            undo(&step, cpu, None);
        }
        steps::remove(id);
    }
}

/// As [`unregister`], but runs nothing. Linux: `cpuhp_remove_state_nocalls`.
pub fn unregister_nocalls(id: StepId) {
    let _control = CONTROL.lock();
    if single(id).is_some() {
        steps::remove(id);
    }
}

fn single(id: StepId) -> Option<Step> {
    steps::get(id).filter(|step| matches!(step.callbacks, Callbacks::Single(..)))
}
