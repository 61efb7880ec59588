//! S1: per-CPU sums are conserved. Also the ledger, the host's independent account of every add.

use std::mem::{offset_of, size_of};

use percpu_guest::abi::{
    ControlBlock, LEDGER_SLOTS, LEDGER_THREADS, LedgerRow, SHARED, Shared, control_block,
};

use super::finding::{Findings, Violation};
use super::layout::Layout;
use super::shadow::{Ledger, Shadow};
use crate::memory::{AddressSpace, Following, GuestMem, Wild};

/// What every thread and every CPU's interrupt added to every object.
pub(crate) struct LedgerBook {
    rows: Vec<i64>,
    /// Sum of all rows by slot.
    threads: [i64; LEDGER_SLOTS],
    /// Sum of all CPUs' interrupts by slot.
    interrupts: [i64; LEDGER_SLOTS],
}

impl LedgerBook {
    pub(crate) fn read(mem: &GuestMem, possible: u32) -> Result<Self, Wild> {
        let rows = words(
            mem,
            SHARED + offset_of!(Shared, ledger) as u64,
            LEDGER_THREADS * size_of::<LedgerRow>() / 8,
        )
        .following(|| "the ledger")?;
        let mut threads = [0i64; LEDGER_SLOTS];
        for row in rows.chunks_exact(LEDGER_SLOTS) {
            for (sum, amount) in threads.iter_mut().zip(row) {
                *sum = sum.wrapping_add(*amount);
            }
        }
        let mut interrupts = [0i64; LEDGER_SLOTS];
        for cpu in 0..possible {
            let row = control_block(cpu) + offset_of!(ControlBlock, irq_ledger) as u64;
            for (sum, amount) in interrupts.iter_mut().zip(words(mem, row, LEDGER_SLOTS)?) {
                *sum = sum.wrapping_add(amount);
            }
        }
        Ok(Self { rows, threads, interrupts })
    }

    /// What threads added to an object.
    pub(crate) fn by_threads(&self, ledger: Ledger) -> i64 {
        let slot = ledger.slot as usize;
        match ledger.row {
            Some(row) => self.rows[row as usize * LEDGER_SLOTS + slot],
            None => self.threads[slot],
        }
    }

    /// What interrupts added: they write objects of all threads only.
    pub(crate) fn by_interrupts(&self, ledger: Ledger) -> i64 {
        match ledger.row {
            Some(_) => 0,
            None => self.interrupts[ledger.slot as usize],
        }
    }
}

fn words(mem: &GuestMem, phys: u64, len: usize) -> Result<Vec<i64>, Wild> {
    let mut bytes = vec![0; len * 8];
    mem.read_into(phys, &mut bytes)?;
    let word = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    Ok(bytes.chunks_exact(8).map(word).collect())
}

/// S1: the sum over all CPUs that have a unit equals the initial amount and all adds.
pub(crate) fn check(
    space: &AddressSpace<'_>,
    layout: &Layout,
    shadow: &Shadow,
    findings: &mut Findings,
) {
    if shadow.sums.is_empty() {
        return;
    }
    let book = LedgerBook::read(space.mem(), layout.possible());
    let Some(book) = findings.sound(book) else { return };
    for sum in shadow.sums.values() {
        let copies: Result<Vec<u64>, Wild> = (0..layout.possible())
            .map(|cpu| match layout.address(sum.ptr, cpu) {
                None => Ok(0),
                Some(address) => space
                    .read(address)
                    .following(|| format!("CPU {cpu}'s part of the sum at {:#x}", sum.ptr)),
            })
            .collect();
        let Some(copies) = findings.sound(copies) else { continue };
        findings.checked("S1", 1);
        let seen = copies.iter().fold(0, |sum: u64, copy| sum.wrapping_add(*copy));
        let ledger = Ledger { slot: sum.slot, row: None };
        let threads = book.by_threads(ledger);
        let interrupts = book.by_interrupts(ledger);
        let expected = sum.initial.wrapping_add_signed(threads).wrapping_add_signed(interrupts);
        if seen != expected {
            let detail = format!(
                "the per-CPU words at {:#x} (ledger slot {}) sum to {seen}, expected {expected}: \
                 initially {}, threads added {threads}, interrupts {interrupts}; by CPU: {}",
                sum.ptr,
                sum.slot,
                sum.initial,
                by_cpu(copies.iter().map(|copy| *copy as i64)),
            );
            findings.report(
                Violation::new("S1", format!("sum {:#x}", sum.ptr), detail).values(seen, expected),
            );
        }
    }
}

/// Values that are not zero, with their CPUs.
pub(crate) fn by_cpu(values: impl Iterator<Item = i64>) -> String {
    let list: Vec<_> = values
        .enumerate()
        .filter(|(_, value)| *value != 0)
        .map(|(cpu, value)| format!("CPU {cpu} {value}"))
        .collect();
    if list.is_empty() { "all zero".into() } else { list.join(", ") }
}
