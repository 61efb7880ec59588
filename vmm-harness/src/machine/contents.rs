//! What a guest's memory holds at a moment, as far as the guest can have written it: copied out once,
//! and put back before each run.
//!
//! Where that is the guest says itself, so nothing of it is believed: ranges lie in guest memory and are
//! not more than it, page tables are not more than there is room for.

use std::mem::offset_of;
use std::ops::Range;
use std::sync::atomic::AtomicI64;

use percpu_guest::abi::{
    self, BootParams, CHUNK_SPACE, ControlBlock, EventRing, LedgerRow, LogRing, MAX_CPUS,
    PAGE_TABLES, SHARED, Shared, SharedHeader,
};

use super::cpus;
use crate::error::Error;
use crate::memory::{GuestMem, Wild};

pub(super) const PAGE: u64 = 4096;
const PRESENT: u64 = 1;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Tables that can be put back at once: pairs of addresses that fit into a page.
const MOST_TABLES: usize = PAGE as usize / 16;

/// Rows of the ledger that a scenario's threads can have.
pub(super) const MOST_THREADS: u64 = 32;
const _: () = assert!(MOST_THREADS <= abi::LEDGER_THREADS as u64);

/// A page table: its address and what is in it.
pub(super) type Table = (u64, Vec<u8>);

/// Memory at a moment.
pub(crate) struct Contents {
    mem: GuestMem,
    /// Memory by its address.
    ranges: Vec<(u64, Vec<u8>)>,
    /// The chunk space's page tables, the topmost first.
    tables: Vec<Table>,
    /// Where frames begin that were not handed out yet.
    frames_end: u64,
}

impl Contents {
    /// Copies what a guest of so many CPUs can have written: `writable` of its image, and what it says
    /// it has used of the first `size` bytes of memory.
    ///
    /// # Errors
    /// What the guest says makes no sense.
    pub(super) fn take(
        mem: &GuestMem,
        writable: &[Range<u64>],
        possible: u32,
        size: u64,
    ) -> Result<Self, Error> {
        let boot: BootParams = mem.read(SHARED + offset_of!(SharedHeader, boot) as u64)?;
        let frames_end = frames_end(mem)?;
        let tables = tables(mem)?;
        let mut ranges = Vec::new();
        let mut room = size;
        let mut keep = |range: Range<u64>| -> Result<(), Error> {
            let len = range.end.saturating_sub(range.start);
            let Some(left) = room.checked_sub(len) else {
                return Err(Error::GuestBoot(format!(
                    "it says that it has written more than its {size} bytes of memory"
                )));
            };
            room = left;
            // Before there is a copy to fill.
            mem.slice(range.start, len as usize)?;
            let mut bytes = vec![0; len as usize];
            mem.read_into(range.start, &mut bytes)?;
            ranges.push((range.start, bytes));
            Ok(())
        };
        for range in writable {
            keep(range.clone())?;
        }
        keep(SHARED..SHARED + size_of::<SharedHeader>() as u64)?;
        keep(cpus::STATE)?;
        let possible = u64::from(possible).min(MAX_CPUS as u64);
        let part = |offset: usize, each: usize, n: u64| {
            let start = SHARED + offset as u64;
            start..start + each as u64 * n
        };
        keep(part(offset_of!(Shared, control), size_of::<ControlBlock>(), possible))?;
        keep(part(offset_of!(Shared, ledger), size_of::<LedgerRow>(), MOST_THREADS))?;
        keep(part(offset_of!(Shared, accounts), size_of::<[AtomicI64; abi::ACCOUNTS]>(), 1))?;
        for cpu in 0..possible {
            // The head, and as much as was written by now; what is written later nobody reads after
            // the head was put back.
            let ring =
                SHARED + offset_of!(Shared, events) as u64 + cpu * size_of::<EventRing>() as u64;
            let used = mem.load_u64(ring)?.min(abi::EVENT_RING_LEN as u64);
            let used = used * size_of::<abi::Event>() as u64;
            keep(ring..ring + offset_of!(EventRing, slots) as u64 + used)?;
            let log = SHARED + offset_of!(Shared, logs) as u64 + cpu * size_of::<LogRing>() as u64;
            let used = mem.load_u64(log)?.min(abi::LOG_RING_LEN as u64);
            keep(log..log + offset_of!(LogRing, bytes) as u64 + used)?;
        }
        // Frames but for the page tables among them.
        for range in between(boot.memory_start..frames_end, &tables) {
            keep(range)?;
        }
        Ok(Self { mem: mem.clone(), ranges, tables, frames_end })
    }

