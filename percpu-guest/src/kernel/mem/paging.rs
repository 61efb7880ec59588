//! Page tables of the chunk space. The identity map below it is the host's and stays as it is.
//!
//! An unmapped page keeps its frame number in the entry, with the present bit clear, until the
//! frame is given back: so `unmap`, the TLB flush and `free` can be three steps, in this order. The
//! entry remembers which of them are done, and who takes them in another order is told of (T1): a TLB
//! that happens to have forgotten a page hides nothing.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::abi::{Invariant, PAGE_TABLES};
use percpu_core::cpu;
use percpu_core::platform::NoMemory;
use percpu_core::sync::SpinLock;

use super::{PAGE, frames, shortage, space};
use crate::kernel::{events, shared};

const PRESENT: u64 = 1;
/// In an entry that is not present: some TLB may still have the translation. The processor does not
/// look at the bit.
const REMEMBERED: u64 = 1 << 9;
/// Present, writable, reachable from ring 3.
const PTE: u64 = PRESENT | 2 | 4;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// What is in a page when it is put behind an address: arbitrary, as the platform says, and certainly
/// not zero.
const POISON: u8 = 0xa5;

/// Held while tables are added; entries themselves belong to whoever reserved their range.
static TABLES: SpinLock<()> = SpinLock::new(());
/// The last table on the way to `addr`; tables are made if `make`.
fn table(addr: usize, make: bool) -> Option<usize> {
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
    Some(table)
}

/// The entry of the page at `addr` in the last table on the way there.
fn entry_in(table: usize, addr: usize) -> &'static AtomicU64 {
    slot(table, addr >> 12 & 511)
}

fn entry(addr: usize, make: bool) -> Option<&'static AtomicU64> {
    Some(entry_in(table(addr, make)?, addr))
}

/// Calls `f` for the address and the entry of each page from `addr` to `end` that has one.
fn for_each_entry(addr: usize, end: usize, mut f: impl FnMut(usize, &AtomicU64)) {
    const OF_A_TABLE: usize = 512 * PAGE;
    let mut at = addr;
    while at < end {
        let next = (at + 1).next_multiple_of(OF_A_TABLE).min(end);
        if let Some(table) = table(at, false) {
            (at..next).step_by(PAGE).for_each(|at| f(at, entry_in(table, at)));
        }
        at = next;
    }
}

fn slot(table: usize, index: usize) -> &'static AtomicU64 {
    let table = core::ptr::with_exposed_provenance::<AtomicU64>(table);
    // SAFETY: `table` is a page table of ours, mapped one to one and never given back; `index` is
    // below 512.
    unsafe { &*table.add(index) }
}

/// The physical address behind `addr`, if there is memory. Below the chunk space it is the same.
pub fn translate(addr: usize) -> Option<usize> {
    if !space::contains(addr) {
        return (addr < shared::boot().memory_end as usize).then_some(addr);
    }
    let entry = entry(addr, false)?.load(Ordering::Acquire);
    (entry & PRESENT != 0).then_some((entry & FRAME) as usize + addr % PAGE)
}

/// Tells the host that the entry of the page at `addr` was `seen`, where `expected` was in order.
fn out_of_order(invariant: Invariant, addr: usize, seen: u64, expected: u64) {
    events::violation(invariant, cpu::this_cpu_raw(), addr as u64, seen, expected);
}

/// Puts frames behind `pages` pages from `addr`; all or none.
pub fn map(addr: usize, pages: usize) -> Result<(), NoMemory> {
    events::checked(Invariant::T2, pages as u64);
    if !space::is_reserved(addr, pages * PAGE) {
        // No entry has this bit alone.
        out_of_order(Invariant::T2, addr, 0, REMEMBERED);
    }
    for page in 0..pages {
        let at = addr + page * PAGE;
        let frame = entry(at, true).and_then(|entry| {
            let frame = if shortage::strikes() { None } else { frames::alloc() }?;
            // SAFETY: the frame was just handed to us.
            unsafe {
                core::ptr::with_exposed_provenance_mut::<u8>(frame).write_bytes(POISON, PAGE)
            };
            let before = entry.swap(frame as u64 | PTE, Ordering::AcqRel);
            if before != 0 {
                out_of_order(Invariant::T2, at, before, 0);
            }
            shared::header().resources.frames.fetch_add(1, Ordering::Relaxed);
            Some(frame)
        });
        if frame.is_none() {
            // Nobody has used these pages yet, so no TLB knows them.
            for_each_entry(addr, at, |_, entry| give_back(entry.swap(0, Ordering::AcqRel)));
            return Err(NoMemory);
        }
    }
    Ok(())
}

/// Takes the translations of `pages` pages from `addr` away and keeps the frames.
pub fn unmap(addr: usize, pages: usize) {
    for_each_entry(addr, addr + pages * PAGE, |at, entry| {
        let before = entry.fetch_and(!PRESENT, Ordering::AcqRel);
        if before & PRESENT == 0 {
            out_of_order(Invariant::T2, at, before, before & FRAME | PTE);
        }
        entry.fetch_or(REMEMBERED, Ordering::AcqRel);
    });
}

/// Records that no TLB has a translation of `addr..addr + size` that was taken away before.
pub fn flushed(addr: usize, size: usize) {
    for_each_entry(addr, addr + size, |_, entry| {
        // Entries of others, who go on with their pages meanwhile, are left alone but for the bit.
        if entry.load(Ordering::Relaxed) & REMEMBERED != 0 {
            entry.fetch_and(!REMEMBERED, Ordering::AcqRel);
        }
    });
}

/// Gives the frames of unmapped pages back.
pub fn free(addr: usize, pages: usize) {
    events::checked(Invariant::T1, pages as u64);
    for_each_entry(addr, addr + pages * PAGE, |at, entry| {
        let before = entry.swap(0, Ordering::AcqRel);
        if before & (PRESENT | REMEMBERED) != 0 {
            out_of_order(Invariant::T1, at, before, before & FRAME);
        }
        give_back(before);
    });
}

/// Gives the frame back that an entry named, if it named one.
fn give_back(entry: u64) {
    if entry & FRAME != 0 {
        // SAFETY: the frame was this page's alone, and its translation is gone.
        unsafe { frames::free((entry & FRAME) as usize) };
        shared::header().resources.frames.fetch_sub(1, Ordering::Relaxed);
    }
}
