//! What the allocator does when a CPU has gone. Linux: `page_alloc_cpu_dead`, which drains the CPU's
//! page lists.

use crate::cpu::CpuId;
use crate::hotplug::{RegisterError, Section, register_own};

/// Has what waits in a CPU's cache given back to the chunks when the CPU is dead.
///
/// To be called once after [`hotplug::init`](crate::hotplug::init). A second call does nothing.
/// Without it the areas stay there until memory is short, or [`balance`](super::Allocator::balance)
/// runs, or the CPU comes up again; nothing is lost.
///
/// # Errors
///
/// There is no room for a further step.
pub fn register_hotplug_steps() -> Result<(), RegisterError> {
    register_own(Section::Prepare, "alloc:dead", None, Some(cpu_dead))
}

fn cpu_dead(cpu: CpuId) {
    super::global().drain_cache_of(cpu.index() as u32);
}
