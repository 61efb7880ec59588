//! A lock that is local to the CPU.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use super::cell::IrqCell;
use super::claim::Claim;
use crate::alloc::Zeroable;
use crate::irq::IrqGuard;
use crate::preempt::PreemptGuard;
use crate::var::PerCpuPtr;

/// A value that belongs to whoever holds this CPU's lock. Linux: `local_lock_t`, with the data in
/// it.
///
/// Put it into a [`PerCpu`](crate::var::PerCpu) or a [`PerCpuBox`](crate::alloc::PerCpuBox), which
/// then have [`lock`](crate::var::PerCpu::lock), for data that no interrupt handler uses,
/// [`lock_irqsave`](crate::var::PerCpu::lock_irqsave), for data that one does, and
/// [`try_lock`](crate::var::PerCpu::try_lock), for the handler. Nobody waits: other CPUs have locks
/// of their own, and other threads of this CPU do not run while the lock is held. So who finds it
/// taken has interrupted the holder, or is the holder.
///
/// Taking and giving back costs a dozen instructions more than the guard that it contains, none of them
/// locked.
#[repr(transparent)]
pub struct LocalLock<T> {
    cell: IrqCell<T>,
}

// SAFETY: the same bytes as the cell.
unsafe impl<T: Zeroable> Zeroable for LocalLock<T> {}

impl<T> LocalLock<T> {
    /// An open lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { cell: IrqCell::new(value) }
    }

    /// The value, for the lock's only owner.
    pub fn get_mut(&mut self) -> &mut T {
        self.cell.get_mut()
    }

    /// Takes this CPU's lock, if it is open, together with what keeps the thread on the CPU.
    ///
    /// # Safety
    ///
    /// `lock` is a live per-CPU variable during `'a`, and nobody reaches its copies in another way.
    /// `pin` keeps the thread on the CPU.
    ///
    /// # Panics
    ///
    /// Before the per-CPU areas are set up.
    #[inline]
    pub(super) unsafe fn take<'a, P>(
        lock: PerCpuPtr<Self>,
        pin: P,
    ) -> Option<LocalGuard<'a, T, P>> {
        // SAFETY: a lock is its cell; the guard drops the claim before `pin`, and the value is
        // reached through the guard only.
        let (claim, value) = unsafe { IrqCell::claim(lock.cast()) }?;
        // SAFETY: it is the address of a `T`.
        let value = unsafe { NonNull::new_unchecked(value) };
        Some(LocalGuard { value, lock: PhantomData, _claim: claim, _pin: pin })
    }
}

/// Possession of this CPU's [`LocalLock`]; dropping it opens the lock, and then turns preemption on
/// again ([`PreemptGuard`]) or unmasks interrupts ([`IrqGuard`]).
///
/// It stays with its thread, which stays on its CPU: it is neither sent to another thread,
///
/// ```compile_fail,E0277
/// # use percpu_core::local::LocalLock;
/// # percpu_core::percpu! { static LOCK: PerCpu<LocalLock<u32>> = LocalLock::new(0); }
/// let guard = LOCK.lock();
/// std::thread::scope(|s| { s.spawn(|| drop(guard)); });
/// ```
///
/// nor seen from one,
///
/// ```compile_fail,E0277
/// # use percpu_core::local::LocalLock;
/// # percpu_core::percpu! { static LOCK: PerCpu<LocalLock<u32>> = LocalLock::new(0); }
/// let guard = LOCK.lock_irqsave();
/// std::thread::scope(|s| { s.spawn(|| *guard); });
/// ```
///
/// and a reference to the value does not outlive it, nor it the box.
///
/// ```compile_fail,E0597
/// # use percpu_core::local::LocalLock;
/// # percpu_core::percpu! { static LOCK: PerCpu<LocalLock<u32>> = LocalLock::new(0); }
/// let value = {
///     let guard = LOCK.lock();
///     &*guard
/// };
/// assert_eq!(*value, 0);
/// ```
///
/// ```compile_fail,E0505
/// # use percpu_core::{alloc::PerCpuBox, local::LocalLock};
/// let boxed = PerCpuBox::<LocalLock<u32>>::try_new_zeroed().unwrap();
/// let guard = boxed.lock();
/// drop(boxed);
/// drop(guard);
/// ```
#[must_use = "the lock is open again as soon as the guard is dropped"]
pub struct LocalGuard<'a, T, P = PreemptGuard> {
    /// Neither to be sent to nor to be seen from another thread, which may run elsewhere.
    value: NonNull<T>,
    lock: PhantomData<&'a mut T>,
    // In this order they are dropped.
    _claim: Claim,
    _pin: P,
}

impl<T, P> Deref for LocalGuard<'_, T, P> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock of the CPU on which it stays: nobody else has the value.
        unsafe { self.value.as_ref() }
    }
}

impl<T, P> DerefMut for LocalGuard<'_, T, P> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`.
        unsafe { self.value.as_mut() }
    }
}

/// A [`LocalGuard`] that masks interrupts.
pub(super) type IrqLocalGuard<'a, T> = LocalGuard<'a, T, IrqGuard>;

#[cold]
#[inline(never)]
#[track_caller]
pub(super) fn taken() -> ! {
    panic!(
        "this CPU's lock is taken by the code that was interrupted, or by the caller: data that an \
         interrupt handler uses is locked by lock_irqsave everywhere, or by try_lock in the handler"
    );
}
