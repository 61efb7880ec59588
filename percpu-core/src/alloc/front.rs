//! Allocating and freeing: the fast ways through a CPU's cache, and the ways beside it.

use core::panic::Location;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use super::accounting::Freed;
use super::bitmap::Run;
use super::cache::{Cache, Cached, Caches, Shelves};
use super::ledger::Ledger;
use super::state::{EMPTY_PAGES_LOW, Place, Reach, Request, State};
use super::{AllocError, AllocFlags, Allocator, FreeError, memory};
use crate::area::FirstChunk;
use crate::platform::Platform;
use crate::sync::SpinLock;
use crate::var::PerCpuPtr;
use crate::view::{CACHE_SHELVES, GRANULE, SHELF_DEPTH};

/// Areas of one length, one after the other, that were taken. The first one is handed out, the others
/// are for the CPU's cache.
#[derive(Clone, Copy)]
pub(crate) struct Taken {
    first: Cached,
    count: u32,
    /// Of the first one: see [`Leaks::era_if`](super::leak::Leaks::era_if).
    era: u64,
}

impl Taken {
    /// Hands out the first of the `count` areas from `first` on, which nobody holds and which have left
    /// their shelf.
    #[inline]
    fn hand_out(first: Cached, count: u32) -> Self {
        first.ledger().hand_out(first.start());
        Self { first, count, era: 0 }
    }

    /// Takes the area at `place`, which was found under this hold of the short lock, and up to
    /// `count - 1` behind it.
    fn out_of<P: Platform>(state: &mut State<P>, place: Place, count: u32) -> Self {
        let run = state.take(place, count);
        // SAFETY: the chunk is the state's, and lives as long as it has the areas.
        let ledger = unsafe { state.ledger(place.chunk).as_ref() };
        Self::hand_out(Cached::new(ledger, run.start), run.len() / place.area.len())
    }
}

impl<P: Platform> Allocator<P> {
    /// Hands out `size` bytes on every CPU that has a unit or gets one later, all zero, at a multiple
    /// of `align`. Sizes and alignments are rounded up to [`GRANULE`]. Linux: `pcpu_alloc`.
    ///
    /// Masks interrupts for a search that is bounded by the number of chunks of its size and the
    /// blocks in them. Unless `flags` has [`ATOMIC`](AllocFlags::ATOMIC), it may sleep to get
    /// memory, so it must not be called with preemption off or interrupts masked.
    ///
    /// # Errors
    ///
    /// [`Size`](AllocError::Size) unless the size is from 1 to [`MAX_ALLOC_SIZE`](super::MAX_ALLOC_SIZE),
    /// [`Align`](AllocError::Align) unless the alignment is a power of two up to [`MAX_ALIGN`](super::MAX_ALIGN), and
    /// one for each way to have no room. The first ten failures are logged, those of atomic
    /// allocations for want of room excepted.
    #[track_caller]
    pub fn alloc(
        &self,
        size: usize,
        align: usize,
        flags: AllocFlags,
    ) -> Result<PerCpuPtr<u8>, AllocError> {
        let (ptr, era) = self.try_alloc(size, align, flags).inspect_err(|error| {
            if *error != AllocError::NoPopulatedRoom {
                self.failed_allocs.warn::<P>(format_args!(
                    "allocation failed, size={size} align={align} flags={:#x}: {error}",
                    flags.0
                ));
            }
        })?;
        if era != 0 {
            let may_sleep = !flags.contains(AllocFlags::ATOMIC);
            if self.leaks.allocated(ptr.raw(), size, Location::caller(), era, may_sleep) {
                self.want_balance();
            }
        }
        Ok(ptr)
    }

