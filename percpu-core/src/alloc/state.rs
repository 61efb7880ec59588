//! What the short lock owns: all chunks, by slot and by address, and the counts over them.
//!
//! Everything here is done in bounded steps with interrupts masked; nothing here gets memory, logs
//! or sleeps.

use core::mem::{offset_of, size_of, size_of_val};
use core::ptr::{self, NonNull};

use super::bitmap::Run;
use super::cache::Caches;
use super::chunk::{Chunk, ChunkRef, NoArea};
use super::index::Index;
use super::ledger::Ledger;
use super::slot::{self, Link, Slots};
use super::{AllocError, FreeError, MAX_ALIGN, MAX_ALLOC_SIZE, Statistics, Table};
use crate::area::FirstChunk;
use crate::platform::{NoMemory, Platform};
use crate::sync::SpinLock;
use crate::view::{
    AllocatorView, CHUNK_DEMOTED, CHUNK_IMMUTABLE, CHUNK_ISOLATED, CHUNK_RESERVED, GRANULE, PAGE,
};

/// Fewer empty populated pages than this call for more. Linux: `PCPU_EMPTY_POP_PAGES_LOW`.
pub(crate) const EMPTY_PAGES_LOW: u32 = 2;
/// More empty populated pages than this are given back. Linux: `PCPU_EMPTY_POP_PAGES_HIGH`.
pub(crate) const EMPTY_PAGES_HIGH: u32 = 4;
/// A chunk below this slot that failed a fit goes to slot 0. Linux: `PCPU_SLOT_FAIL_THRESHOLD`.
const DEMOTION_SLOTS: u32 = 3;

/// A valid request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// Size in granules.
    pub(crate) len: u32,
    /// Alignment in granules.
    pub(crate) align: u32,
}

impl Request {
    /// The request for `size` bytes at a multiple of `align`.
    #[inline]
    pub(crate) fn new(size: usize, align: usize) -> Result<Self, AllocError> {
        if size == 0 || size > MAX_ALLOC_SIZE {
            return Err(AllocError::Size(size));
        }
        if !align.is_power_of_two() || align > MAX_ALIGN {
            return Err(AllocError::Align(align));
        }
        Ok(Self { len: (size as u32).div_ceil(GRANULE), align: (align as u32).div_ceil(GRANULE) })
    }

    pub(crate) fn bytes(&self) -> usize {
        (self.len * GRANULE) as usize
    }
}

/// How far a search may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Populated pages of chunks in use: the common case.
    Active,
    /// Populated pages of any chunk.
    Populated,
    /// Any page.
    AnyPage,
}

/// An area's place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) chunk: ChunkRef,
    pub(crate) area: Run,
}

/// The allocator's state; the beginning, with the lock's word before it, is [`AllocatorView`].
#[repr(C)]
pub(crate) struct State<P: Platform> {
    slots: Slots,
    first_chunk: *mut Chunk,
    reserved_chunk: *mut Chunk,
    unit_size: usize,
    unit_offset: *const usize,
    delta: usize,
    nr_empty_pop_pages: u32,
    nr_chunks: u32,
    caches: usize,
    nr_caches: u32,
    // Not part of the view from here on.
    /// Slots that have a chunk, a bit each.
    occupied: u64,
    /// Bytes of the first chunk before the reserved and before the dynamic part.
    static_end: u32,
    reserved_end: u32,
    /// Whether the leak tracker records what is handed out and counted here.
    pub(crate) tracked: bool,
    pub(crate) statistics: Statistics,
    heads: Table<Link, P>,
}

