//! A CPU's cache of freed areas, so that most allocations and frees take no lock that another CPU
//! wants, and a CPU gets memory back whose lines it has. After the magazines of Bonwick and Adams
//! (USENIX 2001); Linux has such a thing for pages (`struct per_cpu_pages`), not for `mm/percpu.c`.
//!
//! A cache has shelves, each for areas of one size. Its lock masks interrupts like the short lock,
//! but other CPUs take it only to [drain](super::Allocator::drain_caches) the cache. An area on a
//! shelf is taken in its chunk's map and nobody holds it by its [ledger](super::ledger), so it is on
//! one shelf alone: who puts it there has taken it in.
//!
//! Lock order: growth, cache, short.
//!
//! # Grace periods
//!
//! A free finds its chunk by the [index](super::index) without the short lock, but with its cache
//! locked. So who has removed something from the index and then seen each cache's lock free, knows
//! that no free looks at it any more.

use core::alloc::Layout;
use core::mem::{offset_of, size_of};
use core::ptr::NonNull;

use super::Table;
use super::ledger::Ledger;
use super::state::Request;
use super::zeroable::Zeroable;
use crate::atomic::{AtomicPtr, Ordering};
use crate::platform::{NoMemory, Platform};
use crate::sync::SpinLock;
use crate::view::{
    CACHE_SHELVES, CACHED_ZERO, CacheView, CachedView, GRANULE, SHELF_DEPTH, ShelfView,
};

/// Sizes in granules up to this have the shelf of their number.
const SMALL: u32 = 16;
/// Areas of more granules are not cached: making them zero costs more than the rest.
const MAX_LEN: u32 = 4096 / GRANULE;
/// A refill brings no more granules than this, one area excepted: two cache lines, which are made
/// zero on every CPU before the one area that was asked for is handed out.
const MAX_REFILL: u32 = 128 / GRANULE;
/// No shelf holds more granules than this, one area excepted.
const MAX_SHELF: u32 = 4096 / GRANULE;
/// No cache holds more granules than this.
const MAX_HELD: u32 = (16 << 10) / GRANULE;

/// Set in an area's address if it is zero on every CPU.
const ZERO: usize = CACHED_ZERO as usize;

/// An area that nobody holds.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Cached {
    /// The ledger of its chunk, which lives because the area is taken.
    ledger: *const Ledger,
    /// Where the area lies in unit space, and [`ZERO`].
    address: usize,
}

impl Cached {
    /// The area at granule `start` of the chunk of `ledger`.
    #[inline]
    pub(crate) fn new(ledger: &Ledger, start: u32) -> Self {
        Self { ledger, address: ledger.base() + (start * GRANULE) as usize }
    }

    /// The ledger of the area's chunk.
    #[inline]
    pub(crate) fn ledger(&self) -> &Ledger {
        // SAFETY: the area is taken, so its chunk is not wholly free and stays.
        unsafe { &*self.ledger }
    }

    /// Where the area lies in unit space.
    #[inline]
    pub(crate) fn address(&self) -> usize {
        self.address & !ZERO
    }

    /// The area's first granule in its chunk.
    #[inline]
    pub(crate) fn start(&self) -> u32 {
        (self.address() - self.ledger().base()) as u32 / GRANULE
    }

    /// Of areas of `len` granules, the `n`th behind this one.
    pub(crate) fn nth_behind(self, n: u32, len: u32) -> Self {
        Self { address: self.address + (n * len * GRANULE) as usize, ..self }
    }

    /// The same area, which is zero on every CPU.
    pub(crate) fn made_zero(self) -> Self {
        Self { address: self.address | ZERO, ..self }
    }

    /// Whether the area is known to be zero on every CPU.
    #[inline]
    pub(crate) fn is_zero(&self) -> bool {
        self.address & ZERO != 0
    }

    /// Whether the area begins at a multiple of `align` granules, a power of two up to a page.
    #[inline]
    fn is_aligned(&self, align: u32) -> bool {
        self.address() & (align * GRANULE - 1) as usize == 0
    }
}