    /// The page tables as they are now that differ from those of the moment, each with what was in it
    /// then: nothing where it was no table.
    ///
    /// # Errors
    /// The guest's page tables make no sense.
    pub(super) fn tables_that_differ(&self) -> Result<(Vec<Table>, Vec<Table>), Error> {
        let now = tables(&self.mem)?;
        let differ = now.iter().filter_map(|(table, contents)| {
            let before = self.tables.iter().find(|(before, _)| before == table);
            match before {
                Some((_, before)) if before == contents => None,
                Some((_, before)) => Some((*table, before.clone())),
                None => Some((*table, vec![0; PAGE as usize])),
            }
        });
        let differ = differ.collect();
        Ok((now, differ))
    }

    /// Puts everything back but page tables: those of `now`, among the frames that were handed out
    /// since, are left alone, too.
    pub(super) fn put_back(&self, now: &[Table]) -> Result<(), Wild> {
        // Before it is put back.
        let frames_end = frames_end(&self.mem)?;
        for (start, bytes) in &self.ranges {
            self.mem.write(*start, bytes)?;
        }
        // Those that the guest has put back to zero itself are left alone: KVM may watch them.
        between(self.frames_end..frames_end, now).into_iter().try_for_each(|range| self.zero(range))
    }

    fn zero(&self, range: Range<u64>) -> Result<(), Wild> {
        const ZEROES: [u8; PAGE as usize] = [0; PAGE as usize];
        let mut at = range.start;
        while at < range.end {
            let n = (range.end - at).min(PAGE);
            self.mem.write(at, &ZEROES[..n as usize])?;
            at += n;
        }
        Ok(())
    }
}

/// The parts of a range that are no page tables.
fn between(range: Range<u64>, tables: &[Table]) -> Vec<Range<u64>> {
    let mut holes: Vec<_> = tables.iter().map(|(table, _)| *table).collect();
    holes.sort_unstable();
    let mut at = range.start;
    let mut parts = Vec::new();
    for hole in holes.into_iter().filter(|hole| range.contains(hole)) {
        parts.push(at..hole);
        at = hole.saturating_add(PAGE);
    }
    parts.push(at..range.end);
    parts.retain(|part| !part.is_empty());
    parts
}

fn frames_end(mem: &GuestMem) -> Result<u64, Wild> {
    mem.load_u64(SHARED + offset_of!(SharedHeader, frames_end) as u64)
}

