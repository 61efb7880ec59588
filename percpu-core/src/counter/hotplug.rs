//! What counters do when CPUs come and go.

use super::{batch, list};
use crate::arch;
use crate::cpu::{self, CpuId};
use crate::hotplug::{self, RegisterError, Section, StepError};
use crate::platform::{Global, Platform};

/// Registers what folds a CPU's local parts when it goes down, and what keeps the batch that of the
/// online CPUs. Linux: `percpu_counter_startup`.
///
/// To be called once after [`hotplug::init`](crate::hotplug::init) and before the first CPU goes
/// down, as the first step: its tear-down then comes last, after everything that may still count. A
/// second call does nothing. Sums are exact without it, too; then a CPU that went down keeps its
/// local parts and goes on being summed.
///
/// # Errors
///
/// There is no room for two more steps. A later call registers what is missing.
pub fn register_hotplug_steps() -> Result<(), RegisterError> {
    hotplug::register_own(Section::Prepare, "counter:dead", None, Some(dead))?;
    hotplug::register_own(Section::Online, "counter:online", Some(cpu_online), None)?;
    Ok(())
}

/// The tear-down of `cpu`, on the thread that takes it down.
fn dead(cpu: CpuId) {
    let before = batch::batch();
    // A CPU that did not arrive in time may execute something yet, and one that is up does when the
    // step is taken out: such a CPU stays counted.
    fold_if_down(cpu);
    batch::compute();
    if batch::batch() < before {
        // They stay online: the one who brings CPUs up and down is busy here. On one that does not
        // take the offer the next add to a counter folds it.
        for cpu in cpu::online().iter() {
            Global::offer_to_cpu(cpu.index() as u32, |_| fold_excess(), 0);
        }
    }
}

/// Folds and zeroes the local part of `cpu`, which has gone down, in every counter, and takes the
/// CPU out of [`counted`](crate::cpu::counted). Linux: `percpu_counter_cpu_dead`.
///
/// [`register_hotplug_steps`] has this done when a CPU goes down. A second call finds zeroes, and so
/// does one for a CPU that has no unit. Masks interrupts for a look at each counter there is.
///
/// # Panics
///
/// If `cpu` may be executing: it did not go down through [`hotplug`](crate::hotplug), or it is being
/// started again. What it added while its local part is folded would be lost. Nothing has changed.
pub fn cpu_dead(cpu: CpuId) {
    assert!(
        !cpu::booted_once().contains(cpu) || fold_if_down(cpu),
        "{cpu:?} may be executing: its counts are folded only after hotplug has taken it down"
    );
    batch::compute();
}

/// Folds what `cpu`, which has a unit, counted, and takes it out of those that are counted. Returns
/// whether it did: not if the CPU may be executing.
fn fold_if_down(cpu: CpuId) -> bool {
    // A CPU that is down is not started before this is over.
    let _held = cpu::hold_counted();
    if !hotplug::is_down(cpu) {
        return false;
    }
    list::for_each(|node| node.fold_of(cpu));
    // Last: a sum that does not find the CPU sees what was folded.
    cpu::MASKS.counted.set(cpu, false);
    true
}

/// Folds, in every counter, this CPU's local part if it is not below the [batch](super::batch()): it
/// may have been made when the batch was larger.
///
/// Only a CPU itself may touch its local parts while it runs. Adds that were under way when the batch
/// shrank may still leave a local part that is below the old batch only, which is why
/// [`read`](super::PercpuCounter::read) promises no more than the largest batch there has been.
/// Masks interrupts for a look at each counter there is.
pub fn fold_excess() {
    arch::check_cpu();
    let batch = batch::batch();
    list::for_each(|node| node.fold_excess(batch));
}

fn cpu_online(_: CpuId) -> Result<(), StepError> {
    batch::compute();
    Ok(())
}
