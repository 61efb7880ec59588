//! A value that is written once and then shared: what the allocator learns at set-up.

use crate::atomic::{AtomicU32, Ordering};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

const EMPTY: u32 = 0;
const BEING_SET: u32 = 1;
const SET: u32 = 2;

/// A cell that can be set once; reading it costs one load.
pub(crate) struct Once<T> {
    state: AtomicU32,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the value is written by the one caller that took the state from EMPTY, and shared only
// after SET was published; `T: Send` lets it come from another thread, `T: Sync` be shared.
unsafe impl<T: Send + Sync> Sync for Once<T> {}
// SAFETY: moving the cell moves the value.
unsafe impl<T: Send> Send for Once<T> {}

impl<T> Once<T> {
    /// A cell without a value.
    pub(crate) const fn new() -> Self {
        Self { state: AtomicU32::new(EMPTY), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// The value, if it has been set.
    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        if self.state.load(Ordering::Acquire) != SET {
            return None;
        }
        // SAFETY: SET was published after the value was written; it is never written again.
        Some(unsafe { (*self.value.get()).assume_init_ref() })
    }

    /// Sets the value, or gives it back if another one was first.
    pub(crate) fn set(&self, value: T) -> Result<&T, T> {
        let mine =
            self.state.compare_exchange(EMPTY, BEING_SET, Ordering::Acquire, Ordering::Relaxed);
        if mine.is_err() {
            return Err(value);
        }
        // SAFETY: this call alone took the state from EMPTY, and nobody reads before SET.
        let value = unsafe { (*self.value.get()).write(value) };
        self.state.store(SET, Ordering::Release);
        Ok(value)
    }
}

impl<T> Drop for Once<T> {
    fn drop(&mut self) {
        if *self.state.get_mut() == SET {
            // SAFETY: SET says that the value was written, and nobody else is left to use it.
            unsafe { self.value.get_mut().assume_init_drop() };
        }
    }
}
