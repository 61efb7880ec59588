//! The time stamp counter as clock of all CPUs.

use core::arch::x86_64::_rdtsc;

use crate::shared;

/// Ticks since some moment in the past.
#[inline]
pub fn now() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and it is not made privileged.
    unsafe { _rdtsc() }
}

/// Nanoseconds since some moment in the past.
#[inline]
pub fn now_ns() -> u64 {
    now().wrapping_mul(1000) / u64::from(shared::boot().tsc_mhz.max(1))
}
