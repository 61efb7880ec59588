//! S1: per-CPU sums are conserved; S2: what changes as one is seen as one. Also the ledger, the host's independent account of every add.

use std::mem::{offset_of, size_of};
use std::sync::atomic::{Ordering, fence};

use percpu_core::view::{LAZY_PER_CPU, LazyView};
use percpu_guest::abi::{
    ACCOUNTS, BootParams, ControlBlock, LEDGER_SLOTS, LEDGER_THREADS, LedgerRow, PAIR_FACTOR,
    SHARED, STATS, Shared, SharedHeader, SumKind, control_block,
};

use super::finding::{Findings, Violation};
use super::layout::Layout;
use super::shadow::{Ledger, Shadow, Sum};
use crate::memory::{AddressSpace, Following, GuestMem, Wild};

/// Where the first number of a set of statistics lies behind its sequence number; the others follow.
const FIRST_NUMBER: u64 = 8;

/// What every thread and every CPU's interrupt added to every object.
pub(crate) struct LedgerBook {
    rows: Vec<i64>,
    accounts: Vec<i64>,
    /// Sum of all rows by slot.
    threads: [i64; LEDGER_SLOTS],
    /// Sum of all CPUs' interrupts by slot.
    interrupts: [i64; LEDGER_SLOTS],
}

impl LedgerBook {
    pub(crate) fn read(mem: &GuestMem, possible: u32) -> Result<Self, Wild> {
        let words = |field: usize, len: usize| {
            words(mem, SHARED + field as u64, len).following(|| "the ledger")
        };
        let used = rows_in_use(mem)?;
        let rows = words(offset_of!(Shared, ledger), used * size_of::<LedgerRow>() / 8)?;
        let accounts = words(offset_of!(Shared, accounts), ACCOUNTS)?;
        let mut threads = [0i64; LEDGER_SLOTS];
        for row in rows.chunks_exact(LEDGER_SLOTS) {
            for (sum, amount) in threads.iter_mut().zip(row) {
                *sum = sum.wrapping_add(*amount);
            }
        }
        let mut interrupts = [0i64; LEDGER_SLOTS];
        for (slot, sum) in (0..).zip(&mut interrupts) {
            *sum = by_interrupts(mem, possible, slot)?;
        }
        Ok(Self { rows, accounts, threads, interrupts })
    }

    /// What threads added to an object.
    pub(crate) fn by_threads(&self, ledger: Ledger) -> i64 {
        match ledger {
            Ledger::All(slot) => self.threads[slot as usize],
            Ledger::Row { slot, row } => {
                let at = row as usize * LEDGER_SLOTS + slot as usize;
                self.rows.get(at).copied().unwrap_or(0)
            }
            Ledger::Account(n) => self.accounts[n as usize],
        }
    }

    /// What interrupts added: they write objects of all threads only.
    pub(crate) fn by_interrupts(&self, ledger: Ledger) -> i64 {
        match ledger {
            Ledger::All(slot) => self.interrupts[slot as usize],
            Ledger::Row { .. } | Ledger::Account(_) => 0,
        }
    }
}

/// What all CPUs have entered in a slot in interrupts, and when they came up.
pub(crate) fn by_interrupts(mem: &GuestMem, possible: u32, slot: u32) -> Result<i64, Wild> {
    (0..possible).try_fold(0i64, |sum, cpu| {
        let row = control_block(cpu) + offset_of!(ControlBlock, irq_ledger) as u64;
        let amount = mem.load_u64(row + 8 * u64::from(slot)).following(|| "the ledger")?;
        Ok(sum.wrapping_add(amount as i64))
    })
}

/// Rows of the ledger that threads can have: most of the ledger is never written.
fn rows_in_use(mem: &GuestMem) -> Result<usize, Wild> {
    let boot: BootParams = mem.read(SHARED + offset_of!(SharedHeader, boot) as u64)?;
    Ok(match boot.threads.saturating_mul(boot.workloads.count_ones()) {
        0 => LEDGER_THREADS,
        threads => LEDGER_THREADS.min(threads as usize),
    })
}

fn words(mem: &GuestMem, phys: u64, len: usize) -> Result<Vec<i64>, Wild> {
    let mut bytes = vec![0; len * 8];
    mem.read_into(phys, &mut bytes)?;
    let word = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    Ok(bytes.chunks_exact(8).map(word).collect())
}

