//! Numbers for whoever wants to know how the allocator does. Linux: `/sys/kernel/debug/percpu_stats`.

use super::Allocator;
use super::bitmap::{self, Run};
use super::cache::Caches;
use super::chunk::Chunk;
use crate::platform::Platform;
use crate::view::{BLOCK_GRANULES, GRANULE, PAGE};

/// Counts over all chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Areas ever handed out.
    pub allocs: u64,
    /// Areas ever taken back.
    pub frees: u64,
    /// Areas that are live.
    pub live: u64,
    /// The most areas that were ever live at a time, those included that waited in caches then.
    pub peak_live: u64,
    /// Chunks, the reserved one not counted.
    pub chunks: u32,
    /// The most chunks there ever were.
    pub peak_chunks: u32,
    /// Bytes of the smallest area ever, rounded up to granules; 0 if there was none.
    pub smallest: u32,
    /// Bytes of the largest area ever.
    pub largest: u32,
    /// Populated pages without an area, in chunks that serve allocations.
    pub empty_populated_pages: u32,
    /// Bytes of the areas that are live, on one CPU.
    pub live_bytes: u64,
    /// The most bytes of areas at a time, on one CPU, those included that waited in caches then.
    pub peak_bytes: u64,
    /// Bytes of a unit that have memory, over all chunks, the static variables' included.
    pub populated_bytes: u64,
    /// The most there ever were.
    pub peak_populated_bytes: u64,
    /// Bytes of a unit that are reserved, over all chunks: each CPU has so much address space.
    pub reserved_bytes: u64,
    /// Bytes of the allocator's own tables: the chunks' accounts, the index, the caches, the tables
    /// of groups, the leak tracker's records.
    pub metadata_bytes: u64,
}

impl Statistics {
    pub(crate) const fn new() -> Self {
        Self {
            allocs: 0,
            frees: 0,
            live: 0,
            peak_live: 0,
            chunks: 0,
            peak_chunks: 0,
            smallest: 0,
            largest: 0,
            empty_populated_pages: 0,
            live_bytes: 0,
            peak_bytes: 0,
            populated_bytes: 0,
            peak_populated_bytes: 0,
            reserved_bytes: 0,
            metadata_bytes: 0,
        }
    }

    /// Counts `count` areas taken out of a chunk. While the state has the numbers, `live` and
    /// `live_bytes` include cached areas, and `allocs` and `frees` leave out what went through caches.
    #[inline]
    pub(crate) fn taken(&mut self, count: u32, bytes: u32) {
        self.live += u64::from(count);
        self.peak_live = self.peak_live.max(self.live);
        self.live_bytes += u64::from(count) * u64::from(bytes);
        self.peak_bytes = self.peak_bytes.max(self.live_bytes);
        // 0 stands for "none yet", which wrapping makes the largest number.
        self.smallest = self.smallest.wrapping_sub(1).min(bytes - 1) + 1;
        self.largest = self.largest.max(bytes);
    }

    /// Counts an area given back to its chunk.
    #[inline]
    pub(crate) fn given_back(&mut self, bytes: u32) {
        self.live -= 1;
        self.live_bytes -= u64::from(bytes);
    }

    pub(crate) fn populated(&mut self, pages: u32) {
        self.populated_bytes += u64::from(pages) * u64::from(PAGE);
        self.peak_populated_bytes = self.peak_populated_bytes.max(self.populated_bytes);
    }

    pub(crate) fn depopulated(&mut self, pages: u32) {
        self.populated_bytes -= u64::from(pages) * u64::from(PAGE);
    }

    pub(crate) fn chunks(&mut self, chunks: u32) {
        self.chunks = chunks;
        self.peak_chunks = self.peak_chunks.max(chunks);
    }
}

/// How fragmented a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkStatistics {
    /// Address of the chunk's base.
    pub base: usize,
    /// Free bytes.
    pub free: u32,
    /// Number of free runs.
    pub runs: u32,
    /// Bytes of the longest free run.
    pub longest_run: u32,
    /// Bytes of the middle one of the free runs in order of size, the smaller of two.
    pub median_run: u32,
    /// Free runs of a single granule, of use to the smallest areas only.
    pub fragments: u32,
    /// Areas that somebody holds.
    pub areas: u32,
    /// Their bytes. What is neither live nor free waits in caches, or is hidden.
    pub live_bytes: u32,
    /// Pages with memory.
    pub populated_pages: u32,
    /// Pages with memory and without an area.
    pub empty_populated_pages: u32,
    /// The slot that lists the chunk.
    pub slot: u32,
    /// `CHUNK_*` bits of [`view`](crate::view).
    pub flags: u32,
}

