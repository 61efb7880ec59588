//! Tables in the platform's metadata memory: the crate has no heap of its own.

use core::alloc::Layout;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use super::Zeroable;
use crate::platform::{NoMemory, Platform};

/// A slice of `T` in memory of [`Platform::alloc_meta`], given back on drop.
pub(crate) struct Table<T, P: Platform> {
    start: NonNull<T>,
    len: usize,
    platform: PhantomData<fn() -> P>,
}

// SAFETY: the table owns its memory alone, as a `Box<[T]>` does.
unsafe impl<T: Send, P: Platform> Send for Table<T, P> {}
// SAFETY: as above.
unsafe impl<T: Sync, P: Platform> Sync for Table<T, P> {}

impl<T: Zeroable, P: Platform> Table<T, P> {
    /// A table without entries, which owns no memory.
    pub(crate) const fn empty() -> Self {
        Self { start: NonNull::dangling(), len: 0, platform: PhantomData }
    }

    /// A table of `len` entries, all zero.
    pub(crate) fn zeroed(len: usize) -> Result<Self, NoMemory> {
        let layout = Layout::array::<T>(len).map_err(|_| NoMemory)?;
        if layout.size() == 0 {
            return Ok(Self { len, ..Self::empty() });
        }
        let start = P::alloc_meta(layout).ok_or(NoMemory)?.cast();
        Ok(Self { start, len, platform: PhantomData })
    }
}

impl<T, P: Platform> Table<T, P> {
    /// Lets go of the table: its first entry and its length.
    pub(crate) fn into_raw(self) -> (*mut T, usize) {
        let table = core::mem::ManuallyDrop::new(self);
        (table.as_ptr(), table.len)
    }

    /// The table that [`into_raw`](Self::into_raw) let go of; one without entries if `start` is
    /// null.
    ///
    /// # Safety
    ///
    /// `start` is null, or it and `len` came from `into_raw`, and nobody else has the table.
    pub(crate) unsafe fn from_raw(start: *mut T, len: usize) -> Self {
        match NonNull::new(start) {
            Some(start) => Self { start, len, platform: PhantomData },
            None => Self { start: NonNull::dangling(), len: 0, platform: PhantomData },
        }
    }

    /// The first entry. Valid as long as the table, wherever that is moved.
    pub(crate) fn as_ptr(&self) -> *mut T {
        self.start.as_ptr()
    }
}

impl<T, P: Platform> Deref for Table<T, P> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the memory has `len` entries, zeroed by the platform, which `T: Zeroable` makes
        // valid; the table owns it. Without entries the pointer is dangling but aligned.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T, P: Platform> DerefMut for Table<T, P> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` is the only way to it.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T, P: Platform> Drop for Table<T, P> {
    fn drop(&mut self) {
        const { assert!(!core::mem::needs_drop::<T>()) };
        let layout = Layout::for_value::<[T]>(self);
        if layout.size() != 0 {
            // SAFETY: the memory came from `alloc_meta` with this layout, and dies with the table.
            unsafe { P::free_meta(self.start.cast(), layout) };
        }
    }
}
