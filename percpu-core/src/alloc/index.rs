//! From an address to its chunk, in constant time. Linux keeps the chunk in `struct page`.
//!
//! Chunks are aligned to a power of two that is not smaller than a unit, so the high bits of an
//! address in the first unit are the chunk's own. They are the key of a hash table with linear
//! probing.

use core::ptr::{self, NonNull};

use super::Table;
use super::grow::Growth;
use super::ledger::Ledger;
use super::zeroable::Zeroable;
use crate::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use crate::platform::{NoMemory, Platform};

/// An entry: a key and its chunk's ledger, null if the entry is free.
struct Entry {
    key: AtomicUsize,
    ledger: AtomicPtr<Ledger>,
}

// SAFETY: an integer and a raw pointer.
unsafe impl Zeroable for Entry {}

impl Entry {
    fn ledger(&self) -> Option<NonNull<Ledger>> {
        NonNull::new(self.ledger.load(Ordering::Acquire))
    }

    fn set(&self, key: usize, ledger: *mut Ledger) {
        self.key.store(key, Ordering::Relaxed);
        self.ledger.store(ledger, Ordering::Release);
    }
}

/// The chunks by address, the first and the reserved one excepted.
///
/// It changes under the growth lock and the short lock together. Under either of them what is asked
/// is answered right. Without them the answer may be wrong while there is a change: a chunk is not
/// found, or it is another one than that of the address, which whoever asks must look after. What it
/// answers is a ledger that is valid until a [grace period](super::cache) after its removal.
pub(crate) struct Index<P: Platform> {
    /// `mask + 1` entries, at least half of them free.
    entries: AtomicPtr<Entry>,
    /// Grows only: who sees a larger one sees the larger table.
    mask: AtomicUsize,
    len: AtomicUsize,
    /// An address shifted by this is a key.
    shift: AtomicU32,
    platform: core::marker::PhantomData<fn() -> P>,
}

impl<P: Platform> Index<P> {
    /// An index without chunks.
    pub(crate) const fn new() -> Self {
        Self {
            entries: AtomicPtr::new(ptr::null_mut()),
            mask: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            shift: AtomicU32::new(0),
            platform: core::marker::PhantomData,
        }
    }

    /// Says that chunks are aligned to `1 << shift`; before there is any.
    pub(crate) fn set_shift(&self, shift: u32) {
        self.shift.store(shift, Ordering::Relaxed);
    }

    fn key(&self, addr: usize) -> usize {
        addr >> self.shift.load(Ordering::Relaxed)
    }

    fn entries(&self) -> &[Entry] {
        let mask = self.mask.load(Ordering::Acquire);
        let entries = self.entries.load(Ordering::Acquire);
        if entries.is_null() {
            return &[];
        }
        // SAFETY: tables come with at least as many entries as any mask published before them has.
        // A table is freed a grace period after it was replaced, under the growth lock; whoever asks
        // has that lock, the short one, under which tables are replaced, or a cache's, and so is
        // done before the period ends.
        unsafe { core::slice::from_raw_parts(entries, mask + 1) }
    }

    /// Bytes of the table.
    pub(crate) fn bytes(&self) -> usize {
        // Without looking at the table, which may be replaced meanwhile.
        match self.mask.load(Ordering::Relaxed) {
            0 => 0,
            mask => (mask + 1) * size_of::<Entry>(),
        }
    }

    /// The number of entries of the table that one more chunk needs, if the present one is full.
    pub(crate) fn wants_capacity(&self) -> Option<usize> {
        let needed = (self.len.load(Ordering::Relaxed) + 1) * 2;
        (needed > self.entries().len()).then(|| needed.next_power_of_two().max(16))
    }

    /// Moves to a larger table. Returns the old one, to be freed after a grace period.
    pub(crate) fn install(&self, _: &mut Growth, table: IndexTable<P>) -> IndexTable<P> {
        for entry in self.entries() {
            if let Some(ledger) = entry.ledger() {
                Self::place(&table.0, entry.key.load(Ordering::Relaxed), ledger);
            }
        }
        let (entries, len) = table.0.into_raw();
        let old_len = self.entries().len();
        let old = self.entries.swap(entries, Ordering::AcqRel);
        self.mask.store(len - 1, Ordering::Release);
        // SAFETY: it came from `into_raw` here, or there was none.
        IndexTable(unsafe { Table::from_raw(old, old_len) })
    }

