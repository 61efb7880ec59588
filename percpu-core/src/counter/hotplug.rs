//! What counters do when CPUs come and go.

use super::{batch, list};
use crate::cpu::{self, CpuId};
use crate::hotplug::{RegisterError, Section, StepError, register_own};
use crate::platform::{Global, Platform};
use crate::sync::Mutex;

/// Whether the steps are registered.
static REGISTERED: Mutex<bool> = Mutex::new(false);

/// Registers what keeps counters exact under hotplug. Linux: `percpu_counter_startup`.
///
/// To be called once after [`hotplug::init`](crate::hotplug::init) and before the first CPU goes
/// down, as the first step: its tear-down then comes last, after everything that may still count. A
/// second call does nothing.
///
/// # Errors
///
/// There is no room for two more steps.
pub fn register_hotplug_steps() -> Result<(), RegisterError> {
    let mut registered = REGISTERED.lock();
    if !*registered {
        register_own(Section::Prepare, "counter:dead", None, Some(dead))?;
        register_own(Section::Online, "counter:online", Some(cpu_online), None)?;
        *registered = true;
    }
    Ok(())
}

/// The tear-down of `cpu`, on the thread that takes it down.
fn dead(cpu: CpuId) {
    let before = batch::batch();
    cpu_dead(cpu);
    if batch::batch() < before {
        // They stay online: the one who brings CPUs up and down is busy here. On one that does not
        // take the offer the next add to a counter folds it.
        for cpu in cpu::online().iter() {
            Global::offer_to_cpu(cpu.index() as u32, |_| fold_excess(), 0);
        }
    }
}

/// Folds and zeroes the local part of `cpu`, which executes nothing more, in every counter. Linux:
/// `percpu_counter_cpu_dead`.
///
/// To be called while `cpu` is still in the dying mask; [`register_hotplug_steps`] sees to it. A
/// second call finds zeroes. Masks interrupts for a look at each counter there is.
pub fn cpu_dead(cpu: CpuId) {
    batch::compute(cpu::online().count());
    list::for_each(|node| node.fold_of(cpu));
}

/// Folds, in every counter, this CPU's local part if it is not below the [batch](super::batch()): it
/// may have been made when the batch was larger.
///
/// Only a CPU itself may touch its local parts while it runs. Adds that were under way when the batch
/// shrank may still leave a local part that is below the old batch only, which is why
/// [`read`](super::PercpuCounter::read) promises no more than the largest batch there has been.
/// Masks interrupts for a look at each counter there is.
pub fn fold_excess() {
    let batch = batch::batch();
    list::for_each(|node| node.fold_excess(batch));
}

fn cpu_online(_: CpuId) -> Result<(), StepError> {
    batch::compute(cpu::online().count());
    Ok(())
}