    /// As [`alloc`](Self::alloc), without a word to the log and to the leak tracker: the era is for that.
    #[inline]
    fn try_alloc(
        &self,
        size: usize,
        align: usize,
        flags: AllocFlags,
    ) -> Result<(PerCpuPtr<u8>, u64), AllocError> {
        let request = Request::new(size, align)?;
        let first = self.first.get().ok_or(AllocError::NotSetUp)?;
        let taken = match self.take(first, request, flags) {
            Some(taken) => taken,
            None if flags.contains(AllocFlags::RESERVED) => {
                return Err(AllocError::NoReservedRoom);
            }
            None if flags.contains(AllocFlags::ATOMIC) => {
                self.atomic_failed.store(true, Ordering::Relaxed);
                // Stored even if it is wanted already: a balance that has begun meanwhile either
                // sees the failure or leaves this wish standing.
                self.balance_wanted.store(true, Ordering::Release);
                return Err(AllocError::NoPopulatedRoom);
            }
            None => self.take_growing(first, request).map_err(|_| AllocError::NoMemory)?,
        };
        let Taken { first: area, count, era } = taken;
        if count == 1 && !area.is_zero() && zeroes_together(first) {
            self.zero_with_others(first, area, request);
        } else if !area.is_zero() {
            // SAFETY: the areas were taken on populated pages, which keep their memory as long as
            // they are not given back (I13), and nobody else knows of them yet.
            unsafe { memory::zero(first, area.address(), count as usize * request.bytes()) };
            if count > 1 {
                let behind = (1..count).rev().map(|n| area.nth_behind(n, request.len));
                self.shelve(behind, request.len);
            }
        }
        Ok((PerCpuPtr::from_raw(area.address().wrapping_sub(first.delta())), era))
    }

    /// Takes an area, or several, that have memory.
    #[inline]
    fn take(&self, first: &FirstChunk<P>, request: Request, flags: AllocFlags) -> Option<Taken> {
        let taken = self.take_here(first, request, flags);
        let is_last_hope =
            flags.contains(AllocFlags::ATOMIC) && !flags.contains(AllocFlags::RESERVED);
        if taken.is_some() || !is_last_hope {
            return taken;
        }
        // Nothing else will help it.
        self.drain(self.cache()?);
        self.take_here(first, request, flags)
    }

    /// Takes an area from the CPU's cache, or areas on populated pages.
    #[inline]
    fn take_here(
        &self,
        first: &FirstChunk<P>,
        request: Request,
        flags: AllocFlags,
    ) -> Option<Taken> {
        match self.cache() {
            Some(cache) if Shelves::takes(request.len) && !flags.contains(AllocFlags::RESERVED) => {
                let mut shelves = cache.lock();
                let taken = match shelves.pop(request, zeroes_together(first)) {
                    Some(area) => Taken::hand_out(area, 1),
                    None => match self.refill(&shelves, request, flags) {
                        Some(taken) => taken,
                        None => Taken::hand_out(shelves.pop(request, false)?, 1),
                    },
                };
                shelves.allocs += 1;
                Some(Taken { era: self.leaks.era_if(shelves.tracked), ..taken })
            }
            _ => self.take_populated(request, flags),
        }
    }

    /// Takes areas on populated pages, one for `request` and some for its shelf. These come later:
    /// all of them are made zero first, which is quicker together and too long for a lock.
    fn refill(&self, shelves: &Shelves, request: Request, flags: AllocFlags) -> Option<Taken> {
        let mut state = self.state.lock();
        let place = self.find_populated(&mut state, request, flags)?;
        // Areas behind the first one are as well aligned if their length allows it.
        let many = request.len.is_multiple_of(request.align);
        let count = if many { shelves.refill(request.len) } else { 1 };
        let taken = Taken::out_of(&mut state, place, count);
        self.want_empty_pages(&state);
        Some(taken)
    }

    /// Makes `area` zero, which is the caller's, and with it others of its size that wait on the
    /// CPU's shelf.
    #[cold]
    fn zero_with_others(&self, first: &FirstChunk<P>, area: Cached, request: Request) {
        // As many as take a microsecond or two.
        const BYTES: usize = 1024;
        let mut areas = [area; SHELF_DEPTH];
        let room = (BYTES / request.bytes()).clamp(1, SHELF_DEPTH);
        let others = match self.cache() {
            Some(cache) if room > 1 => cache.lock().pop_not_zero(request.len, &mut areas[1..room]),
            _ => 0,
        };
        let areas = &areas[..=others];
        // SAFETY: the areas were taken, lie on populated pages, which keep their memory as long as
        // they are not given back (I13), and nobody else knows of them: they have left the shelf.
        unsafe { memory::zero_all(first, areas.iter().map(Cached::address), request.bytes()) };
        self.shelve(areas[1..].iter().copied(), request.len);
    }

