//! Growth: pages for chunks that have room, and new chunks when none has. One thread at a time.
//!
//! Everything that can fail is done before anything is published: memory is got first, the maps are
//! changed when nothing can go wrong any more. So a failure has nothing to undo but its own work.

use super::bitmap::Run;
use super::chunk::{Chunk, ChunkRef};
use super::front::Taken;
use super::index::IndexTable;
use super::state::{Reach, Request};
use super::{AllocFlags, Allocator, memory};
use crate::area::FirstChunk;
use crate::platform::{NoMemory, Platform};
use crate::view::PAGE;

/// The right to change which pages have memory and which chunks there are; owned by the growth
/// lock.
pub(crate) struct Growth(());

impl Growth {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

/// Address space and alignment of a chunk.
#[derive(Clone, Copy)]
struct Extent {
    size: usize,
    align: usize,
}

impl Extent {
    fn of<P: Platform>(first: &FirstChunk<P>) -> Self {
        Self { size: first.span, align: chunk_align(first) }
    }
}

/// The alignment of chunks: units are in atoms, and the index wants a power of two that is not
/// smaller than a unit.
pub(crate) fn chunk_align<P: Platform>(first: &FirstChunk<P>) -> usize {
    first.unit_size.next_power_of_two().max(first.atom_size)
}

/// A chunk that is on no list and in no index. Dropping it gives its memory back, its address space
/// and its account.
pub(crate) struct DetachedChunk<'a, P: Platform> {
    first: &'a FirstChunk<P>,
    chunk: ChunkRef,
}

impl<'a, P: Platform> DetachedChunk<'a, P> {
    /// Reserves a chunk of which no page has memory.
    fn reserve(first: &'a FirstChunk<P>) -> Result<Self, NoMemory> {
        let Extent { size, align } = Extent::of(first);
        let base = P::reserve(size, align).ok_or(NoMemory)?;
        let nr_pages = (first.unit_size / PAGE as usize) as u32;
        match Chunk::create::<P>(base, nr_pages, 0, 0) {
            Ok(chunk) => Ok(Self { first, chunk }),
            Err(error) => {
                // SAFETY: reserved above, and nothing was populated.
                unsafe { P::release(base, size) };
                Err(error)
            }
        }
    }

    /// Takes a chunk over that has just left its list and the index.
    ///
    /// # Safety
    ///
    /// The chunk came from [`reserve`](Self::reserve), no area of it is in use, and nobody else
    /// knows of it.
    pub(crate) unsafe fn take_over(first: &'a FirstChunk<P>, chunk: ChunkRef) -> Self {
        Self { first, chunk }
    }

    fn get(&mut self) -> &mut Chunk {
        // SAFETY: a detached chunk has this one owner, which was not dropped.
        unsafe { &mut *self.chunk.as_ptr() }
    }

    /// Puts memory behind the first `count` pages.
    fn populate(&mut self, count: u32) -> Result<(), NoMemory> {
        let pages = Run { start: 0, end: count };
        // SAFETY: no page of the chunk is populated yet, and nobody else knows of it.
        unsafe { memory::populate(self.first, self.get().base, core::iter::once(pages))? };
        self.get().mark_populated(pages);
        Ok(())
    }

    /// Lets go of the chunk without giving anything back.
    fn into_chunk(self) -> ChunkRef {
        let chunk = self.chunk;
        core::mem::forget(self);
        chunk
    }
}

impl<P: Platform> Drop for DetachedChunk<'_, P> {
    fn drop(&mut self) {
        let first = self.first;
        let chunk = self.get();
        let (base, mut from) = (chunk.base, 0);
        while let Some(pages) = chunk.next_populated(from) {
            from = pages.end;
            // SAFETY: no area of the chunk is in use, and nobody else knows of it.
            unsafe { memory::depopulate(first, base, pages) };
        }
        // SAFETY: the chunk is on no list and in no index, and this was its only owner.
        unsafe { Chunk::destroy::<P>(self.chunk) };
        // SAFETY: the range came from `reserve` with this size; all its pages went above.
        unsafe { P::release(base, Extent::of(first).size) };
    }
}

impl<P: Platform> Allocator<P> {
    /// Takes a place for `request`, getting memory as needed.
    #[cold]
    pub(crate) fn take_growing(
        &self,
        first: &FirstChunk<P>,
        request: Request,
    ) -> Result<Taken, NoMemory> {
        let mut growth = self.growth.lock();
        let mut drained = false;
        let mut state = self.state.lock();
        loop {
            let Some(place) = state.find(request, Reach::AnyPage) else {
                drop(state);
                if !drained {
                    // What waits in caches may be all that is missing.
                    drained = true;
                    self.drain_caches();
                    state = self.state.lock();
                    continue;
                }
                let pages = request.bytes().div_ceil(PAGE as usize) as u32;
                if let Err(error) = self.add_chunk(first, &mut growth, pages) {
                    return self.take_from_all(request).ok_or(error);
                }
                state = self.state.lock();
                continue;
            };
            let (pages, missing) = state.missing_pages(place);
            if missing == 0 {
                return Ok(self.take_uncached(&mut state, place));
            }
            // The place is not taken yet: while the lock is open others may take a part of it that
            // is populated. Then the pages stay for whoever comes next, and the search goes on.
            let base = state.chunk(place.chunk).base;
            drop(state);
            let runs = runs_of(pages.start, missing);
            // SAFETY: the pages have no memory, and the growth lock keeps it so.
            if let Err(error) = unsafe { memory::populate(first, base, runs.clone()) } {
                return self.take_from_all(request).ok_or(error);
            }
            state = self.state.lock();
            runs.for_each(|run| state.mark_populated(place.chunk, run));
        }
    }

    /// Takes a place that has memory already, wherever it is: in the last chunk that was kept, or
    /// in what waited in caches.
    fn take_from_all(&self, request: Request) -> Option<Taken> {
        self.drain_caches();
        self.take_populated(request, AllocFlags::ATOMIC)
    }

    /// Adds a wholly free chunk, with memory behind its first `populated` pages.
    pub(crate) fn add_chunk(
        &self,
        first: &FirstChunk<P>,
        growth: &mut Growth,
        populated: u32,
    ) -> Result<(), NoMemory> {
        let mut chunk = DetachedChunk::reserve(first)?;
        chunk.populate(populated)?;
        let capacity = self.index.wants_capacity();
        let table = capacity.map(IndexTable::<P>::new).transpose()?;

        let base = chunk.get().base;
        let mut state = self.state.lock();
        let old_table = table.map(|table| self.index.install(growth, table));
        let chunk = chunk.into_chunk();
        self.index.insert(growth, base, state.ledger(chunk));
        state.link(chunk);
        drop(state);
        if old_table.is_some() {
            // A free may look at the old table.
            self.wait_for_grace();
        }
        Ok(())
    }
}

/// The runs of pages that `mask` names, bit 0 being page `first`.
fn runs_of(first: u32, mut mask: u32) -> impl Iterator<Item = Run> + Clone {
    core::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let start = mask.trailing_zeros();
        let end = start + (mask >> start).trailing_ones();
        mask &= (!0_u32).checked_shl(end).unwrap_or(0);
        Some(Run { start: first + start, end: first + end })
    })
}
