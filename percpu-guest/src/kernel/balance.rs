//! The thread that does the allocator's balance work. Linux: `pcpu_balance_work`.
//!
//! Any CPU runs it, and it migrates like the threads of the workloads. While it works it counts as
//! busy, so that the host does not take a half-done balance for the state at rest.

use core::sync::atomic::Ordering;

use percpu_core::alloc::{self, Balanced};

use crate::kernel::{sched, shared};

/// Starts the thread.
pub fn start() {
    sched::spawn(run, 0, u32::MAX);
}

fn run(_: usize) {
    let header = shared::header();
    loop {
        sched::wait_until(|_| {
            alloc::global().balance_wanted() && shared::header().quiesce.load(Ordering::SeqCst) == 0
        });
        // As the threads of the workloads: say so first, then look again.
        header.busy.fetch_add(1, Ordering::SeqCst);
        if header.quiesce.load(Ordering::SeqCst) == 0 {
            balance();
        }
        header.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Balances the allocator and counts what came of it.
pub fn balance() -> Balanced {
    let balanced = alloc::global().balance();
    let counts = &shared::header().balance;
    let sums = [
        (&counts.done, 1),
        (&counts.freed_chunks, balanced.freed_chunks),
        (&counts.depopulated_pages, balanced.depopulated_pages),
        (&counts.populated_pages, balanced.populated_pages),
        (&counts.out_of_memory, u32::from(balanced.out_of_memory)),
    ];
    for (sum, more) in sums {
        sum.fetch_add(more.into(), Ordering::Relaxed);
    }
    balanced
}