impl ChunkStatistics {
    fn of(chunk: &Chunk) -> Self {
        let nr_bits = chunk.nr_pages * BLOCK_GRANULES;
        let runs = || bitmap::free_runs(chunk.alloc_map(), 0, nr_bits).map(Run::len);
        let count = runs().count() as u32;
        // The smallest length that half of the runs do not exceed, by bisection: there is no room
        // to sort in.
        let (mut low, mut high) = (0, chunk.contig_hint());
        while low < high {
            let middle = low + (high - low) / 2;
            if runs().filter(|&len| len <= middle).count() as u32 >= count.div_ceil(2) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Self {
            base: chunk.base,
            free: chunk.free_bytes,
            runs: count,
            longest_run: chunk.contig_hint() * GRANULE,
            median_run: low * GRANULE,
            fragments: runs().filter(|&len| len == 1).count() as u32,
            areas: chunk.live_areas().count() as u32,
            live_bytes: chunk.live_areas().map(Run::len).sum::<u32>() * GRANULE,
            populated_pages: chunk.nr_populated,
            empty_populated_pages: chunk.nr_empty_pop_pages,
            slot: chunk.slot,
            flags: chunk.flags,
        }
    }
}

impl<P: Platform> Allocator<P> {
    /// The counts now. Takes the short lock and each CPU's cache lock, one at a time; with
    /// accounting a step for each chunk.
    pub fn statistics(&self) -> Statistics {
        let mut groups = 0;
        let mut statistics = {
            let state = self.state.lock();
            if self.accounts.is_on() {
                groups = state.group_bytes();
            }
            Statistics {
                empty_populated_pages: state.empty_pages(),
                reserved_bytes: state.reserved_bytes(),
                metadata_bytes: state.metadata_bytes() as u64,
                ..state.statistics
            }
        };
        let caches = self.caches().map_or(0, Caches::bytes);
        let spare = self.first.get().map_or(0, |f| self.accounts.spare_bytes(f.nr_granules()));
        let tables = self.index.bytes() + caches + groups + spare + self.leaks.metadata_bytes();
        statistics.metadata_bytes += tables as u64;
        for cache in self.caches().into_iter().flat_map(Caches::iter) {
            let shelves = cache.lock();
            statistics.allocs += shelves.allocs;
            statistics.frees += shelves.frees;
            let held = u64::from(shelves.held()) * u64::from(GRANULE);
            statistics.live_bytes = statistics.live_bytes.saturating_sub(held);
        }
        // Others may go on between the locks.
        statistics.live = statistics.allocs.saturating_sub(statistics.frees);
        statistics
    }

    /// Shows each chunk's fragmentation to `visit`. Sleeps while another thread grows or shrinks the
    /// allocator.
    ///
    /// `visit` is called with the growth lock held, and no other, so that chunks stay. It must not
    /// allocate unless atomically, which leaves that lock alone, nor
    /// [`balance`](Self::balance), [`add_unit`](Self::add_unit), start or stop the
    /// [leak tracker](super::LeakTracker), scan for leaks or sum them up, or come here again: it would wait
    /// for itself, which [panics](crate::sync::Mutex::lock). Nor may it wait for a thread that does one of
    /// these, as bringing a CPU up does. Frees are permitted. If it panics the lock is open again.
    ///
    /// Costs some twenty passes over a chunk's map for each chunk, one chunk at a time with
    /// interrupts masked.
    pub fn for_each_chunk(&self, mut visit: impl FnMut(&ChunkStatistics)) {
        let _growth = self.growth.lock();
        // Chunks come and go under the growth lock only; that they change slots does not matter
        // to an order by place in the index.
        for n in 0.. {
            let chunk = {
                let state = self.state.lock();
                match state.nth_chunk(n, &self.index) {
                    Some(chunk) => chunk.map(|chunk| ChunkStatistics::of(state.chunk(chunk))),
                    None => return,
                }
            };
            if let Some(statistics) = chunk {
                visit(&statistics);
            }
        }
    }
}
