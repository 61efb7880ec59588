//! The guest's counts of what it did and checked, for the report. Nothing is judged by them.

use std::mem::offset_of;

use percpu_guest::abi::{
    BalanceCounts, ControlBlock, Invariant, SHARED, SharedHeader, TraceCounts, control_block,
};

use crate::memory::GuestMem;
use crate::report::{BalanceReport, TraceReport};

/// Counts of the balance work.
pub(crate) fn balance(mem: &GuestMem) -> BalanceReport {
    let count = |field: usize| count(mem, offset_of!(SharedHeader, balance) + field);
    BalanceReport {
        done: count(offset_of!(BalanceCounts, done)),
        freed_chunks: count(offset_of!(BalanceCounts, freed_chunks)),
        depopulated_pages: count(offset_of!(BalanceCounts, depopulated_pages)),
        populated_pages: count(offset_of!(BalanceCounts, populated_pages)),
        out_of_memory: count(offset_of!(BalanceCounts, out_of_memory)),
        atomic_failures: count(offset_of!(BalanceCounts, atomic_failures)),
    }
}

/// Counts of the trace's replay.
pub(crate) fn trace(mem: &GuestMem) -> TraceReport {
    let count = |field: usize| count(mem, offset_of!(SharedHeader, trace) + field);
    TraceReport {
        ops: count(offset_of!(TraceCounts, ops)),
        passes: count(offset_of!(TraceCounts, passes)),
    }
}

/// How often the guest has held something against an invariant by itself.
pub(crate) fn checks(mem: &GuestMem, possible: u32) -> impl Iterator<Item = (&'static str, u64)> {
    Invariant::ALL.iter().map(move |invariant| {
        let field = offset_of!(ControlBlock, checks) + 8 * invariant.index();
        let on = |cpu| mem.load_u64(control_block(cpu) + field as u64).unwrap_or(0);
        (invariant.name(), (0..possible).map(on).fold(0, u64::wrapping_add))
    })
}

/// The sum of numbers of the guest's, which may be any.
pub(crate) fn total(numbers: impl IntoIterator<Item = u64>) -> u64 {
    numbers.into_iter().fold(0, u64::saturating_add)
}

fn count(mem: &GuestMem, field: usize) -> u64 {
    mem.load_u64(SHARED + field as u64).unwrap_or(0)
}