/// S1: the sum over all CPUs that have a unit equals the initial amount and all adds, as far as it
/// is wide.
pub(crate) fn check(
    space: &AddressSpace<'_>,
    layout: &Layout,
    shadow: &Shadow,
    book: &LedgerBook,
    findings: &mut Findings,
) {
    for sum in shadow.sums.values() {
        let Some(copies) = findings.sound(parts(space, layout, sum)) else { continue };
        findings.checked("S1", 1);
        let mask = u64::MAX >> (64 - 8 * sum.kind.bytes());
        let seen = copies.iter().fold(0, |sum: u64, copy| sum.wrapping_add(*copy)) & mask;
        let ledger = Ledger::All(sum.slot);
        let threads = book.by_threads(ledger);
        let interrupts = book.by_interrupts(ledger);
        let expected = sum.initial.wrapping_add_signed(threads).wrapping_add_signed(interrupts);
        let expected = expected & mask;
        if seen != expected {
            let detail = format!(
                "the per-CPU words of {} bytes at {:#x} (ledger slot {}) sum to {seen}, expected \
                 {expected}: initially {}, threads added {threads}, interrupts {interrupts}; by CPU: {}",
                sum.kind.bytes(),
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

/// What a sum is made of: a part for each CPU, or the one of a lazy counter that is not per-CPU.
fn parts(space: &AddressSpace<'_>, layout: &Layout, sum: &Sum) -> Result<Vec<u64>, Wild> {
    let Some(ptr) = pointer(space, sum)? else {
        let LazyView { word } = space.read(sum.ptr)?;
        return Ok(vec![(word as i64 >> 1) as u64]);
    };
    (0..layout.possible())
        .map(|cpu| match layout.address(ptr, cpu) {
            None => Ok(0),
            Some(address) => part(space, address, sum.kind)
                .following(|| format!("CPU {cpu}'s part of the sum at {:#x}", sum.ptr)),
        })
        .collect()
}

/// Per-CPU pointer to the parts, if there are any.
fn pointer(space: &AddressSpace<'_>, sum: &Sum) -> Result<Option<u64>, Wild> {
    if sum.kind != SumKind::Lazy {
        return Ok(Some(sum.ptr));
    }
    let view = space.read(sum.ptr).following(|| format!("lazy counter {:#x}", sum.ptr));
    let LazyView { word } = view?;
    Ok((word & LAZY_PER_CPU != 0).then_some(word & !LAZY_PER_CPU))
}

/// The areas that sums lie in, or have, by per-CPU pointer, with names.
pub(crate) fn areas(
    space: &AddressSpace<'_>,
    shadow: &Shadow,
    findings: &mut Findings,
) -> Vec<(u64, String)> {
    let pointer = |sum: &Sum| {
        let pointer = findings.sound(pointer(space, sum))??;
        Some((pointer, format!("the sum at {:#x}", sum.ptr)))
    };
    shadow.sums.values().filter_map(pointer).collect()
}

/// S2 at any instant: each CPU's statistics, read as the sequence number asks for, are of one moment.
pub(crate) fn check_stats(
    mem: &GuestMem,
    layout: &Layout,
    shadow: &Shadow,
    findings: &mut Findings,
) {
    for sum in shadow.sums.values().filter(|sum| sum.kind == SumKind::Stats) {
        for cpu in layout.units() {
            let Some(at) = layout.address(sum.ptr, cpu) else { continue };
            let what = || format!("CPU {cpu}'s statistics {:#x}", sum.ptr);
            let Some(seen) = findings.sound(read_stats(mem, at).following(what)) else { continue };
            // Just being written.
            let Some(numbers) = seen else { continue };
            findings.checked("S2", 1);
            let (first, others) = (numbers[0], &numbers[1..]);
            let expected = first.wrapping_mul(PAIR_FACTOR);
            if let Some(other) = others.iter().find(|other| **other != expected) {
                let detail = format!(
                    "{} are {first:#x} and {other:#x} at one moment, expected {expected:#x} beside the \
                     first",
                    what()
                );
                findings.report(
                    Violation::new("S2", format!("statistics {:#x}", sum.ptr), detail)
                        .on(cpu)
                        .values(format_args!("{other:#x}"), format_args!("{expected:#x}")),
                );
            }
        }
    }
}

/// The numbers of one moment, if they stand still for that long.
fn read_stats(mem: &GuestMem, at: u64) -> Result<Option<[u64; STATS]>, Wild> {
    let load = |offset: u64| mem.load_u64(mem.translate(at.wrapping_add(offset))?);
    let sequence = load(0)?;
    fence(Ordering::Acquire);
    let mut numbers = [0; STATS];
    for (offset, number) in (FIRST_NUMBER..).step_by(8).zip(&mut numbers) {
        *number = load(offset)?;
    }
    fence(Ordering::Acquire);
    let still = sequence.is_multiple_of(2) && load(0)? == sequence;
    Ok(still.then_some(numbers))
}

/// A CPU's part of a sum.
fn part(space: &AddressSpace<'_>, address: u64, kind: SumKind) -> Result<u64, Wild> {
    match kind {
        SumKind::Word | SumKind::Lazy => space.read::<u64>(address),
        SumKind::Stats => space.read::<u64>(address.wrapping_add(FIRST_NUMBER)),
        SumKind::Half => space.read::<u32>(address).map(u64::from),
        SumKind::Quarter => space.read::<u16>(address).map(u64::from),
        SumKind::Byte => space.read::<u8>(address).map(u64::from),
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