const _: () = {
    type S = State<crate::platform::Global>;
    type Lock = SpinLock<S, crate::platform::Global>;
    const AT: usize = Lock::VALUE_OFFSET;
    assert!(offset_of!(AllocatorView, lock) == 0);
    assert!(AT == offset_of!(AllocatorView, slots));
    assert!(AT + offset_of!(S, first_chunk) == offset_of!(AllocatorView, first_chunk));
    assert!(AT + offset_of!(S, reserved_chunk) == offset_of!(AllocatorView, reserved_chunk));
    assert!(AT + offset_of!(S, unit_size) == offset_of!(AllocatorView, unit_size));
    assert!(AT + offset_of!(S, unit_offset) == offset_of!(AllocatorView, unit_offset));
    assert!(AT + offset_of!(S, delta) == offset_of!(AllocatorView, delta));
    let empty_pages = AT + offset_of!(S, nr_empty_pop_pages);
    assert!(empty_pages == offset_of!(AllocatorView, nr_empty_pop_pages));
    assert!(AT + offset_of!(S, nr_chunks) == offset_of!(AllocatorView, nr_chunks));
    assert!(AT + offset_of!(S, caches) == offset_of!(AllocatorView, caches));
    assert!(AT + offset_of!(S, nr_caches) == offset_of!(AllocatorView, nr_caches));
    assert!(AT + offset_of!(S, occupied) == size_of::<AllocatorView>());
};

// SAFETY: the raw pointers are to chunks that the state owns, and, for the view alone, to the first
// chunk's table of offsets; the caches, the allocator's, are a number. Neither is bound to a thread.
unsafe impl<P: Platform> Send for State<P> {}

impl<P: Platform> State<P> {
    /// The state before set-up.
    pub(crate) const fn empty() -> Self {
        Self {
            slots: Slots::none(),
            first_chunk: ptr::null_mut(),
            reserved_chunk: ptr::null_mut(),
            unit_size: 0,
            unit_offset: ptr::null(),
            delta: 0,
            nr_empty_pop_pages: 0,
            nr_chunks: 0,
            caches: 0,
            nr_caches: 0,
            occupied: 0,
            static_end: 0,
            reserved_end: 0,
            tracked: false,
            statistics: Statistics::new(),
            heads: Table::empty(),
        }
    }

    /// Makes the empty state one over `first`, which must live as long. After an error the state can
    /// only be dropped.
    pub(crate) fn start(
        &mut self,
        first: &FirstChunk<P>,
        caches: &Caches<P>,
    ) -> Result<(), NoMemory> {
        let nr_pages = (first.unit_size / PAGE as usize) as u32;
        let populated = Run { start: 0, end: first.populated_pages as u32 };
        let static_end = first.static_size.next_multiple_of(GRANULE as usize) as u32;
        let reserved_end = static_end + first.reserved_size as u32;
        let unit_size = first.unit_size as u32;
        let (slots, heads) = Slots::new::<P>(first.unit_size)?;

        let dynamic_end = (first.populated_pages * PAGE as usize) as u32;
        self.slots = slots;
        self.heads = heads;
        self.unit_size = first.unit_size;
        self.unit_offset = first.unit_offsets.as_ptr();
        self.delta = first.delta();
        self.static_end = static_end;
        self.reserved_end = reserved_end;
        (self.caches, self.nr_caches) = caches.table();
        if first.reserved_size != 0 {
            let hidden_end = unit_size - reserved_end;
            let chunk = Chunk::create::<P>(first.base, nr_pages, static_end, hidden_end)?;
            self.reserved_chunk = chunk.as_ptr();
            let chunk = self.chunk_mut(chunk);
            chunk.flags = CHUNK_RESERVED | CHUNK_IMMUTABLE;
            chunk.mark_populated(populated);
        }
        let hidden_end = unit_size - dynamic_end;
        let chunk = Chunk::create::<P>(first.base, nr_pages, reserved_end, hidden_end)?;
        self.first_chunk = chunk.as_ptr();
        self.chunk_mut(chunk).flags = CHUNK_IMMUTABLE;
        self.link(chunk);
        self.mark_populated(chunk, populated);
        Ok(())
    }

    /// The chunk, borrowed together with the state.
    #[inline]
    pub(crate) fn chunk_mut(&mut self, chunk: ChunkRef) -> &mut Chunk {
        // SAFETY: a `ChunkRef` that reaches here is of this allocator and not destroyed: it came
        // from a list, from the index, or was just made. All of an allocator's chunks belong to
        // its state, so `&mut self` makes the reference unique.
        unsafe { &mut *chunk.as_ptr() }
    }

    /// The chunk, shared together with the state.
    #[inline]
    pub(crate) fn chunk(&self, chunk: ChunkRef) -> &Chunk {
        // SAFETY: as in `chunk_mut`; `&self` makes the reference shared.
        unsafe { &*chunk.as_ptr() }
    }