    /// Puts areas of `len` granules that are zero on their shelf.
    fn shelve(&self, areas: impl Iterator<Item = Cached>, len: u32) {
        // The thread may be on another CPU by now, whose cache is as good.
        let mut shelves = self.cache().map(SpinLock::lock);
        let mut give = self.giving_back();
        for area in areas {
            match &mut shelves {
                Some(shelves) => shelves.push(area.made_zero(), len, &mut give),
                None => give(area, len),
            }
        }
    }

    /// Takes an area on populated pages.
    #[inline]
    pub(super) fn take_populated(&self, request: Request, flags: AllocFlags) -> Option<Taken> {
        let mut state = self.state.lock();
        let place = self.find_populated(&mut state, request, flags)?;
        let taken = self.take_uncached(&mut state, place);
        self.want_empty_pages(&state);
        Some(taken)
    }

    /// Takes the area at `place`, which was found under this hold of the short lock, without a cache that
    /// counts it.
    pub(super) fn take_uncached(&self, state: &mut State<P>, place: Place) -> Taken {
        state.statistics.allocs += 1;
        Taken { era: self.leaks.era_if(state.tracked), ..Taken::out_of(state, place, 1) }
    }

    #[inline]
    fn find_populated(
        &self,
        state: &mut State<P>,
        request: Request,
        flags: AllocFlags,
    ) -> Option<Place> {
        if flags.contains(AllocFlags::RESERVED) {
            state.find_reserved(request)
        } else if flags.contains(AllocFlags::ATOMIC) {
            state.find(request, Reach::Populated)
        } else {
            state.find(request, Reach::Active)
        }
    }

    fn want_empty_pages(&self, state: &State<P>) {
        if state.empty_pages() < EMPTY_PAGES_LOW {
            self.want_balance();
        }
    }

    /// Takes an area back. May be called from any context but an NMI's, interrupt handlers included:
    /// it takes locks that mask interrupts. Linux: `free_percpu`.
    ///
    /// A null pointer is ignored.
    ///
    /// # Errors
    ///
    /// A pointer that is not the start of a live area is refused: nothing changes, and the first
    /// ten such calls are logged.
    ///
    /// # Safety
    ///
    /// Nobody uses the area any more, on any CPU.
    pub unsafe fn free(&self, ptr: PerCpuPtr<u8>) -> Result<(), FreeError> {
        if ptr.raw() == 0 {
            return Ok(());
        }
        let freed = match self.free_to_cache(ptr.raw()) {
            Some(freed) => freed,
            None => self.free_to_chunk(ptr.raw()).inspect_err(|error| {
                self.refused_frees.warn::<P>(format_args!("free refused: {error}"));
            })?,
        };
        if let Some(group) = freed.group {
            self.uncharge(group, freed.len);
        }
        Ok(())
    }

    /// Takes the area at `ptr` in under the short lock and gives it back to its chunk.
    fn free_to_chunk(&self, ptr: usize) -> Result<Freed, FreeError> {
        let mut state = self.state.lock();
        let place = state.take_in(ptr, &self.index)?;
        state.statistics.frees += 1;
        if self.leaks.is_active() {
            self.leaks.freed(ptr, state.tracked);
        }
        // SAFETY: under the short lock the chunk is there.
        let ledger = unsafe { state.ledger(place.chunk).as_ref() };
        let freed = Freed { group: ledger.groups.take(place.area.start), len: place.area.len() };
        if state.give_back(place) {
            self.want_balance();
        }
        Ok(freed)
    }

