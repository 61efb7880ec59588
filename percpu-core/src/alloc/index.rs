//! From an address to its chunk, in constant time. Linux keeps the chunk in `struct page`.
//!
//! Chunks are aligned to a power of two that is not smaller than a unit, so the high bits of an
//! address in the first unit are the chunk's own. They are the key of a hash table with linear
//! probing.

use core::ptr;

use super::Table;
use super::chunk::{Chunk, ChunkRef};
use super::zeroable::Zeroable;
use crate::platform::{NoMemory, Platform};

/// An entry: a key and its chunk, null if the entry is free.
struct Entry {
    key: usize,
    chunk: *mut Chunk,
}

// SAFETY: an integer and a raw pointer.
unsafe impl Zeroable for Entry {}

/// The chunks by address, the first and the reserved one excepted.
pub(crate) struct Index<P: Platform> {
    /// A power of two of entries, at least half of them free; or none.
    entries: Table<Entry, P>,
    len: usize,
    /// An address shifted by this is a key.
    shift: u32,
}

impl<P: Platform> Index<P> {
    /// An index of chunks that are aligned to `1 << shift`.
    pub(crate) const fn new(shift: u32) -> Self {
        Self { entries: Table::empty(), len: 0, shift }
    }

    /// The number of entries of the table that one more chunk needs, if the present one is full.
    pub(crate) fn wants_capacity(&self) -> Option<usize> {
        let needed = (self.len + 1) * 2;
        (needed > self.entries.len()).then(|| needed.next_power_of_two().max(16))
    }

    /// Moves to a table of `capacity` entries. Returns the old one, to be freed when interrupts
    /// are on.
    pub(crate) fn install(&mut self, table: IndexTable<P>) -> IndexTable<P> {
        let old = core::mem::replace(&mut self.entries, table.0);
        for entry in old.iter().filter(|entry| !entry.chunk.is_null()) {
            self.place(entry.key, entry.chunk);
        }
        IndexTable(old)
    }

    /// Adds a chunk; there is capacity.
    pub(crate) fn insert(&mut self, base: usize, chunk: ChunkRef) {
        debug_assert!(self.wants_capacity().is_none());
        self.place(base >> self.shift, chunk.as_ptr());
        self.len += 1;
    }

    /// Removes the chunk at `base`, which is there.
    pub(crate) fn remove(&mut self, base: usize) {
        let key = base >> self.shift;
        let mask = self.entries.len() - 1;
        let mut hole = self.home(key);
        while self.entries[hole].key != key || self.entries[hole].chunk.is_null() {
            hole = (hole + 1) & mask;
        }
        // Close the gap: an entry behind it moves up unless that would put it before its home.
        let mut at = (hole + 1) & mask;
        while !self.entries[at].chunk.is_null() {
            let from_home = at.wrapping_sub(self.home(self.entries[at].key)) & mask;
            let from_hole = at.wrapping_sub(hole) & mask;
            if from_home >= from_hole {
                self.entries.swap(at, hole);
                hole = at;
            }
            at = (at + 1) & mask;
        }
        self.entries[hole] = Entry { key: 0, chunk: ptr::null_mut() };
        self.len -= 1;
    }

    /// The chunk in whose first unit `addr` may lie; whoever asks compares with the unit's size.
    #[inline]
    pub(crate) fn get(&self, addr: usize) -> Option<ChunkRef> {
        if self.len == 0 {
            return None;
        }
        let key = addr >> self.shift;
        let mask = self.entries.len() - 1;
        let mut at = self.home(key);
        loop {
            let entry = &self.entries[at];
            let chunk = ptr::NonNull::new(entry.chunk)?;
            if entry.key == key {
                // SAFETY: a chunk's list node is its first field.
                return Some(unsafe { ChunkRef::of_link(chunk.cast()) });
            }
            at = (at + 1) & mask;
        }
    }

    /// What the `n`th entry of the table holds; `None` beyond the table's end. The order changes
    /// only when chunks come or go.
    pub(crate) fn nth(&self, n: usize) -> Option<Option<ChunkRef>> {
        let chunk = ptr::NonNull::new(self.entries.get(n)?.chunk);
        // SAFETY: a chunk's list node is its first field.
        Some(chunk.map(|chunk| unsafe { ChunkRef::of_link(chunk.cast()) }))
    }

    fn place(&mut self, key: usize, chunk: *mut Chunk) {
        let mask = self.entries.len() - 1;
        let mut at = self.home(key);
        while !self.entries[at].chunk.is_null() {
            at = (at + 1) & mask;
        }
        self.entries[at] = Entry { key, chunk };
    }

    /// Where the search for a key begins. Fibonacci hashing: neighbours spread out.
    #[inline]
    fn home(&self, key: usize) -> usize {
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash >> (usize::BITS - self.entries.len().trailing_zeros())
    }
}

/// The memory of an index.
pub(crate) struct IndexTable<P: Platform>(Table<Entry, P>);

impl<P: Platform> IndexTable<P> {
    /// A table of `capacity` entries, a power of two.
    pub(crate) fn new(capacity: usize) -> Result<Self, NoMemory> {
        Ok(Self(Table::zeroed(capacity)?))
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::host::Host;

    const SHIFT: u32 = 15;

    /// A chunk that is never looked at.
    fn chunk(n: usize) -> ChunkRef {
        let link = ptr::NonNull::new(ptr::without_provenance_mut(n + 1)).unwrap();
        // SAFETY: nobody dereferences it.
        unsafe { ChunkRef::of_link(link) }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 64 }, ..Default::default() })]

        #[test]
        fn chunks_are_found_until_they_are_removed(
            // Neighbours, and keys far apart that share a place.
            ops in prop::collection::vec((any::<bool>(), 0usize..40, 0usize..3), 1..200),
        ) {
            let mut index = Index::<Host>::new(SHIFT);
            let mut model = BTreeMap::new();
            for (n, (insert, low, high)) in ops.into_iter().enumerate() {
                let base = (low << SHIFT) + (high << 40);
                if insert && !model.contains_key(&base) {
                    if let Some(capacity) = index.wants_capacity() {
                        drop(index.install(IndexTable::new(capacity).unwrap()));
                    }
                    index.insert(base, chunk(n));
                    model.insert(base, chunk(n));
                } else if !insert && model.remove(&base).is_some() {
                    index.remove(base);
                }
                for base in (0..40).flat_map(|low| (0..3).map(move |high| (low << SHIFT) + (high << 40))) {
                    let expected = model.get(&base).copied();
                    prop_assert_eq!(index.get(base), expected);
                    prop_assert_eq!(index.get(base + (1 << SHIFT) - 1), expected);
                }
                let listed = (0..).map_while(|n| index.nth(n)).flatten().count();
                prop_assert_eq!(listed, model.len());
            }
        }
    }
}