    /// The chunk that serves dynamic allocations from the first units.
    pub(crate) fn first_chunk(&self) -> Option<ChunkRef> {
        Self::reference(self.first_chunk)
    }

    fn reserved_chunk(&self) -> Option<ChunkRef> {
        Self::reference(self.reserved_chunk)
    }

    fn reference(chunk: *mut Chunk) -> Option<ChunkRef> {
        // SAFETY: a chunk's list node is its first field.
        NonNull::new(chunk).map(|chunk| unsafe { ChunkRef::of_link(chunk.cast()) })
    }

    /// Empty populated pages of all chunks that serve allocations.
    pub(crate) fn empty_pages(&self) -> u32 {
        self.nr_empty_pop_pages
    }

    // Finding and taking.

    /// Finds a place in the chunks on the lists. Chunks of small slots that fail go to slot 0.
    pub(crate) fn find(&mut self, request: Request, reach: Reach) -> Option<Place> {
        let last = match reach {
            Reach::Active => self.slots.sidelined,
            Reach::Populated | Reach::AnyPage => self.slots.free,
        };
        let eligible = (!0 << slot::size_slot(request.bytes())) & !(!0 << (last + 1));
        let mut slots = self.occupied & eligible;
        while slots != 0 {
            let slot = slots.trailing_zeros();
            slots &= slots - 1;
            let mut next = self.slots.first(slot);
            while let Some(chunk) = next {
                next = self.slots.next(slot, chunk);
                if let Some(place) = self.find_in(chunk, request, reach) {
                    return Some(place);
                }
                if slot < DEMOTION_SLOTS {
                    self.move_to(chunk, 0, true);
                    self.chunk_mut(chunk).flags |= CHUNK_DEMOTED;
                }
            }
        }
        None
    }

    /// Finds a place in the reserved chunk.
    pub(crate) fn find_reserved(&mut self, request: Request) -> Option<Place> {
        self.find_in(self.reserved_chunk()?, request, Reach::Populated)
    }

    #[inline]
    fn find_in(&self, chunk: ChunkRef, request: Request, reach: Reach) -> Option<Place> {
        let Request { len, align } = request;
        let start = self.chunk(chunk).find(len, align, reach != Reach::AnyPage)?;
        Some(Place { chunk, area: Run { start, end: start + len } })
    }

    /// Takes a place that `find` has found under the same hold of the lock, and up to `count - 1`
    /// areas of the same length behind it if they are free. The areas are the caller's, and nobody
    /// holds them by the ledger.
    pub(crate) fn take(&mut self, place: Place, count: u32) -> Run {
        let chunk = self.chunk_mut(place.chunk);
        let len = place.area.len();
        let areas = if count > 1 { chunk.extend(place.area, count) } else { place.area };
        let no_longer_empty = chunk.take(areas, len);
        let flags = chunk.flags;
        if flags & CHUNK_RESERVED == 0 {
            if flags & CHUNK_ISOLATED == 0 {
                self.nr_empty_pop_pages -= no_longer_empty;
                self.relocate(place.chunk);
            } else {
                self.reintegrate(place.chunk);
            }
        }
        self.statistics.taken(areas.len() / len, len * GRANULE);
        areas
    }

    /// The pages under `place` that have no memory, as a mask from its first page on.
    pub(crate) fn missing_pages(&self, place: Place) -> (Run, u32) {
        let granules = crate::view::BLOCK_GRANULES;
        let pages =
            Run { start: place.area.start / granules, end: place.area.end.div_ceil(granules) };
        let chunk = self.chunk(place.chunk);
        let missing = (pages.start..pages.end)
            .filter(|&page| !chunk.is_populated(page))
            .fold(0, |mask, page| mask | 1 << (page - pages.start));
        (pages, missing)
    }

    // Giving back.

    /// Takes in the area at per-CPU pointer `ptr`: nobody holds it any more, and it is to be given
    /// back.
    pub(crate) fn take_in(&self, ptr: usize, index: &Index<P>) -> Result<Place, FreeError> {
        let (chunk, offset) = self.locate(ptr, index)?;
        let area = self.chunk(chunk).take_in(offset).map_err(|why| match why {
            NoArea::Hidden => FreeError::Wild(ptr),
            NoArea::Interior => FreeError::Interior(ptr),
            NoArea::Free => FreeError::NotLive(ptr),
        })?;
        Ok(Place { chunk, area })
    }

