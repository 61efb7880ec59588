//! What counters do when CPUs come and go.

use core::sync::atomic::Ordering::Relaxed;

use super::{BATCH, batch_for, list};
use crate::cpu::{self, CpuId};
use crate::hotplug::{RegisterError, Section, register};
use crate::sync::Mutex;

/// Whether the steps are registered.
static REGISTERED: Mutex<bool> = Mutex::new(false);

/// Registers what keeps counters exact under hotplug. Linux: `percpu_counter_startup`.
///
/// To be called once after [`hotplug::init`](crate::hotplug::init) and before the first CPU goes
/// down, as the first step: its tear-down then comes last, after everything that may still count. A
/// second call does nothing.
pub fn register_hotplug_steps() -> Result<(), RegisterError> {
    let mut registered = REGISTERED.lock();
    if !*registered {
        register(Section::Prepare, "counter:dead", None, Some(cpu_dead))?;
        register(Section::Online, "counter:online", Some(cpu_online), None)?;
        *registered = true;
    }
    Ok(())
}

/// Folds and zeroes the local part of `cpu`, which executes nothing more, in every counter. Linux:
/// `percpu_counter_cpu_dead`.
///
/// To be called while `cpu` is still in the dying mask; [`register_hotplug_steps`] sees to it. A
/// second call finds zeroes.
pub fn cpu_dead(cpu: CpuId) {
    compute_batch();
    list::for_each(|node| {
        let _lock = node.lock();
        node.fold_of(cpu);
    });
}

fn cpu_online(_: CpuId) -> Result<(), crate::hotplug::StepError> {
    compute_batch();
    Ok(())
}

fn compute_batch() {
    BATCH.store(batch_for(cpu::online().count()), Relaxed);
}