/// Areas of one size; the last one put there is the first one taken.
#[repr(C)]
struct Shelf {
    /// Granules of an area; of no meaning if there is none.
    len: u32,
    count: u32,
    areas: [Cached; SHELF_DEPTH],
}

impl Shelf {
    /// How many areas of `len` granules fit.
    #[inline]
    fn depth(len: u32) -> u32 {
        const { assert!(SMALL * SHELF_DEPTH as u32 <= MAX_SHELF) };
        if len <= SMALL {
            // Without a division.
            return SHELF_DEPTH as u32;
        }
        (MAX_SHELF / len).clamp(1, SHELF_DEPTH as u32)
    }

    #[inline]
    fn pop(&mut self, align: u32, prefer_zero: bool) -> Option<Cached> {
        let areas = &mut self.areas[..self.count as usize];
        let fits = |area: &Cached| area.is_aligned(align);
        let found = if !prefer_zero {
            areas.iter().rposition(fits)?
        } else if let Some(zero) = areas.iter().rposition(|area| area.is_zero() && fits(area)) {
            zero
        } else if self.count <= Self::depth(self.len) / 2 {
            // Few are worth nothing together; let them become more.
            return None;
        } else {
            areas.iter().rposition(fits)?
        };
        let area = areas[found];
        areas.copy_within(found + 1.., found);
        self.count -= 1;
        Some(area)
    }

    /// Takes areas off that are not zero, as many as there are and `into` has room for. Returns how
    /// many.
    fn pop_not_zero(&mut self, into: &mut [Cached]) -> usize {
        let (mut taken, mut kept) = (0, 0);
        for n in 0..self.count as usize {
            let area = self.areas[n];
            if !area.is_zero() && taken < into.len() {
                into[taken] = area;
                taken += 1;
            } else {
                self.areas[kept] = area;
                kept += 1;
            }
        }
        self.count = kept as u32;
        taken
    }

    /// Takes `count` areas off: of those that are not zero, and then of those that are, the ones that
    /// have been there longest.
    fn drain(&mut self, count: u32, mut give: impl FnMut(Cached, u32)) {
        let count = count.min(self.count) as usize;
        let Some(&area) = self.areas[..count].first() else { return };
        let mut areas = [area; SHELF_DEPTH];
        let taken = self.pop_not_zero(&mut areas[..count]);
        areas[..taken].iter().for_each(|&area| give(area, self.len));
        let rest = count - taken;
        self.areas[..rest].iter().for_each(|&area| give(area, self.len));
        self.areas.copy_within(rest..self.count as usize, 0);
        self.count -= rest as u32;
    }
}

/// What a cache's lock owns.
#[repr(C)]
pub(crate) struct Shelves {
    /// Granules of all areas on the shelves.
    held: u32,
    /// The shelf that is cleared next for areas of another size.
    victim: u16,
    /// Whether the leak tracker records what is handed out with this cache locked.
    pub(crate) tracked: bool,
    /// Areas that were handed out and taken in with this cache locked.
    pub(crate) allocs: u64,
    pub(crate) frees: u64,
    shelves: [Shelf; CACHE_SHELVES],
}

/// A CPU's cache.
pub(crate) type Cache<P> = SpinLock<Shelves, P>;

const _: () = {
    type Lock = Cache<crate::platform::Global>;
    const AT: usize = Lock::VALUE_OFFSET;
    assert!(size_of::<Lock>() == size_of::<CacheView>());
    assert!(offset_of!(CacheView, lock) == 0);
    assert!(AT + offset_of!(Shelves, held) == offset_of!(CacheView, held));
    assert!(AT + offset_of!(Shelves, allocs) == offset_of!(CacheView, allocs));
    assert!(AT + offset_of!(Shelves, frees) == offset_of!(CacheView, frees));
    assert!(AT + offset_of!(Shelves, shelves) == offset_of!(CacheView, shelves));
    assert!(size_of::<Shelf>() == size_of::<ShelfView>());
    assert!(offset_of!(Shelf, len) == offset_of!(ShelfView, len));
    assert!(offset_of!(Shelf, count) == offset_of!(ShelfView, count));
    assert!(offset_of!(Shelf, areas) == offset_of!(ShelfView, areas));
    assert!(size_of::<Cached>() == size_of::<CachedView>());
    assert!(offset_of!(Cached, address) == offset_of!(CachedView, address));
};

