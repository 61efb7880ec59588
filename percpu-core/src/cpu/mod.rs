//! CPUs: their numbers, the masks, and which CPU this is.

mod id;
mod mask;

pub use id::{CpuId, NR_CPUS, nr_cpu_ids};
pub use mask::{CpuMask, active, booted_once, counted, dying, online, possible, present, starting};

pub(crate) use id::set_nr_cpu_ids;
pub(crate) use mask::{MASKS, count_again, hold_counted, set_hotplug_has_begun, takes_calls};

use crate::percpu;

/// [`CPU_NUMBER`] of the template, on which the boot CPU works before set-up.
const NOT_SET_UP: u32 = u32::MAX;

percpu! {
    /// The number of the CPU. Linux: `cpu_number`.
    static CPU_NUMBER: PerCpu<u32> = NOT_SET_UP;
    /// Where the CPU's unit lies, less the template's address. Linux: `this_cpu_off`.
    static THIS_CPU_OFFSET: PerCpu<usize> = 0;
}

/// The number of the CPU that runs this; 0 before the areas are set up. Linux:
/// `raw_smp_processor_id`.
///
/// Without a guard it may be out of date as soon as it is known. [`PreemptGuard::cpu`] gives a
/// number that stays true.
///
/// [`PreemptGuard::cpu`]: crate::preempt::PreemptGuard::cpu
#[inline]
pub fn this_cpu_raw() -> u32 {
    match CPU_NUMBER.read() {
        NOT_SET_UP => 0,
        n => n,
    }
}

/// The CPU that runs this, which may be another one a moment later.
///
/// # Panics
///
/// Before the per-CPU areas are set up, and on a CPU of a kernel that has no
/// [offset](crate::arch::set_offset).
#[inline]
pub fn current() -> CpuId {
    match CPU_NUMBER.read() {
        NOT_SET_UP => not_set_up(),
        // SAFETY: set-up wrote the number of a possible CPU.
        n => unsafe { CpuId::new_unchecked(n as usize) },
    }
}

/// The offset of the CPU that runs this.
#[inline]
pub(crate) fn this_cpu_offset() -> usize {
    match THIS_CPU_OFFSET.read() {
        // With one CPU it stays 0.
        0 if cfg!(feature = "up") && crate::area::is_set_up() => 0,
        0 => not_set_up(),
        offset => offset,
    }
}

/// The panic of a CPU that works on the template.
#[cold]
#[inline(never)]
fn not_set_up() -> ! {
    if crate::area::is_set_up() {
        crate::arch::no_offset();
    }
    panic!("the per-CPU areas are not set up yet");
}

/// Makes the fresh copy of the template at `template start + offset` the unit of CPU `cpu`.
///
/// # Safety
///
/// The unit is memory with the template's bytes in it, and no CPU uses it yet.
pub(crate) unsafe fn init_unit(cpu: u32, offset: usize) {
    use core::ptr::with_exposed_provenance_mut;

    let number = CPU_NUMBER.ptr().raw().wrapping_add(offset);
    let own_offset = THIS_CPU_OFFSET.ptr().raw().wrapping_add(offset);
    // SAFETY: both lie in the unit, where the template has variables of these types.
    unsafe {
        with_exposed_provenance_mut::<u32>(number).write(cpu);
        with_exposed_provenance_mut::<usize>(own_offset).write(offset);
    }
}