    /// Gives an area back that was taken in. Returns whether there is work for the balancer.
    pub(crate) fn give_back(&mut self, place: Place) -> bool {
        let Place { chunk, area } = place;
        let contig = self.chunk(chunk).contig_hint();
        let emptied = self.chunk_mut(chunk).give_back(area);
        self.statistics.given_back(area.len() * GRANULE);
        let this = self.chunk(chunk);
        let (flags, is_longer) = (this.flags, this.contig_hint() != contig);
        if flags & CHUNK_RESERVED != 0 {
            return false;
        }
        if flags & CHUNK_ISOLATED == 0 {
            self.nr_empty_pop_pages += emptied;
            if is_longer || flags & CHUNK_DEMOTED != 0 {
                self.relocate(chunk);
            }
        } else if this.slot == self.slots.sidelined && this.is_all_free() {
            self.reintegrate(chunk);
        }
        // A chunk that becomes free, or has more empty pages, has just got an empty page.
        if emptied == 0 {
            return false;
        }
        let is_free = self.chunk(chunk).slot == self.slots.free;
        (is_free && self.excess_chunk().is_some()) || self.wants_reclaim(chunk)
    }

    /// The chunk that per-CPU pointer `ptr` points into, and the offset there.
    fn locate(&self, ptr: usize, index: &Index<P>) -> Result<(ChunkRef, u32), FreeError> {
        let addr = ptr.wrapping_add(self.delta);
        let first = self.first_chunk().ok_or(FreeError::NotSetUp)?;
        let offset = addr.wrapping_sub(self.chunk(first).base);
        if offset < self.unit_size {
            let offset = offset as u32;
            return if offset < self.static_end {
                Err(FreeError::Static(ptr))
            } else if offset < self.reserved_end {
                self.reserved_chunk().map(|chunk| (chunk, offset)).ok_or(FreeError::Wild(ptr))
            } else {
                Ok((first, offset))
            };
        }
        let ledger = index.get(addr).ok_or(FreeError::Wild(ptr))?;
        // SAFETY: under the short lock the index names chunks that exist.
        let chunk = unsafe { ledger.as_ref() }.chunk();
        let offset = addr.wrapping_sub(self.chunk(chunk).base);
        if offset < self.unit_size { Ok((chunk, offset as u32)) } else { Err(FreeError::Wild(ptr)) }
    }

    /// The ledger of the chunk that per-CPU pointer `ptr` points into, and the granule there.
    pub(crate) fn ledger_at(&self, ptr: usize, index: &Index<P>) -> Option<(NonNull<Ledger>, u32)> {
        let (chunk, offset) = self.locate(ptr, index).ok()?;
        Some((self.ledger(chunk), offset / GRANULE))
    }

    /// The ledger of a chunk, which lives as long as the chunk.
    pub(crate) fn ledger(&self, chunk: ChunkRef) -> NonNull<Ledger> {
        self.chunk(chunk).ledger()
    }

    // Slots.

    /// Puts a chunk that is on no list where its hint demands.
    pub(crate) fn link(&mut self, chunk: ChunkRef) {
        let slot = self.demanded_slot(chunk);
        self.put_on(chunk, slot, true);
        self.nr_empty_pop_pages += self.chunk(chunk).nr_empty_pop_pages;
        self.nr_chunks += 1;
        self.statistics.chunks(self.nr_chunks);
        self.statistics.populated(self.chunk(chunk).nr_populated);
    }

    /// Takes a chunk off its list for good.
    pub(crate) fn unlink(&mut self, chunk: ChunkRef) {
        self.take_off(chunk);
        self.nr_chunks -= 1;
        self.statistics.chunks(self.nr_chunks);
        self.statistics.depopulated(self.chunk(chunk).nr_populated);
        if self.chunk(chunk).flags & CHUNK_ISOLATED == 0 {
            self.nr_empty_pop_pages -= self.chunk(chunk).nr_empty_pop_pages;
        }
    }

    fn demanded_slot(&self, chunk: ChunkRef) -> u32 {
        let contig = self.chunk(chunk).contig_hint() * GRANULE;
        slot::slot_of(contig as usize, self.unit_size)
    }

