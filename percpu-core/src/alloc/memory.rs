//! The memory behind chunks: putting pages behind every unit, and taking them away.

use core::ptr::with_exposed_provenance_mut;

use super::bitmap::Run;
use crate::area::{FirstChunk, Unit};
use crate::platform::{NoMemory, Platform};
use crate::view::PAGE;

/// A range of pages of one unit.
#[derive(Clone, Copy)]
pub(crate) struct UnitPages {
    /// Address of the first.
    pub(crate) addr: usize,
    /// How many.
    pub(crate) count: usize,
    /// The unit's CPU.
    pub(crate) cpu: u32,
}

impl UnitPages {
    /// The pages `pages` of `unit` in the chunk at `base`.
    pub(crate) fn new(base: usize, unit: &Unit, pages: Run) -> Self {
        Self {
            addr: base + unit.offset + (pages.start * PAGE) as usize,
            count: pages.len() as usize,
            cpu: unit.cpu,
        }
    }

    fn end(&self) -> usize {
        self.addr + self.count * PAGE as usize
    }
}

/// Puts memory behind the runs of pages `runs` of every listed unit of the chunk at `base`: all or
/// nothing.
///
/// # Safety
///
/// The chunk's address space is reserved, and these pages have no memory and are not about to get
/// any: the caller holds the growth lock. That also keeps the list of units as it is.
pub(crate) unsafe fn populate<P: Platform>(
    first: &FirstChunk<P>,
    base: usize,
    runs: impl Iterator<Item = Run> + Clone,
) -> Result<(), NoMemory> {
    let all = runs.flat_map(|run| first.units().iter().map(move |unit| (unit, run)));
    let all = all.map(|(unit, run)| UnitPages::new(base, unit, run));
    for (done, pages) in all.clone().enumerate() {
        // SAFETY: passed on to the caller; each unit's pages come once.
        if let Err(error) = unsafe { P::populate(pages.addr, pages.count, pages.cpu) } {
            // SAFETY: the first `done` are what this call populated; nobody else knows of them.
            unsafe { take_away::<P>(all.take(done)) };
            return Err(error);
        }
    }
    Ok(())
}

/// Takes the memory behind the pages `pages` of every listed unit of the chunk at `base` away.
///
/// # Safety
///
/// The pages are populated, no area lies in them, and none will: they are marked as not populated,
/// or nobody else knows of the chunk. No unit is being listed: the caller holds the growth lock, or
/// nobody else has the allocator.
pub(crate) unsafe fn depopulate<P: Platform>(first: &FirstChunk<P>, base: usize, pages: Run) {
    // SAFETY: passed on to the caller.
    unsafe { take_away::<P>(first.units().iter().map(|unit| UnitPages::new(base, unit, pages))) };
}

/// Unmaps pages, makes every CPU forget their translations, and only then gives them back: until
/// the flush a CPU may still reach them (regression A4).
///
/// # Safety
///
/// The pages are populated, and nobody uses them or will.
pub(crate) unsafe fn take_away<P: Platform>(all: impl Iterator<Item = UnitPages> + Clone) {
    let (mut low, mut high) = (usize::MAX, 0);
    for pages in all.clone() {
        // SAFETY: the pages are populated and unused, says the caller.
        unsafe { P::unmap(pages.addr, pages.count) };
        low = low.min(pages.addr);
        high = high.max(pages.end());
    }
    if low >= high {
        return;
    }
    P::flush_tlb(low, high - low);
    for pages in all {
        // SAFETY: unmapped by the loop above and flushed after it.
        unsafe { P::free_pages(pages.addr, pages.count) };
    }
}

/// Writes zero to `bytes` bytes at `address` of every unit that has memory. `address` is in unit
/// space.
///
/// A unit that is listed meanwhile may be left out: its memory was zero when it was listed, and
/// still is. Who could have written there is an earlier owner of these granules. He found the unit
/// after it was listed, and gave the area back before it was taken for this call, by the same lock:
/// so the list as read here has the unit (regression H3).
///
/// # Safety
///
/// The area has been taken, lies on populated pages, and nobody else accesses it.
#[inline]
pub(crate) unsafe fn zero<P: Platform>(first: &FirstChunk<P>, address: usize, bytes: usize) {
    for unit in first.units().iter() {
        // SAFETY: passed on to the caller.
        unsafe { zero_copy(address + unit.offset, bytes) };
    }
}

/// Writes zero to `bytes` bytes at each of `addresses` of every unit that has memory: unit by unit.
///
/// # Safety
///
/// As [`zero`], for each area.
pub(crate) unsafe fn zero_all<P: Platform>(
    first: &FirstChunk<P>,
    addresses: impl Iterator<Item = usize> + Clone,
    bytes: usize,
) {
    for unit in first.units().iter() {
        for address in addresses.clone() {
            // SAFETY: passed on to the caller.
            unsafe { zero_copy(address + unit.offset, bytes) };
        }
    }
}

/// Writes zero to `bytes` bytes at `addr`. The frequent small sizes are single stores, without the
/// call that a length not known before costs.
///
/// # Safety
///
/// The bytes are memory, and nobody else accesses them.
#[inline(always)]
unsafe fn zero_copy(addr: usize, bytes: usize) {
    let start = with_exposed_provenance_mut::<u8>(addr);
    // SAFETY: the caller vouches for the bytes.
    unsafe {
        match bytes {
            4 => start.cast::<u32>().write_unaligned(0),
            8 => start.cast::<u64>().write_unaligned(0),
            16 => start.cast::<[u64; 2]>().write_unaligned([0; 2]),
            32 => start.cast::<[u64; 4]>().write_unaligned([0; 4]),
            64 => start.cast::<[u64; 8]>().write_unaligned([0; 8]),
            _ => start.write_bytes(0, bytes),
        }
    }
}
