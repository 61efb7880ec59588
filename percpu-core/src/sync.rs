//! The two locks of the crate: a short one that masks interrupts, and a long one whose waiters let
//! other threads run. Both are words that another address space can read.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::AtomicUsize;

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
///
/// Where the platform tells threads apart ([`Platform::thread_id`]), a thread that locks what it holds
/// already panics, instead of waiting for itself.
#[repr(C)]
pub struct Mutex<T, P: Platform = Global> {
    locked: AtomicU32,
    /// The thread that holds the lock, or 0. Written by the holder only: a thread that reads its own
    /// number has written it, so the order of other threads' accesses is of no account.
    holder: AtomicUsize,
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
        Self {
            locked: AtomicU32::new(0),
            holder: AtomicUsize::new(0),
            value: UnsafeCell::new(value),
            platform: PhantomData,
        }
    }

    /// Takes the lock, letting other threads run until it is free.
    ///
    /// # Panics
    ///
    /// If this thread holds the lock already and the platform [tells](Platform::thread_id).
    pub fn lock(&self) -> MutexGuard<'_, T, P> {
        self.lock_unless(|| ())
    }

    /// As [`lock`](Self::lock), and calls `check` each time it finds the lock held: to panic where the
    /// holder waits for the caller.
    pub(crate) fn lock_unless(&self, check: impl Fn()) -> MutexGuard<'_, T, P> {
        let thread = P::thread_id();
        while self.locked.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            check();
            assert!(
                thread == 0 || self.holder.load(Ordering::Relaxed) != thread,
                "this thread waits for a lock that it holds: code that is called with the lock held \
                 (a callback, an initialiser) must not call what takes it"
            );
            P::yield_now();
        }
        self.holder.store(thread, Ordering::Relaxed);
        MutexGuard { lock: self, value: PhantomData, not_send: PhantomData }
    }

    /// Returns whether this thread holds the lock; false if the platform does not tell threads apart.
    pub(crate) fn is_held_here(&self) -> bool {
        let thread = P::thread_id();
        thread != 0 && self.holder.load(Ordering::Relaxed) == thread
    }
}

/// Possession of a [`Mutex`]; dropping it opens the lock.
///
/// It is as good as a `&mut T`: shared between threads only if `T` may be. It stays with the thread
/// that locked, as the holder's number says.
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
    not_send: PhantomData<*mut ()>,
}

// SAFETY: a shared guard lends `&T` out, which `T: Sync` allows on any thread.
unsafe impl<T: Sync, P: Platform> Sync for MutexGuard<'_, T, P> {}

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
        self.lock.holder.store(0, Ordering::Relaxed);
        self.lock.locked.store(0, Ordering::Release);
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn a_thread_does_not_wait_for_itself() {
        static LOCK: Mutex<u32> = Mutex::new(0);
        let held = LOCK.lock();
        assert!(catch_unwind(|| drop(LOCK.lock())).is_err());
        let other = std::thread::spawn(|| *LOCK.lock() += 1);
        drop(held);
        other.join().unwrap();
        assert_eq!(*LOCK.lock(), 1);
    }
}
