//! Translations of the chunk space: which of its pages are mapped, and to what.
//!
//! A page of the chunk space is mapped when it is first used, as the guest's page tables have it then; so
//! these mappings are what a TLB is, and go away as its entries do: when the guest flushes those of pages
//! whose entry has changed since, and when there is no more room the oldest. All CPUs have the one TLB:
//! the flush of one is that of all, and a guest that forgets to flush one CPU is not found out here. (One
//! that takes the steps in a wrong order is, by its own check.)

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, Ordering};

use super::place::{self, Lodger};
use super::ram::Ram;

/// Pages that are mapped at most. The kernel has a limit on mappings, by default of eight times this.
const MOST: usize = 8192;
const PAGE: u64 = 4096;

/// Every mapped page of the chunk space is in here.
pub(super) struct Tlb {
    locked: AtomicBool,
    entries: UnsafeCell<Entries>,
}

// SAFETY: the entries are reached with `locked` held only.
unsafe impl Sync for Tlb {}

struct Entries {
    /// A ring.
    of: [Entry; MOST],
    /// Where the oldest is, and how many there are.
    oldest: usize,
    len: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    virt: u64,
    phys: u64,
}

impl Tlb {
    pub(super) const fn new() -> Self {
        let of = [Entry { virt: 0, phys: 0 }; MOST];
        let entries = UnsafeCell::new(Entries { of, oldest: 0, len: 0 });
        Self { locked: AtomicBool::new(false), entries }
    }

    /// Calls `f`, alone. Not interrupted by anyone who calls this: signal handlers have all signals
    /// blocked, and outside of them no guest runs on the thread.
    fn with<R>(&self, f: impl FnOnce(&mut Entries) -> R) -> R {
        while self
            .locked
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            // SAFETY: the call touches no memory.
            unsafe { libc::sched_yield() };
        }
        // SAFETY: whoever has set `locked` is alone with the entries until it is cleared.
        let result = f(unsafe { &mut *self.entries.get() });
        self.locked.store(false, Ordering::Release);
        result
    }

    /// Maps the page at `virt` to the one at `phys`, as an access has found it in the page tables.
    /// Async-signal-safe.
    ///
    /// That may be outdated by now. Then the guest waits, before it gives the page to somebody else, for
    /// this CPU's flush, which comes later and finds the entry.
    pub(super) fn fill(&self, lodger: &Lodger, virt: u64, phys: u64) -> bool {
        let (virt, phys) = (virt & !(PAGE - 1), phys & !(PAGE - 1));
        self.with(|entries| {
            if entries.len == MOST {
                place::unmap(entries.of[entries.oldest].virt, PAGE);
                entries.oldest = (entries.oldest + 1) % MOST;
                entries.len -= 1;
            }
            let next = (entries.oldest + entries.len) % MOST;
            entries.of[next] = Entry { virt, phys };
            entries.len += 1;
            lodger.map(virt, phys)
        })
    }

    /// Takes away what is not so any more by the page tables. Async-signal-safe.
    pub(super) fn flush(&self, ram: &Ram) {
        self.with(|entries| {
            let mut kept = 0;
            for n in 0..entries.len {
                let entry = entries.of[(entries.oldest + n) % MOST];
                if ram.translate(entry.virt).is_ok_and(|now| now.phys == entry.phys) {
                    entries.of[(entries.oldest + kept) % MOST] = entry;
                    kept += 1;
                } else {
                    place::unmap(entry.virt, PAGE);
                }
            }
            entries.len = kept;
        });
    }

    /// Takes everything away.
    pub(super) fn clear(&self) {
        self.with(|entries| {
            let all = (0..entries.len).map(|n| entries.of[(entries.oldest + n) % MOST].virt);
            if let (Some(first), Some(last)) = (all.clone().min(), all.max()) {
                place::unmap(first, last + PAGE - first);
            }
            entries.len = 0;
        });
    }
}
