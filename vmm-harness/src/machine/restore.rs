//! Putting a guest back to a moment, in less time than it takes to boot one.
//!
//! Copied back is what the guest can have written: the image's writable part, the shared region as far
//! as it was used, page frames up to the highest that was handed out. Frames above were never
//! written; those that were handed out since the moment are zero again.
//!
//! Page tables are different. A KVM without nested paging keeps shadows of them and learns of changes
//! from the guest's own stores and flushes only. So those that differ are put back by the guest, by a
//! few instructions of it that are there for this; and the vCPU is made to forget all translations
//! by being given another CR3 and then its own.

use std::mem::offset_of;
use std::ops::Range;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, Instant};

use percpu_guest::abi::{
    self, BootParams, CHUNK_SPACE, ControlBlock, Doorbell, EventRing, LedgerRow, LogRing,
    PAGE_TABLES, SHARED, Shared, SharedHeader,
};

use super::cpus;
use crate::error::Error;
use crate::image::Image;
use crate::memory::{GuestMem, Wild};
use crate::vm::{Saved, SerialVm};

const PAGE: u64 = 4096;
const PRESENT: u64 = 1;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// The guest at a moment.
pub(super) struct Snapshot {
    mem: GuestMem,
    vcpu: Saved,
    /// Memory by its address.
    ranges: Vec<(u64, Vec<u8>)>,
    /// The chunk space's page tables: address and contents, the topmost first.
    tables: Vec<(u64, Vec<u8>)>,
    /// Where frames begin that were not handed out yet.
    frames_end: u64,
    /// Code of the image that copies pages.
    restore_code: u64,
    /// Memory of ours at the end of the guest's: a list, then pages.
    kept: Range<u64>,
}

impl Snapshot {
    pub(super) fn take(vm: &mut SerialVm, image: &Image, mem: &GuestMem) -> Result<Self, Error> {
        let vcpu = vm.save()?;
        let boot: BootParams = boot_params(mem)?;
        let frames_end = frames_end(mem)?;
        let tables = tables(mem)?;
        let mut ranges = Vec::new();
        let mut keep = |range: Range<u64>| -> Result<(), Wild> {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            mem.read_into(range.start, &mut bytes)?;
            ranges.push((range.start, bytes));
            Ok(())
        };
        for range in image.writable() {
            keep(range)?;
        }
        keep(SHARED..SHARED + size_of::<SharedHeader>() as u64)?;
        keep(cpus::STATE)?;
        let possible = u64::from(boot.possible);
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
            let used = mem.load_u64(ring)? * size_of::<abi::Event>() as u64;
            keep(ring..ring + offset_of!(EventRing, slots) as u64 + used)?;
            let log = SHARED + offset_of!(Shared, logs) as u64 + cpu * size_of::<LogRing>() as u64;
            let used = mem.load_u64(log)?.min(abi::LOG_RING_LEN as u64);
            keep(log..log + offset_of!(LogRing, bytes) as u64 + used)?;
        }
        // Frames but for the page tables among them.
        let mut at = boot.memory_start;
        let mut holes: Vec<_> = tables.iter().map(|(table, _)| *table).collect();
        holes.sort_unstable();
        for hole in holes.into_iter().filter(|&hole| hole >= boot.memory_start) {
            keep(at..hole)?;
            at = hole + PAGE;
        }
        keep(at..frames_end)?;
        Ok(Self {
            mem: mem.clone(),
            vcpu,
            ranges,
            tables,
            frames_end,
            restore_code: image.header().restore,
            kept: boot.memory_end..vm.memory_size(),
        })
    }

    /// Puts everything back; how long that took.
    pub(super) fn restore(&mut self, vm: &mut SerialVm) -> Result<Duration, Error> {
        let began = Instant::now();
        let now_used = frames_end(&self.mem)?;
        let now_tables = tables(&self.mem)?;
        self.restore_tables(vm, &now_tables)?;
        for (start, bytes) in &self.ranges {
            self.mem.write(*start, bytes)?;
        }
        // Those that the guest has put back to zero itself are left alone: KVM may watch them.
        let mut at = self.frames_end;
        let mut holes: Vec<_> = now_tables.iter().map(|(table, _)| *table).collect();
        holes.sort_unstable();
        for hole in holes.into_iter().filter(|&hole| hole >= self.frames_end) {
            self.zero(at..hole)?;
            at = hole + PAGE;
        }
        self.zero(at..now_used)?;
        vm.restore(&self.vcpu)?;
        Ok(began.elapsed())
    }

    fn zero(&self, range: Range<u64>) -> Result<(), Wild> {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut at = range.start;
        while at < range.end {
            let n = (range.end - at).min(PAGE);
            self.mem.write(at, &ZEROES[..n as usize])?;
            at += n;
        }
        Ok(())
    }

    /// Lets the guest put back the page tables that differ.
    fn restore_tables(&self, vm: &mut SerialVm, now: &[(u64, Vec<u8>)]) -> Result<(), Error> {
        let list = self.kept.start;
        let mut page = list + PAGE;
        let mut n = 0;
        for (table, contents) in now {
            let before = self.tables.iter().find(|(before, _)| before == table);
            if before.is_some_and(|(_, before)| before == contents) {
                continue;
            }
            assert!(
                n * 16 < PAGE && page < self.kept.end,
                "room for more tables than there can be"
            );
            match before {
                Some((_, before)) => self.mem.write(page, before)?,
                None => self.zero(page..page + PAGE)?,
            }
            self.mem.store_u64(list + 16 * n, *table)?;
            self.mem.store_u64(list + 16 * n + 8, page)?;
            n += 1;
            page += PAGE;
        }
        if n == 0 {
            return Ok(());
        }
        match vm.call(&self.vcpu, self.restore_code, list, n) {
            Ok((Doorbell::Restored, _)) => Ok(()),
            other => {
                Err(Error::GuestBoot(format!("it does not put its page tables back: {other:?}")))
            }
        }
    }
}

/// Rows of the ledger that a scenario's threads can have.
pub(super) const MOST_THREADS: u64 = 32;
const _: () = assert!(MOST_THREADS <= abi::LEDGER_THREADS as u64);

fn boot_params(mem: &GuestMem) -> Result<BootParams, Wild> {
    mem.read(SHARED + offset_of!(SharedHeader, boot) as u64)
}

fn frames_end(mem: &GuestMem) -> Result<u64, Wild> {
    mem.load_u64(SHARED + offset_of!(SharedHeader, frames_end) as u64)
}

/// The tables below the top table's entry of the chunk space, in the order of a walk, and the top
/// table itself.
fn tables(mem: &GuestMem) -> Result<Vec<(u64, Vec<u8>)>, Wild> {
    let mut found = Vec::new();
    let mut level = vec![PAGE_TABLES];
    for depth in 0..4 {
        let mut below = Vec::new();
        for table in level {
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
