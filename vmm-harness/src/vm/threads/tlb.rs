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

#[cfg(test)]
mod tests {
    use super::super::place::PLACE;
    use super::*;
    use percpu_guest::abi::{CHUNK_SPACE, PAGE_TABLES};

    /// Tables of the chunk space's first pages, and two pages.
    const TABLES: u64 = 0x2_0000;
    const PAGES: [u64; 2] = [0x30_0000, 0x30_1000];
    const MAPPED: u64 = 7;

    /// What the process reads at an address, if it can.
    fn seen(virt: u64) -> Option<u8> {
        let (mut ends, mut byte) = ([0; 2], 0_u8);
        // SAFETY: a pipe of our own. The kernel reads the address for us, and fails where we would fault.
        unsafe {
            assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
            let at = std::ptr::without_provenance::<libc::c_void>(virt as usize);
            let wrote = libc::write(ends[1], at, 1) == 1;
            assert!(wrote || super::super::signals::errno() == libc::EFAULT);
            if wrote {
                assert_eq!(libc::read(ends[0], (&raw mut byte).cast(), 1), 1);
            }
            for end in ends {
                libc::close(end);
            }
            wrote.then_some(byte)
        }
    }

    #[test]
    fn a_flush_forgets_what_the_tables_do_not_say_any_more_and_nothing_else() {
        let bytes = 4 << 20;
        let (lodger, mem) = Lodger::new(bytes).unwrap();
        let ram = Ram::new(&mem, bytes).unwrap();
        let _stay = lodger.stay().unwrap();
        let put = |entry: u64, value: u64| ram.store_u64(entry, value).unwrap();
        put(PAGE_TABLES + (CHUNK_SPACE >> 39) * 8, TABLES | MAPPED);
        put(TABLES, (TABLES + PAGE) | MAPPED);
        put(TABLES + PAGE, (TABLES + 2 * PAGE) | MAPPED);
        let entries = TABLES + 2 * PAGE;
        PAGES.iter().zip(1..).for_each(|(&page, value)| put(page, value));

        let virts = [CHUNK_SPACE, CHUNK_SPACE + PAGE];
        for (n, (virt, page)) in virts.into_iter().zip(PAGES).enumerate() {
            put(entries + n as u64 * 8, page | MAPPED);
            assert_eq!(seen(virt), None, "a page is there before it was used");
            let to = ram.translate(virt + 5).unwrap();
            assert!(PLACE.tlb.fill(&lodger, virt + 5, to.phys));
        }
        PLACE.tlb.flush(&ram);
        assert_eq!(virts.map(seen), [Some(1), Some(2)]);
        put(entries, 0);
        assert_eq!(virts.map(seen), [Some(1), Some(2)], "a TLB remembers");
        PLACE.tlb.flush(&ram);
        assert_eq!(virts.map(seen), [None, Some(2)]);
        PLACE.tlb.clear();
        assert_eq!(virts.map(seen), [None, None]);
    }
}