/// The tables below the top table's entry of the chunk space, in the order of a walk, and the top
/// table itself.
fn tables(mem: &GuestMem) -> Result<Vec<Table>, Error> {
    let mut found: Vec<Table> = Vec::new();
    let mut level = vec![PAGE_TABLES];
    for depth in 0..4 {
        let mut below = Vec::new();
        for table in level {
            if found.len() == MOST_TABLES || found.iter().any(|(other, _)| *other == table) {
                return Err(Error::GuestBoot(format!(
                    "its page tables are more than {MOST_TABLES}, or {table:#x} is one of two levels"
                )));
            }
            let mut bytes = vec![0; PAGE as usize];
            mem.read_into(table, &mut bytes)?;
            let entries =
                bytes.chunks_exact(8).map(|e| u64::from_le_bytes(e.try_into().expect("8")));
            let entries = entries.enumerate().filter(|(_, entry)| entry & PRESENT != 0);
            let entries =
                entries.filter(|(i, _)| depth > 0 || *i as u64 == CHUNK_SPACE >> 39 & 511);
            below.extend(entries.map(|(_, entry)| entry & FRAME));
            found.push((table, bytes));
        }
        level = below;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    const SIZE: u64 = 32 << 20;
    const FRAMES: u64 = 16 << 20;
    /// Tables of the chunk space: one a level, the first among the frames.
    const CHAIN: [u64; 3] = [FRAMES + PAGE, 0x3_0000, 0x4_0000];

    fn guest() -> GuestMem {
        let regions = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE as usize)]).unwrap();
        let mem = GuestMem::new(regions);
        let boot = SHARED + offset_of!(SharedHeader, boot) as u64;
        mem.store_u64(boot + offset_of!(BootParams, memory_start) as u64, FRAMES).unwrap();
        set_frames_end(&mem, FRAMES + 4 * PAGE);
        let mut entry = PAGE_TABLES + (CHUNK_SPACE >> 39 & 511) * 8;
        for table in CHAIN {
            mem.store_u64(entry, table | 7).unwrap();
            entry = table;
        }
        mem
    }

    fn set_frames_end(mem: &GuestMem, end: u64) {
        mem.store_u64(SHARED + offset_of!(SharedHeader, frames_end) as u64, end).unwrap();
    }

    fn take(mem: &GuestMem) -> Result<Contents, Error> {
        Contents::take(mem, &[], 4, SIZE)
    }

    #[test]
    fn frames_are_put_back_and_those_handed_out_since_are_zero() {
        let mem = guest();
        let (old, new) = (FRAMES, FRAMES + 5 * PAGE);
        mem.store_u64(old, 1).unwrap();
        let contents = take(&mem).unwrap();
        mem.store_u64(old, 2).unwrap();
        mem.store_u64(new, 3).unwrap();
        mem.store_u64(CHAIN[0] + 8, FRAMES + 6 * PAGE).unwrap();
        set_frames_end(&mem, FRAMES + 7 * PAGE);
        let (now, differ) = contents.tables_that_differ().unwrap();
        contents.put_back(&now).unwrap();
        assert_eq!((mem.load_u64(old), mem.load_u64(new)), (Ok(1), Ok(0)));
        // The guest itself puts tables back.
        assert_eq!(mem.load_u64(CHAIN[0] + 8), Ok(FRAMES + 6 * PAGE));
        assert_eq!(differ.iter().map(|(table, _)| *table).collect::<Vec<_>>(), [CHAIN[0]]);
        assert_eq!(differ[0].1[8..16], [0; 8]);
    }

    #[test]
    fn tables_in_a_circle_or_without_end_are_refused() {
        let mem = guest();
        mem.store_u64(CHAIN[1], PAGE_TABLES | 7).unwrap();
        assert!(take(&mem).is_err());
        let mem = guest();
        for n in 0..512 {
            mem.store_u64(CHAIN[0] + 8 * n, (0x50_0000 + n * PAGE) | 7).unwrap();
        }
        assert!(take(&mem).is_err());
    }

    #[test]
    fn no_more_is_copied_than_there_is() {
        for end in [SIZE + PAGE, u64::MAX] {
            let mem = guest();
            set_frames_end(&mem, end);
            assert!(take(&mem).is_err(), "{end:#x}");
        }
        let mem = guest();
        let all = || 0..SIZE;
        assert!(Contents::take(&mem, &[all(), all()], 4, SIZE).is_err());
        // A range that ends before it begins is none.
        set_frames_end(&mem, 0);
        assert!(take(&mem).is_ok());
        // Nor has a ring more than it has room for.
        mem.store_u64(SHARED + offset_of!(Shared, events) as u64, u64::MAX).unwrap();
        assert!(take(&mem).is_ok());
    }
}
