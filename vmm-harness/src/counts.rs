//! The guest's counts of what it did, for the report. Nothing is judged by them.

use std::mem::offset_of;

use percpu_guest::abi::{BalanceCounts, SHARED, SharedHeader, TraceCounts};

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

fn count(mem: &GuestMem, field: usize) -> u64 {
    mem.load_u64(SHARED + field as u64).unwrap_or(0)
}
