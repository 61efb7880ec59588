//! Slots: lists of chunks whose longest free runs are of like length. Linux: `pcpu_chunk_lists`.
//!
//! The last three slots hold the chunks that have been depopulated (sidelined), those that are
//! wholly free, and those that are being depopulated. A search goes upwards from the smallest slot
//! that can have room, and so comes to sidelined chunks after active ones and to free ones last.

use core::mem::{offset_of, size_of};
use core::ptr::{self, NonNull};

use super::Table;
use super::chunk::ChunkRef;
use super::zeroable::Zeroable;
use crate::platform::{NoMemory, Platform};
use crate::view::AllocatorView;

/// A node of a circular list; a head that points at itself is an empty list.
#[repr(C)]
pub(crate) struct Link {
    pub(crate) next: *mut Link,
    pub(crate) prev: *mut Link,
}

// SAFETY: two raw pointers. (A list's head is initialised before it is used.)
unsafe impl Zeroable for Link {}

impl Link {
    /// A node on no list.
    pub(crate) const fn unlinked() -> Self {
        Self { next: ptr::null_mut(), prev: ptr::null_mut() }
    }
}

/// The slot whose chunks have longest free runs of about `bytes` bytes: 1 below 16 bytes, then one
/// more for each doubling. Linux: `__pcpu_size_to_slot`.
pub const fn size_slot(bytes: usize) -> u32 {
    let slot = (usize::BITS - bytes.leading_zeros()).saturating_sub(3);
    if slot == 0 { 1 } else { slot }
}

/// The slot that a chunk belongs into whose longest free run has `contig` bytes, in an allocator
/// of units of `unit_size` bytes: 0 if nothing is free, [`size_slot`] otherwise, and the slot of
/// wholly free chunks if the run is the whole unit.
pub const fn slot_of(contig: usize, unit_size: usize) -> u32 {
    if contig == 0 {
        0
    } else if contig == unit_size {
        size_slot(unit_size) + 2
    } else {
        size_slot(contig)
    }
}

/// The heads of the lists, and which slots are special.
#[repr(C)]
pub(crate) struct Slots {
    heads: *mut Link,
    pub(crate) nr_slots: u32,
    pub(crate) sidelined: u32,
    pub(crate) free: u32,
    pub(crate) to_depopulate: u32,
}

const _: () = {
    assert!(offset_of!(Slots, heads) == 0);
    let at = offset_of!(AllocatorView, slots);
    assert!(at + offset_of!(Slots, nr_slots) == offset_of!(AllocatorView, nr_slots));
    assert!(at + offset_of!(Slots, sidelined) == offset_of!(AllocatorView, sidelined_slot));
    assert!(at + offset_of!(Slots, free) == offset_of!(AllocatorView, free_slot));
    let last = at + offset_of!(Slots, to_depopulate);
    assert!(last == offset_of!(AllocatorView, to_depopulate_slot));
    assert!(at + size_of::<Slots>() == offset_of!(AllocatorView, first_chunk));
};

impl Slots {
    /// No slots at all.
    pub(crate) const fn none() -> Self {
        Self { heads: ptr::null_mut(), nr_slots: 0, sidelined: 0, free: 0, to_depopulate: 0 }
    }

    /// The slots for units of `unit_size` bytes, all empty, and the memory of their heads, which is
    /// to live as long.
    pub(crate) fn new<P: Platform>(unit_size: usize) -> Result<(Self, Table<Link, P>), NoMemory> {
        let sidelined = size_slot(unit_size) + 1;
        let nr_slots = sidelined + 3;
        let table = Table::<Link, P>::zeroed(nr_slots as usize)?;
        let heads = table.as_ptr();
        for slot in 0..nr_slots as usize {
            let head = heads.wrapping_add(slot);
            // SAFETY: the table has `nr_slots` entries, and nobody else knows of them yet.
            unsafe { head.write(Link { next: head, prev: head }) };
        }
        let (free, to_depopulate) = (sidelined + 1, sidelined + 2);
        Ok((Self { heads, nr_slots, sidelined, free, to_depopulate }, table))
    }

    fn head(&self, slot: u32) -> *mut Link {
        debug_assert!(slot < self.nr_slots);
        self.heads.wrapping_add(slot as usize)
    }

    /// Whether the slot has no chunk.
    #[inline]
    pub(crate) fn is_empty(&self, slot: u32) -> bool {
        self.first(slot).is_none()
    }

    /// The first chunk of a slot.
    #[inline]
    pub(crate) fn first(&self, slot: u32) -> Option<ChunkRef> {
        let head = self.head(slot);
        // SAFETY: heads are valid for as long as the allocator.
        self.chunk_unless_head(slot, unsafe { (*head).next })
    }

    /// The chunk after `chunk` on the list of `slot`, which it is on.
    #[inline]
    pub(crate) fn next(&self, slot: u32, chunk: ChunkRef) -> Option<ChunkRef> {
        // SAFETY: chunks on a list are valid.
        self.chunk_unless_head(slot, unsafe { (*chunk.link().as_ptr()).next })
    }

    #[inline]
    fn chunk_unless_head(&self, slot: u32, link: *mut Link) -> Option<ChunkRef> {
        if link == self.head(slot) {
            return None;
        }
        // SAFETY: the nodes of a list are its head and chunks, and this is not the head.
        NonNull::new(link).map(|link| unsafe { ChunkRef::of_link(link) })
    }

    /// Puts `chunk`, which is on no list, at the front or at the back of a slot's list.
    pub(crate) fn insert(&mut self, slot: u32, chunk: ChunkRef, front: bool) {
        let head = self.head(slot);
        let node = chunk.link().as_ptr();
        // SAFETY: the head and its neighbours are valid nodes, since chunks leave their list before
        // they are destroyed; the caller holds the allocator's lock (`&mut self`), so nobody else
        // looks at them.
        unsafe {
            let (prev, next) = if front { (head, (*head).next) } else { ((*head).prev, head) };
            node.write(Link { next, prev });
            (*prev).next = node;
            (*next).prev = node;
        }
    }

    /// Takes `chunk` off the list it is on.
    pub(crate) fn remove(&mut self, chunk: ChunkRef) {
        let node = chunk.link().as_ptr();
        // SAFETY: as in `insert`; the chunk is on a list, so it has neighbours.
        unsafe {
            let Link { next, prev } = node.read();
            (*prev).next = next;
            (*next).prev = prev;
            node.write(Link::unlinked());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_double_in_size() {
        let slots = [(1, 1), (4, 1), (15, 1), (16, 2), (31, 2), (32, 3), (4096, 10), (32768, 13)];
        for (bytes, slot) in slots {
            assert_eq!(size_slot(bytes), slot, "{bytes} bytes");
        }
        assert_eq!(slot_of(0, 32768), 0);
        assert_eq!(slot_of(32764, 32768), 12);
        assert_eq!(slot_of(32768, 32768), 15);
    }
}