// SAFETY: the pointers are to ledgers that live as long as the areas are here, and that any CPU may
// use: all of a ledger is immutable or atomic. (`mark` is for who holds the short lock, which is a
// matter of order among writers, whichever CPU they are on.)
unsafe impl Send for Shelves {}

impl Shelves {
    /// Granules of all areas on the shelves.
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// Whether areas of `len` granules may be cached at all.
    #[inline]
    pub(crate) fn takes(len: u32) -> bool {
        len <= MAX_LEN
    }

    /// The shelf of areas of `len` granules.
    #[inline]
    fn shelf(&self, len: u32) -> Option<usize> {
        if len <= SMALL {
            return Some(len as usize - 1);
        }
        let large = &self.shelves[SMALL as usize..];
        Some(SMALL as usize + large.iter().position(|shelf| shelf.len == len)?)
    }

    /// Takes an area for `request` from its shelf: the last one put there. With `prefer_zero` it is
    /// the last one that is zero; or, if there is none, one of many.
    #[inline]
    pub(crate) fn pop(&mut self, request: Request, prefer_zero: bool) -> Option<Cached> {
        let shelf = self.shelf(request.len)?;
        let area = self.shelves[shelf].pop(request.align, prefer_zero)?;
        self.held -= request.len;
        Some(area)
    }

    /// Takes areas of `len` granules that are not zero, as many as there are and `into` has room
    /// for. Returns how many.
    pub(crate) fn pop_not_zero(&mut self, len: u32, into: &mut [Cached]) -> usize {
        let Some(shelf) = self.shelf(len) else { return 0 };
        let taken = self.shelves[shelf].pop_not_zero(into);
        self.held -= taken as u32 * len;
        taken
    }

    /// How many areas of `len` granules a refill may bring, the one included that is handed out.
    #[inline]
    pub(crate) fn refill(&self, len: u32) -> u32 {
        // A size that nobody has freed yet has no shelf.
        let Some(shelf) = self.shelf(len) else { return 1 };
        let room = Shelf::depth(len) - self.shelves[shelf].count.min(Shelf::depth(len));
        let room = room.min(MAX_HELD.saturating_sub(self.held) / len);
        (MAX_REFILL / len).min(Shelf::depth(len) / 2 + 1).min(room + 1).max(1)
    }

    /// Puts an area of `len` granules on its shelf. What there is no room for is given to `give`,
    /// with its length.
    #[inline]
    pub(crate) fn push(&mut self, area: Cached, len: u32, give: impl FnMut(Cached, u32)) {
        let shelf = match self.shelf(len) {
            Some(shelf)
                if self.shelves[shelf].count < Shelf::depth(len) && self.held + len <= MAX_HELD =>
            {
                shelf
            }
            other => self.make_room(other, len, give),
        };
        let shelf = &mut self.shelves[shelf];
        shelf.len = len;
        shelf.areas[shelf.count as usize] = area;
        shelf.count += 1;
        self.held += len;
    }

    /// Clears the older half of the shelf of `len` granules, or finds a shelf for them; then clears
    /// further shelves until the cache has room.
    #[cold]
    fn make_room(
        &mut self,
        shelf: Option<usize>,
        len: u32,
        mut give: impl FnMut(Cached, u32),
    ) -> usize {
        let large = &self.shelves[SMALL as usize..];
        let empty = || Some(SMALL as usize + large.iter().position(|shelf| shelf.count == 0)?);
        let shelf = shelf.or_else(empty).unwrap_or_else(|| {
            let victim = self.next_victim(SMALL as usize);
            self.clear(victim, &mut give);
            victim
        });
        if self.shelves[shelf].count >= Shelf::depth(len) {
            let half = self.shelves[shelf].count.div_ceil(2);
            self.shelves[shelf].drain(half, &mut give);
            self.held -= half * len;
        }
        while self.held + len > MAX_HELD {
            let victim = self.next_victim(0);
            self.clear(victim, &mut give);
        }
        shelf
    }