    /// Moves a chunk to the slot that its hint demands; forwards if it has grown.
    fn relocate(&mut self, chunk: ChunkRef) {
        let (old, new) = (self.chunk(chunk).slot, self.demanded_slot(chunk));
        if old != new {
            self.move_to(chunk, new, old < new);
            self.chunk_mut(chunk).flags &= !CHUNK_DEMOTED;
        }
    }

    fn move_to(&mut self, chunk: ChunkRef, slot: u32, front: bool) {
        self.take_off(chunk);
        self.put_on(chunk, slot, front);
    }

    fn take_off(&mut self, chunk: ChunkRef) {
        let slot = self.chunk(chunk).slot;
        self.slots.remove(chunk);
        if self.slots.is_empty(slot) {
            self.occupied &= !(1 << slot);
        }
    }

    fn put_on(&mut self, chunk: ChunkRef, slot: u32, front: bool) {
        self.slots.insert(slot, chunk, front);
        self.occupied |= 1 << slot;
        self.chunk_mut(chunk).slot = slot;
    }

    /// Takes a chunk out of the order of slots: it serves no allocation until it is reintegrated.
    pub(crate) fn isolate(&mut self, chunk: ChunkRef) {
        let this = self.chunk_mut(chunk);
        let was_isolated = this.flags & CHUNK_ISOLATED != 0;
        this.flags = this.flags & !CHUNK_DEMOTED | CHUNK_ISOLATED;
        if !was_isolated {
            self.nr_empty_pop_pages -= self.chunk(chunk).nr_empty_pop_pages;
        }
        self.move_to(chunk, self.slots.to_depopulate, false);
    }

    /// Lists an isolated chunk as depopulated: searches come to it after the active ones.
    pub(crate) fn sideline(&mut self, chunk: ChunkRef) {
        debug_assert!(self.chunk(chunk).flags & CHUNK_ISOLATED != 0);
        self.move_to(chunk, self.slots.sidelined, false);
    }

    /// Puts an isolated chunk back into the order of slots.
    pub(crate) fn reintegrate(&mut self, chunk: ChunkRef) {
        debug_assert!(self.chunk(chunk).flags & CHUNK_ISOLATED != 0);
        self.nr_empty_pop_pages += self.chunk(chunk).nr_empty_pop_pages;
        self.chunk_mut(chunk).flags &= !CHUNK_ISOLATED;
        let slot = self.demanded_slot(chunk);
        self.move_to(chunk, slot, true);
    }

    // Pages.

    /// Records that pages of `chunk`, which is linked, have memory now.
    pub(crate) fn mark_populated(&mut self, chunk: ChunkRef, pages: Run) {
        let empty = self.chunk_mut(chunk).mark_populated(pages);
        self.statistics.populated(pages.len());
        if self.chunk(chunk).flags & (CHUNK_RESERVED | CHUNK_ISOLATED) == 0 {
            self.nr_empty_pop_pages += empty;
        }
    }

    /// Records that pages of `chunk`, populated and free, are about to lose their memory. The chunk
    /// is isolated.
    pub(crate) fn mark_unpopulated(&mut self, chunk: ChunkRef, pages: Run) {
        debug_assert!(self.chunk(chunk).flags & CHUNK_ISOLATED != 0);
        self.chunk_mut(chunk).mark_unpopulated(pages);
        self.statistics.depopulated(pages.len());
    }

    /// Bytes of a unit, over all chunks.
    pub(crate) fn reserved_bytes(&self) -> u64 {
        u64::from(self.nr_chunks) * self.unit_size as u64
    }

    /// Bytes of the chunks' tables of groups. Costs a step for each chunk.
    pub(crate) fn group_bytes(&self) -> usize {
        self.chunks().map(|chunk| self.chunk(chunk).group_bytes()).sum()
    }

    /// Bytes of the chunks' accounts and of the lists' heads.
    pub(crate) fn metadata_bytes(&self) -> usize {
        let nr_pages = (self.unit_size / PAGE as usize) as u32;
        let accounts = self.nr_chunks as usize + self.reserved_chunk().into_iter().count();
        accounts * Chunk::account_bytes(nr_pages) + size_of_val::<[Link]>(&self.heads)
    }

    // What the balancer asks.

