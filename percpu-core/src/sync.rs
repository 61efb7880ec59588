//! The two locks of the crate: a short one that masks interrupts, and a long one whose waiters let
//! other threads run. Both are words that another address space can read.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use crate::atomic::{AtomicU32, Ordering, UnsafeCell};
use crate::platform::{Global, IrqState, Platform};

/// A spin lock that masks interrupts while it is held. Linux: `raw_spinlock_t` with
/// `raw_spin_lock_irqsave`.
///
/// Waiters spin with interrupts as they were, so that a CPU that waits still answers IPIs.
#[repr(C)]
pub struct SpinLock<T, P: Platform = Global> {
    locked: AtomicU32,
    value: UnsafeCell<T>,
    platform: PhantomData<fn() -> P>,
}

// SAFETY: the lock gives the value to one CPU at a time; `T: Send` lets it travel between them.
unsafe impl<T: Send, P: Platform> Sync for SpinLock<T, P> {}
// SAFETY: as above; moving the lock moves the value.
unsafe impl<T: Send, P: Platform> Send for SpinLock<T, P> {}

impl<T, P: Platform> SpinLock<T, P> {
    /// Where the value lies, for views of a lock together with what it owns.
    pub(crate) const VALUE_OFFSET: usize = core::mem::offset_of!(Self, value);

    /// An open lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { locked: AtomicU32::new(0), value: UnsafeCell::new(value), platform: PhantomData }
    }

    /// Masks interrupts and takes the lock.
    pub fn lock(&self) -> SpinGuard<'_, T, P> {
        let mut spins = 0;
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            while self.locked.load(Ordering::Relaxed) != 0 {
                P::relax(spins);
                spins = spins.saturating_add(1);
            }
        }
    }

    /// Takes the lock if nobody holds it.
    pub fn try_lock(&self) -> Option<SpinGuard<'_, T, P>> {
        let irq = P::irq_save();
        if self.locked.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            Some(SpinGuard { lock: self, irq, not_send: PhantomData })
        } else {
            // SAFETY: the state is of the save just above.
            unsafe { P::irq_restore(irq) };
            None
        }
    }

    /// The value, for whoever is the only owner.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

/// Possession of a [`SpinLock`]; dropping it opens the lock and restores interrupts.
pub struct SpinGuard<'a, T, P: Platform> {
    lock: &'a SpinLock<T, P>,
    irq: IrqState,
    not_send: PhantomData<*mut ()>,
}

impl<T, P: Platform> Deref for SpinGuard<'_, T, P> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock, so nobody else has the value.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T, P: Platform> DerefMut for SpinGuard<'_, T, P> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock, so nobody else has the value.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T, P: Platform> Drop for SpinGuard<'_, T, P> {
    fn drop(&mut self) {
        self.lock.locked.store(0, Ordering::Release);
        // SAFETY: the state is of this guard's own save; guards may go in any order.
        unsafe { P::irq_restore(self.irq) };
    }
}

/// A lock whose waiters let other threads run; its holder may do so too. Never taken with
/// interrupts masked or preemption off. Linux: `struct mutex`.
#[repr(C)]
pub struct Mutex<T, P: Platform = Global> {
    locked: AtomicU32,
    value: UnsafeCell<T>,
    platform: PhantomData<fn() -> P>,
}

// SAFETY: the lock gives the value to one thread at a time; `T: Send` lets it travel.
unsafe impl<T: Send, P: Platform> Sync for Mutex<T, P> {}
// SAFETY: as above; moving the lock moves the value.
unsafe impl<T: Send, P: Platform> Send for Mutex<T, P> {}

impl<T, P: Platform> Mutex<T, P> {
    /// An open lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { locked: AtomicU32::new(0), value: UnsafeCell::new(value), platform: PhantomData }
    }

    /// Takes the lock, letting other threads run until it is free.
    pub fn lock(&self) -> MutexGuard<'_, T, P> {
        while self.locked.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            P::yield_now();
        }
        MutexGuard { lock: self, value: PhantomData }
    }
}

/// Possession of a [`Mutex`]; dropping it opens the lock.
///
/// It is as good as a `&mut T`: shared between threads only if `T` may be.
///
/// ```compile_fail,E0277
/// # use core::cell::Cell;
/// # use percpu_core::{platform::Global, sync::MutexGuard};
/// fn shared_between_threads<T: Sync>() {}
/// shared_between_threads::<MutexGuard<'static, Cell<u64>, Global>>();
/// ```
pub struct MutexGuard<'a, T, P: Platform> {
    lock: &'a Mutex<T, P>,
    value: PhantomData<&'a mut T>,
}

impl<T, P: Platform> Deref for MutexGuard<'_, T, P> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock, so nobody else has the value.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T, P: Platform> DerefMut for MutexGuard<'_, T, P> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock, so nobody else has the value.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T, P: Platform> Drop for MutexGuard<'_, T, P> {
    fn drop(&mut self) {
        self.lock.locked.store(0, Ordering::Release);
    }
}