    /// The shelves from `first` on, one after the other.
    fn next_victim(&mut self, first: usize) -> usize {
        self.victim = self.victim.wrapping_add(1);
        first + self.victim as usize % (CACHE_SHELVES - first)
    }

    /// Takes everything off a shelf.
    pub(crate) fn clear(&mut self, shelf: usize, give: impl FnMut(Cached, u32)) {
        let shelf = &mut self.shelves[shelf];
        self.held -= shelf.count * shelf.len;
        shelf.drain(shelf.count, give);
    }

    /// Whether there is nothing on any shelf.
    pub(crate) fn is_empty(&self) -> bool {
        self.held == 0
    }
}

/// The CPUs' caches.
pub(crate) struct Caches<P: Platform> {
    /// Null for a CPU that has none.
    table: Table<AtomicPtr<Cache<P>>, P>,
}

impl<P: Platform> Caches<P> {
    /// No caches yet, for the CPUs below `nr_cpu_ids`.
    pub(crate) fn new(nr_cpu_ids: usize) -> Result<Self, NoMemory> {
        Ok(Self { table: Table::zeroed(nr_cpu_ids)? })
    }

    /// Makes `cpu`'s cache if there is none, with this flag. One caller at a time.
    pub(crate) fn add(&self, cpu: u32, tracked: bool) -> Result<(), NoMemory> {
        let Some(entry) = self.table.get(cpu as usize) else { return Ok(()) };
        if entry.load(Ordering::Relaxed).is_null() {
            let cache = P::alloc_meta(Layout::new::<Cache<P>>()).ok_or(NoMemory)?;
            // Who walks the view comes to it by number.
            cache.as_ptr().expose_provenance();
            let mut cache = cache.cast::<Cache<P>>();
            // SAFETY: the memory is zero, which is an open lock around empty shelves, and nobody else's
            // yet.
            unsafe { cache.as_mut() }.get_mut().tracked = tracked;
            entry.store(cache.as_ptr(), Ordering::Release);
        }
        Ok(())
    }

    /// The cache of `cpu`.
    #[inline]
    pub(crate) fn get(&self, cpu: u32) -> Option<&Cache<P>> {
        let cache = NonNull::new(self.table.get(cpu as usize)?.load(Ordering::Acquire))?;
        // SAFETY: `add` made it before it published it; it stays as long as the table.
        Some(unsafe { cache.as_ref() })
    }

    /// All caches.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Cache<P>> {
        (0..self.table.len() as u32).filter_map(|cpu| self.get(cpu))
    }

    /// Bytes of all caches and of their table.
    pub(crate) fn bytes(&self) -> usize {
        self.iter().count() * size_of::<Cache<P>>()
            + self.table.len() * size_of::<AtomicPtr<Cache<P>>>()
    }

    /// Waits until everybody who has a cache locked now has unlocked it.
    pub(crate) fn wait_for_grace(&self) {
        self.iter().for_each(|cache| drop(cache.lock()));
    }

    /// Address and length of the table, for the view.
    pub(crate) fn table(&self) -> (usize, u32) {
        (self.table.as_ptr().expose_provenance(), self.table.len() as u32)
    }
}

impl<P: Platform> Drop for Caches<P> {
    fn drop(&mut self) {
        for entry in self.table.iter() {
            if let Some(cache) = NonNull::new(entry.load(Ordering::Relaxed)) {
                // SAFETY: `add` got it with this layout, and `&mut self` says that nobody uses it.
                unsafe { P::free_meta(cache.cast(), Layout::new::<Cache<P>>()) };
            }
        }
    }
}

// SAFETY: null pointers and integers, and no shelf has an area.
unsafe impl Zeroable for Shelves {}
