//! A chunk's ledger: where its areas begin and end, and which of them somebody holds. It is the part
//! of a chunk that a free reads without the short lock.
//!
//! Boundaries are written under the short lock, which taking and giving back granules needs anyway.
//! Those of a live area stand still: its neighbours' changes leave both of its ends set and nothing
//! set between. Whether an area is live is a bit of its own, changed by one atomic operation: of
//! several frees of one area exactly one finds the bit set.
//!
//! An area whose granules are taken while its live bit is clear is *cached*: somebody has freed it,
//! and it waits in a CPU's [cache](super::cache).

use core::slice;

use super::accounting::Groups;
use super::bitmap::{self, Run};
use super::chunk::ChunkRef;
use crate::atomic::{AtomicU64, Ordering};

const BITS: u32 = u64::BITS;

/// The ledger of one chunk. It never changes its place, and lives as long as the chunk.
pub(crate) struct Ledger {
    base: usize,
    bound_map: *const AtomicU64,
    live_map: *const AtomicU64,
    nr_bits: u32,
    chunk: ChunkRef,
    /// Whom the areas are accounted to.
    pub(super) groups: Groups,
}

impl Ledger {
    /// The ledger of `chunk`, whose maps are empty.
    ///
    /// # Safety
    ///
    /// `bound_map` has `nr_bits + 1` bits and `live_map` has `nr_bits`; both live as long as the
    /// ledger, which alone reads and writes them: the chunk keeps their addresses for its view.
    pub(crate) unsafe fn new(
        chunk: ChunkRef,
        base: usize,
        nr_bits: u32,
        (bound_map, live_map): (*const AtomicU64, *const AtomicU64),
    ) -> Self {
        Self { base, bound_map, live_map, nr_bits, chunk, groups: Groups::none() }
    }

    /// The chunk, which belongs to the short lock.
    pub(crate) fn chunk(&self) -> ChunkRef {
        self.chunk
    }

    /// Address of the chunk's first byte, in unit space.
    #[inline]
    pub(crate) fn base(&self) -> usize {
        self.base
    }

    fn bounds(&self) -> &[AtomicU64] {
        // SAFETY: `new` was promised so many bits for as long as the ledger lives.
        unsafe { slice::from_raw_parts(self.bound_map, (self.nr_bits / BITS + 1) as usize) }
    }

    fn live(&self) -> &[AtomicU64] {
        // SAFETY: as above; a chunk has a whole number of words.
        unsafe { slice::from_raw_parts(self.live_map, (self.nr_bits / BITS) as usize) }
    }

    /// Marks the granules `run`, just taken, as areas of `len` granules each. Under the short lock.
    #[inline]
    pub(crate) fn mark(&self, run: Run, len: u32) {
        let bounds = self.bounds();
        for word in run.start / BITS..=(run.end - 1) / BITS {
            let inside = bitmap::mask(word, run.start, run.end);
            // The first bit may be the end of a live area, which a free reads at any time: it must
            // not go, not even for a moment.
            let first = if word == run.start / BITS { 1 << (run.start % BITS) } else { 0 };
            update(&bounds[word as usize], |bits| bits & !inside | first);
        }
        let mut at = run.start;
        while at < run.end {
            self.set_bound(at);
            at += len;
        }
        self.set_bound(run.end);
    }

    #[inline]
    fn set_bound(&self, at: u32) {
        update(&self.bounds()[(at / BITS) as usize], |bits| bits | 1 << (at % BITS));
    }

    /// Whether an area begins or ends at granule `at`. Of a granule in the middle of nothing the
    /// answer means nothing.
    #[inline]
    pub(crate) fn is_bound(&self, at: u32) -> bool {
        self.bounds()[(at / BITS) as usize].load(Ordering::Relaxed) & 1 << (at % BITS) != 0
    }

    /// The area that begins at granule `start`, which one does.
    #[inline]
    pub(crate) fn area_at(&self, start: u32) -> Run {
        let bounds = self.bounds();
        let from = start + 1;
        let mut word = from / BITS;
        let mut bits = bounds[word as usize].load(Ordering::Relaxed) & !0 << (from % BITS);
        while bits == 0 {
            word += 1;
            let Some(next) = bounds.get(word as usize) else {
                return Run { start, end: self.nr_bits };
            };
            bits = next.load(Ordering::Relaxed);
        }
        Run { start, end: word * BITS + bits.trailing_zeros() }
    }

    /// The areas that somebody holds, in order; where others go on meanwhile, those it happens to
    /// see.
    pub(crate) fn live_areas(&self) -> impl Iterator<Item = Run> + '_ {
        self.live().iter().zip(0..).flat_map(move |(word, n)| {
            let mut bits = word.load(Ordering::Relaxed);
            core::iter::from_fn(move || {
                let bit = bits.trailing_zeros();
                // A zero word ends here; otherwise the lowest bit goes.
                (bits != 0).then(|| bits &= bits - 1)?;
                Some(self.area_at(n * BITS + bit))
            })
        })
    }

    /// Records that somebody holds the area at granule `start` from now on.
    #[inline]
    pub(crate) fn hand_out(&self, start: u32) {
        let word = &self.live()[(start / BITS) as usize];
        // Its boundaries are there for whoever takes it in, even for one who should not.
        word.fetch_or(1 << (start % BITS), Ordering::Release);
    }

    /// Records that nobody holds the area at granule `start` any more. Whether somebody did: of
    /// several callers one alone is told so, and the area is that one's.
    #[inline]
    pub(crate) fn take_in(&self, start: u32) -> bool {
        let bit = 1 << (start % BITS);
        let word = &self.live()[(start / BITS) as usize];
        // Acquires what `hand_out` released. A free that comes too late, when the place has a new
        // area, cannot be told from a right one; but it takes in that area, as long as it is, and
        // no neighbour with it.
        word.fetch_and(!bit, Ordering::Acquire) & bit != 0
    }
}

/// Changes a word that has one writer at a time.
#[inline]
fn update(word: &AtomicU64, change: impl FnOnce(u64) -> u64) {
    word.store(change(word.load(Ordering::Relaxed)), Ordering::Relaxed);
}
