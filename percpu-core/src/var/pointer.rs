//! Per-CPU pointers: numbers that mean one address on each CPU.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::Ordering::Relaxed;

use super::Scalar;
use crate::area;
use crate::cpu::{self, CpuId};

/// The name of a per-CPU variable, static or dynamic: its template address. Linux: `T __percpu *`.
///
/// Like a raw pointer it says nothing about whether the variable still exists: to make and to
/// print one is safe, to access memory through it is not.
#[repr(transparent)]
pub struct PerCpuPtr<T> {
    raw: usize,
    target: PhantomData<*mut T>,
}

// SAFETY: a number; whoever accesses memory through it answers for that.
unsafe impl<T> Send for PerCpuPtr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for PerCpuPtr<T> {}

impl<T> PerCpuPtr<T> {
    /// The pointer with this number.
    #[inline]
    pub const fn from_raw(raw: usize) -> Self {
        Self { raw, target: PhantomData }
    }

    /// The number: CPU c's copy lies at `raw + per_cpu_offset[c]`.
    #[inline]
    pub const fn raw(self) -> usize {
        self.raw
    }

    /// The same number for another type.
    #[inline]
    pub const fn cast<U>(self) -> PerCpuPtr<U> {
        PerCpuPtr::from_raw(self.raw)
    }

    /// Address of `cpu`'s copy. Linux: `per_cpu_ptr`.
    ///
    /// # Panics
    ///
    /// If the CPU has no unit yet, and so no copy: it was never brought up. That goes for all that
    /// name a CPU; [`cpu::booted_once`] has those that can be named.
    #[inline]
    pub fn on(self, cpu: CpuId) -> *mut T {
        with_exposed_provenance_mut(self.raw.wrapping_add(area::offset(cpu)))
    }

    /// As [`on`](Self::on); `None` if the CPU has no unit yet.
    #[inline]
    pub fn try_on(self, cpu: CpuId) -> Option<*mut T> {
        let offset = area::try_offset(cpu)?;
        Some(with_exposed_provenance_mut(self.raw.wrapping_add(offset)))
    }

    /// Address of the copy of the CPU that runs this; stale as soon as the thread is moved. Linux:
    /// `this_cpu_ptr`.
    ///
    /// # Panics
    ///
    /// Before the per-CPU areas are set up.
    #[inline]
    pub fn here(self) -> *mut T {
        with_exposed_provenance_mut(self.raw.wrapping_add(cpu::this_cpu_offset()))
    }

    /// Reads `cpu`'s copy with one relaxed load.
    ///
    /// # Safety
    ///
    /// The variable exists, and its copies are changed by `this_cpu` operations and by atomic
    /// accesses only.
    #[inline]
    pub unsafe fn read_on(self, cpu: CpuId) -> T
    where
        T: Scalar,
    {
        // SAFETY: passed on to the caller.
        unsafe { T::load(self.on(cpu), Relaxed) }
    }

    /// Writes `cpu`'s copy with one relaxed store. An operation that `cpu` is in the middle of may
    /// undo it.
    ///
    /// # Safety
    ///
    /// As [`read_on`](Self::read_on).
    #[inline]
    pub unsafe fn write_on(self, cpu: CpuId, value: T)
    where
        T: Scalar,
    {
        // SAFETY: passed on to the caller.
        unsafe { T::store(self.on(cpu), value, Relaxed) }
    }
}

impl<T> Clone for PerCpuPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for PerCpuPtr<T> {}

impl<T> PartialEq for PerCpuPtr<T> {
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}

impl<T> Eq for PerCpuPtr<T> {}

impl<T> fmt::Debug for PerCpuPtr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "percpu:{:#x}", self.raw)
    }
}
