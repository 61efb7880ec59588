//! Registering steps with one pair of callbacks, and taking them out.

use super::RegisterError;
use super::control::{self, undo};
use super::record::Request;
use super::steps::{self, Callbacks, Owner, Section, Startup, Step, StepId, Teardown};
use crate::cpu;
use crate::unwind::{AtEnd, for_each_to_the_end};

/// Registers a step at the end of its section, and runs its start-up for the CPUs that are up, in
/// ascending order and where the section says: a PREPARE step here, the others on the CPU's hotplug
/// thread. Linux: `cpuhp_setup_state`.
///
/// The boot CPU's start-up runs here as well as long as it has no hotplug thread. The caller may
/// sleep, is no step's callback, and holds no [`CpusReadGuard`](super::CpusReadGuard).
///
/// # Errors
///
/// There is no room; or the start-up failed on a CPU, and was undone on those before it, the latest first.
///
/// # Panics
///
/// If the start-up panics here: it was undone on the CPUs before, and there is no step. One that panics
/// on a CPU's hotplug thread is an [error](super::StepError::PANICKED). And, before anything is done, if
/// this would wait for ever: called by a step's callback, or by a thread that
/// [occupies](super::CpuOps::occupied) a CPU on which the start-up has to run.
pub fn register(
    section: Section,
    name: &'static str,
    startup: Option<Startup>,
    teardown: Option<Teardown>,
) -> Result<StepId, RegisterError> {
    let _control = control::lock();
    register_locked(section, name, startup, teardown, Owner::User)
}

/// As [`register`], for a step of the crate's own, which no user's [`unregister`] takes out. Does nothing
/// if the crate has a step of this name already.
pub(crate) fn register_own(
    section: Section,
    name: &'static str,
    startup: Option<Startup>,
    teardown: Option<Teardown>,
) -> Result<(), RegisterError> {
    let _control = control::lock();
    if !steps::has_own(name) {
        register_locked(section, name, startup, teardown, Owner::Crate)?;
    }
    Ok(())
}

/// As [`register`]. The caller holds the control lock.
fn register_locked(
    section: Section,
    name: &'static str,
    startup: Option<Startup>,
    teardown: Option<Teardown>,
    owner: Owner,
) -> Result<StepId, RegisterError> {
    let callbacks = Callbacks::Single(startup, teardown);
    let step = steps::insert(section, name, callbacks, owner).ok_or(RegisterError::Full)?;
    let remove = AtEnd(|| steps::remove(step.id));
    control::start_up_where_online(&step, None)?;
    core::mem::forget(remove);
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
    let _control = control::lock();
    let callbacks = Callbacks::Single(startup, teardown);
    let step = steps::insert(section, name, callbacks, Owner::User);
    Ok(step.ok_or(RegisterError::Full)?.id)
}

/// Runs a step's tear-down for the CPUs that are up, in ascending order, and takes it out. Linux:
/// `cpuhp_remove_state`.
///
/// Called as [`register`] is. Does nothing if there is no such step (any more), if it is one of a
/// [`MultiStep`](super::MultiStep), which is taken out when that is dropped, or if it is the crate's
/// own. A CPU that does not [answer in time](super::CpuOps::answer_timeout_ns) is left out, with a line
/// in the log.
///
/// # Panics
///
/// If the tear-down panics here: it was run for the other CPUs, and the step is gone. If this would wait
/// for ever, as [`register`].
pub fn unregister(id: StepId) {
    let _control = control::lock();
    if let Some(step) = removable(id) {
        control::refuse_to_visit_occupied(&step, Request::Undo);
        let _remove = AtEnd(|| steps::remove(id));
        for_each_to_the_end(cpu::online().iter(), |cpu| undo(&step, cpu, None));
    }
}

/// As [`unregister`], but runs nothing. Linux: `cpuhp_remove_state_nocalls`.
pub fn unregister_nocalls(id: StepId) {
    let _control = control::lock();
    if removable(id).is_some() {
        steps::remove(id);
    }
}

fn removable(id: StepId) -> Option<Step> {
    let is_single = |step: &Step| matches!(step.callbacks, Callbacks::Single(..));
    steps::get(id).filter(|step| is_single(step) && step.owner == Owner::User)
}