    /// A wholly free chunk beyond the one that is kept: the first chunk if it is free, else the
    /// first of the list.
    pub(crate) fn excess_chunk(&self) -> Option<ChunkRef> {
        let slot = self.slots.free;
        let (head, first_chunk) = (self.slots.first(slot)?, self.first_chunk()?);
        if self.chunk(first_chunk).slot == slot && head != first_chunk {
            return Some(head);
        }
        self.slots.next(slot, head)
    }

    /// Whether there is a wholly free chunk.
    pub(crate) fn has_free_chunk(&self) -> bool {
        !self.slots.is_empty(self.slots.free)
    }

    /// Whether `chunk` has so many empty pages with memory that some are to be given back: a
    /// quarter of its pages, while all other chunks together have more than are to be kept; or any,
    /// if it has been depopulated before.
    fn wants_reclaim(&self, chunk: ChunkRef) -> bool {
        let this = self.chunk(chunk);
        let empty = this.nr_empty_pop_pages;
        if this.flags & CHUNK_IMMUTABLE != 0 || this.slot == self.slots.to_depopulate || empty == 0
        {
            return false;
        }
        if this.flags & CHUNK_ISOLATED != 0 {
            return true;
        }
        self.nr_empty_pop_pages > EMPTY_PAGES_HIGH + empty && empty >= this.nr_pages / 4
    }

    /// A chunk that is to be depopulated, and is not on the list of those yet.
    pub(crate) fn reclaim_candidate(&self) -> Option<ChunkRef> {
        let enough = self.nr_empty_pop_pages <= EMPTY_PAGES_HIGH;
        let lowest = if enough { self.slots.sidelined } else { 0 };
        self.listed(lowest..=self.slots.free).find(|&chunk| self.wants_reclaim(chunk))
    }

    /// The first run of free pages without memory, in the order in which a search would come to
    /// them. A sidelined chunk is reintegrated.
    pub(crate) fn unpopulated_pages(&mut self) -> Option<(ChunkRef, Run)> {
        let smallest = slot::size_slot(PAGE as usize);
        let (chunk, pages) = self
            .listed(smallest..=self.slots.free)
            .find_map(|chunk| Some((chunk, self.chunk(chunk).next_unpopulated(0)?)))?;
        if self.chunk(chunk).flags & CHUNK_ISOLATED != 0 {
            self.reintegrate(chunk);
        }
        Some((chunk, pages))
    }

    /// All chunks of the allocator, the reserved one included.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = ChunkRef> + '_ {
        let slots = 0..self.slots.nr_slots;
        self.reserved_chunk().into_iter().chain(slots.flat_map(|slot| self.listed(slot..=slot)))
    }

    /// Of all chunks the `n`th, in an order that changes only when chunks come or go and that may
    /// have gaps; `None` beyond the end.
    pub(crate) fn nth_chunk(&self, n: usize, index: &Index<P>) -> Option<Option<ChunkRef>> {
        match n {
            0 => Some(self.first_chunk()),
            1 => Some(self.reserved_chunk()),
            // SAFETY: under the short lock the index names chunks that exist.
            n => Some(index.nth(n - 2)?.map(|ledger| unsafe { ledger.as_ref() }.chunk())),
        }
    }

    fn listed(&self, slots: core::ops::RangeInclusive<u32>) -> impl Iterator<Item = ChunkRef> + '_ {
        slots.flat_map(move |slot| {
            core::iter::successors(self.slots.first(slot), move |&chunk| {
                self.slots.next(slot, chunk)
            })
        })
    }
}

impl<P: Platform> Drop for State<P> {
    /// Gives the chunks' accounts back. Chunks that came by growth have left the list before, with
    /// their units; the first and the reserved chunk are left, whose units go after.
    fn drop(&mut self) {
        loop {
            let chunk = self.chunks().next();
            let Some(chunk) = chunk else { return };
            if chunk.as_ptr() == self.reserved_chunk {
                self.reserved_chunk = ptr::null_mut();
            } else {
                self.take_off(chunk);
            }
            // SAFETY: the state created it with this platform, and no list has it now. It is dropped
            // with its allocator, whose index and caches are not asked again.
            unsafe { Chunk::destroy::<P>(chunk) };
        }
    }
}
