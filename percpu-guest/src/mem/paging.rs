//! Page tables of the chunk space. The identity map below it is the host's and stays as it is.
//!
//! An unmapped page keeps its frame number in the entry, with the present bit clear, until the
//! frame is given back: so `unmap`, the TLB flush and `free` can be three steps, in this order.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use percpu_core::platform::NoMemory;
use percpu_core::sync::SpinLock;
use percpu_guest::abi::{CHUNK_SPACE, PAGE_TABLES};

use super::{PAGE, frames, shortage};
use crate::shared;

const PRESENT: u64 = 1;
/// Present, writable, reachable from ring 3.
const PTE: u64 = PRESENT | 2 | 4;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Bytes of the chunk space: one entry of the top table.
const SPACE: usize = 1 << 39;

/// Held while tables are added; entries themselves belong to whoever reserved their range.
static TABLES: SpinLock<()> = SpinLock::new(());
/// First address of the chunk space that was never reserved.
static NEXT: AtomicUsize = AtomicUsize::new(CHUNK_SPACE as usize);

/// Ranges given back, to be handed out again.
static RELEASED: SpinLock<Released> = SpinLock::new(Released { ranges: [(0, 0); 64], len: 0 });

struct Released {
    ranges: [(usize, usize); 64],
    len: usize,
}

/// Reserves `size` bytes of addresses aligned to `align`.
pub fn reserve(size: usize, align: usize) -> Option<usize> {
    {
        let mut released = RELEASED.lock();
        let len = released.len;
        let fits = |&(addr, have): &(usize, usize)| have == size && addr.is_multiple_of(align);
        if let Some(i) = released.ranges[..len].iter().position(fits) {
            let (addr, _) = released.ranges[i];
            released.ranges[i] = released.ranges[len - 1];
            released.len -= 1;
            return Some(addr);
        }
    }
    let reserve = |next: usize| {
        let addr = next.checked_next_multiple_of(align)?;
        let end = addr.checked_add(size)?;
        (end <= CHUNK_SPACE as usize + SPACE).then_some(end)
    };
    let before = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve).ok()?;
    before.checked_next_multiple_of(align)
}

/// Gives a reserved range back. One that does not fit in the list of free ranges is lost, which
/// costs addresses only, of which there are plenty.
pub fn release(addr: usize, size: usize) {
    let mut released = RELEASED.lock();
    let len = released.len;
    if let Some(slot) = released.ranges.get_mut(len) {
        *slot = (addr, size);
        released.len += 1;
    }
}

/// The entry of the page at `addr`; tables on the way are made if `make`.
fn entry(addr: usize, make: bool) -> Option<&'static AtomicU64> {
    let mut table = PAGE_TABLES as usize;
    for level in [39, 30, 21] {
        let slot = slot(table, addr >> level & 511);
        if slot.load(Ordering::Acquire) & PRESENT == 0 {
            if !make {
                return None;
            }
            let _tables = TABLES.lock();
            if slot.load(Ordering::Acquire) & PRESENT == 0 {
                let new = frames::alloc_zeroed()?;
                slot.store(new as u64 | PTE, Ordering::Release);
            }
        }
        table = (slot.load(Ordering::Acquire) & FRAME) as usize;
    }
    Some(slot(table, addr >> 12 & 511))
}

fn slot(table: usize, index: usize) -> &'static AtomicU64 {
    let table = core::ptr::with_exposed_provenance::<AtomicU64>(table);
    // SAFETY: `table` is a page table of ours, mapped one to one and never given back; `index` is
    // below 512.
    unsafe { &*table.add(index) }
}

/// The physical address behind `addr`, if there is memory. Below the chunk space it is the same.
pub fn translate(addr: usize) -> Option<usize> {
    let space = CHUNK_SPACE as usize..CHUNK_SPACE as usize + SPACE;
    if !space.contains(&addr) {
        return (addr < shared::boot().memory_end as usize).then_some(addr);
    }
    let entry = entry(addr, false)?.load(Ordering::Acquire);
    (entry & PRESENT != 0).then_some((entry & FRAME) as usize + addr % PAGE)
}

/// Puts frames behind `pages` pages from `addr`; all or none.
pub fn map(addr: usize, pages: usize) -> Result<(), NoMemory> {
    for page in 0..pages {
        let at = addr + page * PAGE;
        let frame = entry(at, true).and_then(|entry| {
            let frame = if shortage::strikes() { None } else { frames::alloc() }?;
            entry.store(frame as u64 | PTE, Ordering::Release);
            shared::header().resources.frames.fetch_add(1, Ordering::Relaxed);
            Some(frame)
        });
        if frame.is_none() {
            // Nobody has used these pages yet, so no TLB knows them.
            unmap(addr, page);
            free(addr, page);
            return Err(NoMemory);
        }
    }
    Ok(())
}

/// Takes the translations of `pages` pages from `addr` away and keeps the frames.
pub fn unmap(addr: usize, pages: usize) {
    for page in 0..pages {
        if let Some(entry) = entry(addr + page * PAGE, false) {
            entry.fetch_and(!PRESENT, Ordering::AcqRel);
        }
    }
}

/// Gives the frames of unmapped pages back.
pub fn free(addr: usize, pages: usize) {
    for page in 0..pages {
        if let Some(entry) = entry(addr + page * PAGE, false) {
            let old = entry.swap(0, Ordering::AcqRel);
            assert!(old & PRESENT == 0, "page {:#x} is freed while mapped", addr + page * PAGE);
            if old & FRAME != 0 {
                // SAFETY: the frame was this page's alone, and its translation is gone.
                unsafe { frames::free((old & FRAME) as usize) };
                shared::header().resources.frames.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}