    /// Takes the area at `ptr` in with the CPU's cache locked. `None` if that was not done: there
    /// may be no such area, or no cache.
    #[inline]
    fn free_to_cache(&self, ptr: usize) -> Option<Freed> {
        let (first, cache) = (self.first.get()?, self.cache()?);
        let mut shelves = cache.lock();
        let (ledger, start) = self.ledger_of(first, ptr)?;
        // SAFETY: the index named the chunk, and our cache has been locked since before: the chunk
        // was not destroyed yet.
        let ledger = unsafe { ledger.as_ref() };
        if !ledger.take_in(start) {
            return None;
        }
        let area = ledger.area_at(start);
        let freed = Freed { group: ledger.groups.take(start), len: area.len() };
        shelves.frees += 1;
        if self.leaks.is_active() {
            self.leaks.freed(ptr, shelves.tracked);
        }
        if Shelves::takes(area.len()) {
            shelves.push(Cached::new(ledger, start), area.len(), self.giving_back());
        } else {
            let place = Place { chunk: ledger.chunk(), area };
            if self.state.lock().give_back(place) {
                self.want_balance();
            }
        }
        Some(freed)
    }

    /// The ledger of the chunk in which `ptr` points to a granule of the part that caches serve, and
    /// the granule. Without the short lock a chunk may be missed.
    #[inline]
    fn ledger_of(&self, first: &FirstChunk<P>, ptr: usize) -> Option<(NonNull<Ledger>, u32)> {
        let addr = ptr.wrapping_add(first.delta());
        // Published with the caches; its granules below the dynamic part are never live.
        let mut ledger = NonNull::new(self.first_ledger.load(Ordering::Relaxed))?;
        let mut offset = addr.wrapping_sub(first.base());
        if offset >= first.unit_size {
            ledger = self.index.get(addr)?;
            // SAFETY: as in `free_to_cache`, which asks with its cache locked.
            offset = addr.wrapping_sub(unsafe { ledger.as_ref() }.base());
        }
        let granule = GRANULE as usize;
        let is_granule = offset < first.unit_size && offset.is_multiple_of(granule);
        is_granule.then_some((ledger, (offset / granule) as u32))
    }

    /// Gives a cached area of `len` granules back to its chunk.
    fn give_back(&self, state: &mut State<P>, area: Cached, len: u32) {
        let start = area.start();
        let place = Place { chunk: area.ledger().chunk(), area: Run { start, end: start + len } };
        if state.give_back(place) {
            self.want_balance();
        }
    }

    /// Gives everything in every CPU's cache back to the chunks. From any context but an NMI's; costs
    /// some 50 ns for each area, of which a CPU has some hundreds at most, one shelf at a time with
    /// interrupts masked.
    pub fn drain_caches(&self) {
        self.caches().into_iter().flat_map(Caches::iter).for_each(|cache| self.drain(cache));
    }

    /// Gives everything in `cpu`'s cache back to the chunks; as [`drain_caches`](Self::drain_caches).
    pub fn drain_cache_of(&self, cpu: u32) {
        if let Some(cache) = self.caches().and_then(|caches| caches.get(cpu)) {
            self.drain(cache);
        }
    }

    fn drain(&self, cache: &Cache<P>) {
        for shelf in 0..CACHE_SHELVES {
            let mut shelves = cache.lock();
            if shelves.is_empty() {
                return;
            }
            shelves.clear(shelf, self.giving_back());
        }
    }

    /// What gives cached areas back to their chunks: takes the short lock for the first one, and has
    /// it until it is dropped.
    fn giving_back(&self) -> impl FnMut(Cached, u32) {
        let mut state = None;
        move |area, len| {
            self.give_back(state.get_or_insert_with(|| self.state.lock()), area, len);
        }
    }

    /// Waits until no free looks at what was removed from the index before.
    pub(super) fn wait_for_grace(&self) {
        self.caches().into_iter().for_each(Caches::wait_for_grace);
    }

    /// The cache that serves here.
    #[inline]
    fn cache(&self) -> Option<&Cache<P>> {
        self.caches()?.get(P::cache_cpu())
    }
}

/// Whether there are so many units that copies of an area push each other out of the first-level
/// cache: they lie at the same place of their pages, and so have the same few lines to share. Then
/// areas are made zero unit by unit, several at once, which is three times as fast.
#[inline]
fn zeroes_together<P: Platform>(first: &FirstChunk<P>) -> bool {
    const WAYS: usize = 8;
    first.units().len() > WAYS
}