    /// Adds a chunk; there is capacity.
    pub(crate) fn insert(&self, _: &mut Growth, base: usize, ledger: NonNull<Ledger>) {
        debug_assert!(self.wants_capacity().is_none());
        Self::place(self.entries(), self.key(base), ledger);
        self.len.fetch_add(1, Ordering::Relaxed);
    }

    /// Removes the chunk at `base`, which is there.
    pub(crate) fn remove(&self, _: &mut Growth, base: usize) {
        let (key, entries) = (self.key(base), self.entries());
        let mask = entries.len() - 1;
        let key_of = |at: usize| entries[at].key.load(Ordering::Relaxed);
        let mut hole = home(key, entries.len());
        while key_of(hole) != key || entries[hole].ledger().is_none() {
            hole = (hole + 1) & mask;
        }
        // Close the gap: an entry behind it moves up unless that would put it before its home.
        let mut at = (hole + 1) & mask;
        while let Some(ledger) = entries[at].ledger() {
            let from_home = at.wrapping_sub(home(key_of(at), entries.len())) & mask;
            let from_hole = at.wrapping_sub(hole) & mask;
            if from_home >= from_hole {
                entries[hole].set(key_of(at), ledger.as_ptr());
                hole = at;
            }
            at = (at + 1) & mask;
        }
        entries[hole].set(0, ptr::null_mut());
        self.len.fetch_sub(1, Ordering::Relaxed);
    }

    /// The ledger of the chunk in whose first unit `addr` may lie; whoever asks compares with the
    /// chunk's base.
    #[inline]
    pub(crate) fn get(&self, addr: usize) -> Option<NonNull<Ledger>> {
        let (key, entries) = (self.key(addr), self.entries());
        let mask = entries.len().checked_sub(1)?;
        let first = home(key, entries.len());
        // While there is a change, the table may look as if it had no free entry.
        for at in first..=first + mask {
            let entry = &entries[at & mask];
            let ledger = entry.ledger()?;
            if entry.key.load(Ordering::Relaxed) == key {
                return Some(ledger);
            }
        }
        None
    }

    /// What the `n`th entry of the table holds; `None` beyond the table's end. The order changes
    /// only when chunks come or go.
    pub(crate) fn nth(&self, n: usize) -> Option<Option<NonNull<Ledger>>> {
        Some(self.entries().get(n)?.ledger())
    }

    fn place(entries: &[Entry], key: usize, ledger: NonNull<Ledger>) {
        let mask = entries.len() - 1;
        let mut at = home(key, entries.len());
        while entries[at].ledger().is_some() {
            at = (at + 1) & mask;
        }
        entries[at].set(key, ledger.as_ptr());
    }
}

impl<P: Platform> Drop for Index<P> {
    fn drop(&mut self) {
        let len = self.entries().len();
        // SAFETY: it came from `into_raw` in `install`, or there is none; nobody is left to look.
        drop(unsafe { Table::<Entry, P>::from_raw(*self.entries.get_mut(), len) });
    }
}

/// Where the search for a key begins in a table of `len` entries, a power of two. Fibonacci hashing:
/// neighbours spread out.
#[inline]
fn home(key: usize, len: usize) -> usize {
    let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // A table that is just being replaced may look like one of a single entry.
    hash.checked_shr(usize::BITS - len.trailing_zeros()).unwrap_or(0)
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
    use crate::scale::{cases, scaled};

    const SHIFT: u32 = 15;

    /// A ledger that is never looked at.
    fn ledger(n: usize) -> NonNull<Ledger> {
        NonNull::new(ptr::without_provenance_mut((n + 1) * 64)).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: cases(64), ..Default::default() })]

        #[test]
        fn chunks_are_found_until_they_are_removed(
            // Neighbours, and keys far apart that share a place.
            ops in prop::collection::vec((any::<bool>(), 0usize..40, 0usize..3), 1..scaled(200)),
        ) {
            let mut growth = Growth::new();
            let index = Index::<Host>::new();
            index.set_shift(SHIFT);
            let mut model = BTreeMap::new();
            for (n, (insert, low, high)) in ops.into_iter().enumerate() {
                let base = (low << SHIFT) + (high << 40);
                if insert && !model.contains_key(&base) {
                    if let Some(capacity) = index.wants_capacity() {
                        drop(index.install(&mut growth, IndexTable::new(capacity).unwrap()));
                    }
                    index.insert(&mut growth, base, ledger(n));
                    model.insert(base, ledger(n));
                } else if !insert && model.remove(&base).is_some() {
                    index.remove(&mut growth, base);
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
