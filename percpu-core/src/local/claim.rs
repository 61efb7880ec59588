//! The flag that says that this CPU's value is in use.
//!
//! Set by a single instruction, so that of a thread and the handlers that interrupt it, or interrupt
//! each other, exactly one finds it clear; and never touched from another CPU. So it is enough that
//! the compiler leaves accesses to the value between those to the flag.

use core::sync::atomic::{Ordering, compiler_fence};

use crate::var::PerCpuPtr;

/// Possession of this CPU's value; clears the flag when dropped, also while a panic unwinds.
pub(super) struct Claim {
    flag: PerCpuPtr<bool>,
}

impl Claim {
    /// Sets this CPU's flag, unless it is set.
    ///
    /// # Safety
    ///
    /// The flag is a live per-CPU variable that nothing but claims uses. The thread stays on the
    /// CPU until the claim is dropped.
    #[inline]
    pub(super) unsafe fn take(flag: PerCpuPtr<bool>) -> Option<Self> {
        // SAFETY: passed on to the caller.
        let taken = unsafe { flag.cmpxchg(false, true) }.is_ok();
        compiler_fence(Ordering::Acquire);
        // Not `then_some`: a claim that is made and dropped opens what another one holds.
        taken.then(|| Self { flag })
    }
}

impl Drop for Claim {
    #[inline]
    fn drop(&mut self) {
        compiler_fence(Ordering::Release);
        // SAFETY: the flag lives and this is its CPU, by the promise made to `take`.
        unsafe { self.flag.write(false) };
    }
}
