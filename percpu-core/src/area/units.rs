//! The units that have memory, in the order in which they got it.
//!
//! Units are added while others go over the list without a lock, and never go.

use crate::atomic::{AtomicUsize, Ordering};

use crate::alloc::{Table, Zeroable};
use crate::platform::{NoMemory, Platform};

/// A CPU's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Bytes from a chunk's base to the unit.
    pub(crate) offset: usize,
    /// The CPU.
    pub(crate) cpu: u32,
}

// SAFETY: integers.
unsafe impl Zeroable for Unit {}

/// A list that grows at its end, up to a number that is known before.
pub(crate) struct UnitList<P: Platform> {
    entries: Table<Unit, P>,
    capacity: usize,
    /// Entries that are written for good; published after the last of them.
    len: AtomicUsize,
}

impl<P: Platform> UnitList<P> {
    /// A list without room.
    pub(crate) const fn empty() -> Self {
        Self { entries: Table::empty(), capacity: 0, len: AtomicUsize::new(0) }
    }

    /// An empty list with room for `capacity` units.
    pub(crate) fn with_room(capacity: usize) -> Result<Self, NoMemory> {
        Ok(Self { entries: Table::zeroed(capacity)?, capacity, len: AtomicUsize::new(0) })
    }

    /// The number of units that the list has room for.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The units. Whoever sees one here also sees its memory and what was written there before it
    /// was [pushed](Self::push).
    #[inline]
    pub(crate) fn as_slice(&self) -> &[Unit] {
        let len = self.len.load(Ordering::Acquire);
        // SAFETY: the first `len` entries were written before `len` was published, and are never
        // written again; the slice does not reach the entry that a `push` may be writing now.
        unsafe { core::slice::from_raw_parts(self.entries.as_ptr(), len) }
    }

    /// Adds a unit.
    ///
    /// # Safety
    ///
    /// One caller at a time, and there is room.
    pub(crate) unsafe fn push(&self, unit: Unit) {
        let len = self.len.load(Ordering::Relaxed);
        // SAFETY: there is room, and no slice reaches beyond `len`; the caller is the only writer.
        unsafe { self.entries.as_ptr().add(len).write(unit) };
        self.len.store(len + 1, Ordering::Release);
    }
}
