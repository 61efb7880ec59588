//! A reference that gives itself back.

use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::Deref;

use super::{PercpuRef, Release};

/// A reference to what a [`PercpuRef`] holds, given back when it is dropped.
///
/// While it exists the ref was not released, and by its lifetime not dropped either. It may be sent
/// to another thread and given back on another CPU, or on a thread that is no CPU.
///
/// ```compile_fail,E0505
/// # use percpu_core::refcount::{PercpuRef, RefFlags};
/// # percpu_core::host::boot(2).unwrap();
/// let object = PercpuRef::new((|| ()) as fn(), RefFlags::NONE).unwrap();
/// let guard = object.get();
/// drop(object); // error: it is borrowed
/// drop(guard);
/// ```
#[must_use = "the reference is given back as soon as the guard is dropped"]
pub struct RefGuard<'a, T: Release> {
    object: &'a PercpuRef<T>,
}

impl<'a, T: Release> RefGuard<'a, T> {
    /// Takes over a reference.
    ///
    /// # Safety
    ///
    /// The caller has a reference to `object` and gives it up to the guard.
    #[inline(always)]
    pub unsafe fn from_raw(object: &'a PercpuRef<T>) -> Self {
        Self { object }
    }

    /// Keeps the reference, to be given back by [`PercpuRef::put`] or
    /// [`from_raw`](Self::from_raw).
    #[inline]
    pub fn into_raw(self) -> &'a PercpuRef<T> {
        ManuallyDrop::new(self).object
    }
}

impl<T: Release> Clone for RefGuard<'_, T> {
    /// Takes a further reference. Two instructions in per-CPU mode. Linux: `percpu_ref_get`.
    ///
    /// # Panics
    ///
    /// If there are [too many](crate::refcount#how-many-references-there-can-be) references. None is
    /// taken then.
    #[inline]
    fn clone(&self) -> Self {
        self.object.count.get_more(1);
        Self { object: self.object }
    }
}

impl<T: Release> Deref for RefGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.object.value
    }
}

impl<T: Release> Drop for RefGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the guard has the reference.
        unsafe { self.object.put() };
    }
}

impl<T: Release + fmt::Debug> fmt::Debug for RefGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
