//! Preemption: a guard that keeps the thread on its CPU, and the wish for a reschedule.
//!
//! Both live in one per-CPU word, so that dropping the last guard and noticing that a reschedule is
//! wanted is one instruction and one branch.
//!
//! # Implementation
//!
//! The word counts the guards in its low 63 bits. The top bit is set while *no* reschedule is wanted
//! (Linux: `PREEMPT_NEED_RESCHED`, inverted likewise), so the decrement gives zero exactly when the
//! last guard goes and a reschedule waits.
//!
//! Safe code can forget guards. The count would have to pass 2^63 before it reads as 0 again, which
//! takes 292 years at one guard a nanosecond; so neither the increment nor the decrement checks for it.

use core::marker::PhantomData;

use crate::arch;
use crate::cpu::{self, CpuId};
use crate::percpu;
use crate::platform::{Global, Platform};

/// Set while no reschedule is wanted.
const NO_RESCHED: u64 = 1 << 63;

percpu! {
    /// Linux: `__preempt_count`. In the template: no guard, no reschedule wanted.
    static PREEMPT_COUNT: PerCpu<u64> = NO_RESCHED;
}

/// Keeps the thread on its CPU until the guard is dropped. Linux: `preempt_disable`, `get_cpu`.
///
/// Guards nest. Interrupts still come in. One instruction on x86-64, and two to drop the guard.
#[inline]
pub fn disable() -> PreemptGuard {
    arch::inc_static!(PREEMPT_COUNT);
    PreemptGuard { not_send: PhantomData }
}

/// Proof that preemption is off on this CPU. Linux: the stretch between `get_cpu` and `put_cpu`.
///
/// Dropping it turns preemption on again; if it was the last and a reschedule is wanted, that
/// happens there and then.
#[must_use = "preemption is on again as soon as the guard is dropped"]
#[derive(Debug)]
pub struct PreemptGuard {
    /// Neither to be sent to nor to be seen from another thread, which may run elsewhere.
    not_send: PhantomData<*mut ()>,
}

impl PreemptGuard {
    /// The CPU on which preemption is off. Linux: `smp_processor_id`.
    ///
    /// # Panics
    ///
    /// Before the per-CPU areas are set up.
    #[inline]
    pub fn cpu(&self) -> CpuId {
        cpu::current()
    }

    /// Turns preemption on again without looking whether a reschedule is wanted, for a scheduler
    /// that is about to do one. Linux: `preempt_enable_no_resched`.
    #[inline]
    pub fn release_no_resched(self) {
        core::mem::forget(self);
        PREEMPT_COUNT.dec();
    }

    /// Takes over a guard that another context of this CPU has forgotten: a thread that runs for
    /// the first time answers for the count under which the scheduler switched to it.
    ///
    /// # Safety
    ///
    /// A guard of this CPU was given to `core::mem::forget`, and nobody else takes it over.
    #[inline]
    pub unsafe fn adopt() -> Self {
        Self { not_send: PhantomData }
    }
}

impl Drop for PreemptGuard {
    #[inline]
    fn drop(&mut self) {
        arch::dec_static_and_branch_if_zero!(PREEMPT_COUNT, schedule);
    }
}

#[cold]
#[inline(never)]
fn schedule() {
    Global::preempt_schedule();
}

/// Returns the number of guards on this CPU, or `u32::MAX` if there are more. Linux: `preempt_count`.
#[inline]
pub fn count() -> u32 {
    u32::try_from(PREEMPT_COUNT.read() & !NO_RESCHED).unwrap_or(u32::MAX)
}

/// Asks for a reschedule of this CPU as soon as its last guard is dropped. Linux:
/// `set_preempt_need_resched`.
///
/// With no guard there is nothing to be dropped: a caller outside of one, such as an interrupt
/// handler at its end, looks at [`need_resched`] and [`count`] itself.
#[inline]
pub fn set_need_resched() {
    PREEMPT_COUNT.and(!NO_RESCHED);
}

/// Takes the wish back: the scheduler has run. Linux: `clear_preempt_need_resched`.
#[inline]
pub fn clear_need_resched() {
    PREEMPT_COUNT.or(NO_RESCHED);
}

/// Whether a reschedule of this CPU is wanted. Linux: `tif_need_resched`.
#[inline]
pub fn need_resched() -> bool {
    PREEMPT_COUNT.read() & NO_RESCHED == 0
}

/// Gives `cpu` the count of a CPU that has just been started: what ran on it last, in its life
/// before, may have ended with preemption off.
pub(crate) fn reset(cpu: CpuId) {
    set(cpu, 0);
}

/// Gives `cpu`, on which nobody else takes or drops a guard at the time, this count, and no wish for a
/// reschedule.
pub(crate) fn set(cpu: CpuId, count: u32) {
    // SAFETY: a live static, only accessed atomically.
    unsafe { PREEMPT_COUNT.ptr().write_on(cpu, NO_RESCHED | u64::from(count)) };
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use super::*;
    use crate::host;

    #[test]
    fn the_count_goes_on_where_32_bits_end() {
        host::boot(2).unwrap();
        let _cpu = host::enter_any().unwrap();
        for guards in [(1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 2] {
            PREEMPT_COUNT.write(NO_RESCHED | guards);
            let guard = disable();
            assert!(count() >= 1 << 31, "as if there were no guard");
            assert!(!need_resched());
            drop(guard);
            assert_eq!(PREEMPT_COUNT.read(), NO_RESCHED | guards);
        }
        PREEMPT_COUNT.write(NO_RESCHED);
    }
}
