//! The clock of all CPUs: the time stamp counter, or, where CPUs run one at a time, their steps.

#[cfg(not(percpu_steps))]
use core::arch::x86_64::_rdtsc;
#[cfg(percpu_steps)]
use core::sync::atomic::Ordering;

use crate::kernel::shared;

/// Ticks since some moment in the past.
#[cfg(not(percpu_steps))]
#[inline]
pub fn now() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and it is not made privileged.
    unsafe { _rdtsc() }
}

/// Steps so far, and what the host skipped because all CPUs waited.
#[cfg(percpu_steps)]
pub fn now() -> u64 {
    let steps = &shared::header().steps;
    steps.done.load(Ordering::Relaxed) + steps.skipped.load(Ordering::Relaxed)
}

/// Nanoseconds since some moment in the past.
#[inline]
pub fn now_ns() -> u64 {
    now().wrapping_mul(1000) / u64::from(shared::boot().tsc_mhz.max(1))
}
