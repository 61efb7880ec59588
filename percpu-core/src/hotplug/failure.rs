//! Failures that tests order. Linux: the `fail` file of a CPU's `hotplug` directory.
//!
//! They are not kept in per-CPU memory: they can be ordered for a CPU that has none yet.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::steps::{self, StepId};
use crate::cpu::{self, CpuId, NR_CPUS};

/// Failures of whole steps, by CPU: bit = slot of a step that is to fail.
static STEPS: [AtomicU64; NR_CPUS] = [const { AtomicU64::new(0) }; NR_CPUS];

/// The instance that is to fail, by CPU; 0 for none. See [`code`].
static INSTANCES: [AtomicU32; NR_CPUS] = [const { AtomicU32::new(0) }; NR_CPUS];

/// Bits of the instance's number in a [`code`].
const NTH_BITS: u32 = 24;

/// Makes the next run of a step for `cpu` fail once, for tests: its start-up in any section, or its
/// tear-down in the ONLINE section. A step with instances fails before the first of them. Linux: the
/// `fail` file of a CPU's `hotplug` directory. Does nothing if the step is not registered any more.
pub fn inject_failure(step: StepId, cpu: CpuId) {
    steps::if_registered(step, || {
        STEPS[cpu.index()].fetch_or(1 << step.index(), Ordering::Relaxed);
    });
}

/// Makes one instance of a step fail once for `cpu`, as [`inject_failure`] does a step: the one with
/// `nth` instances before it in the order in which they were added. If there is none, the order
/// waits; a CPU has one such order at a time, and keeps the latest. Does nothing if the step is not
/// registered any more.
///
/// # Panics
///
/// If `nth` is 2^24 or more.
pub fn inject_instance_failure(step: StepId, nth: usize, cpu: CpuId) {
    assert!(nth < 1 << NTH_BITS, "there is no instance number {nth}");
    steps::if_registered(step, || {
        INSTANCES[cpu.index()].store(code(step, nth), Ordering::Relaxed);
    });
}

/// Slot and number in one word, which is not 0.
fn code(step: StepId, nth: usize) -> u32 {
    (step.index() as u32 + 1) << NTH_BITS | nth as u32
}

/// Takes the order for a step back, if there was one.
pub(super) fn take(step: StepId, cpu: CpuId) -> bool {
    let bit = 1 << step.index();
    STEPS[cpu.index()].fetch_and(!bit, Ordering::Relaxed) & bit != 0
}

/// Takes the order for a step's instance back, if there was one.
pub(super) fn take_instance(step: StepId, nth: usize, cpu: CpuId) -> bool {
    let order = &INSTANCES[cpu.index()];
    order.compare_exchange(code(step, nth), 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// Takes all orders back that were for an earlier step in this slot.
pub(super) fn clear(step: StepId) {
    for cpu in cpu::possible().iter() {
        take(step, cpu);
        let order = &INSTANCES[cpu.index()];
        let old = order.load(Ordering::Relaxed);
        if old >> NTH_BITS == step.index() as u32 + 1 {
            let _ = order.compare_exchange(old, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}
