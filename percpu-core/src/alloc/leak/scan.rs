//! The search for references, and what it leaves over.

use core::fmt;
use core::ops::Range;
use core::panic::Location;
use core::ptr::with_exposed_provenance;
use core::sync::atomic::{AtomicPtr, Ordering};

use super::records::Records;
use super::tree::NodeRef;
use super::{LeakError, LeakTracker, Leaks, Tracking};
use crate::alloc::{Table, Zeroable};
use crate::area::FirstChunk;
use crate::platform::Platform;
use crate::var::PerCpuPtr;

const WORD: usize = size_of::<usize>();

/// A live area that nothing was found to refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The per-CPU pointer.
    pub pointer: usize,
    /// Bytes on one CPU.
    pub size: u32,
    /// Where it was allocated: whom a `#[track_caller]` chain that ends in
    /// [`Allocator::alloc`](crate::alloc::Allocator::alloc) names.
    pub site: &'static Location<'static>,
    /// Nanoseconds since then.
    pub age_ns: u64,
}

impl Leak {
    /// The per-CPU pointer.
    pub fn ptr(&self) -> PerCpuPtr<u8> {
        PerCpuPtr::from_raw(self.pointer)
    }
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pointer, size, site, age_ns } = self;
        let (s, ms) = (age_ns / 1_000_000_000, age_ns / 1_000_000 % 1000);
        write!(f, "unreferenced area {pointer:#x}, {size} bytes, {s}.{ms:03} s old, from {site}")
    }
}

/// What a scan has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Words that were searched.
    pub words: u64,
    /// Areas that were looked at; those that were allocated meanwhile are not among them.
    pub areas: u64,
    /// Areas without a reference.
    pub leaks: u64,
    /// Their bytes on one CPU.
    pub leaked_bytes: u64,
    /// Whether every live area was tracked. If not, leaks may be none.
    pub complete: bool,
}

/// What one place in the program has allocated that is still live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeakSite {
    /// The place.
    pub site: &'static Location<'static>,
    /// Areas, and their bytes on one CPU.
    pub areas: u64,
    /// Their bytes on one CPU.
    pub bytes: u64,
    /// Those of them that the latest scan found leaked.
    pub leaks: u64,
    /// Their bytes on one CPU.
    pub leaked_bytes: u64,
}

impl fmt::Display for LeakSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { site, areas, bytes, leaks, leaked_bytes } = self;
        write!(f, "{areas} areas, {bytes} bytes, from {site}")?;
        if *leaks == 0 { Ok(()) } else { write!(f, ": {leaks} leaked, {leaked_bytes} bytes") }
    }
}

impl<P: Platform> LeakTracker<'_, P> {
    /// Looks for areas that nothing points to, and shows them to `visit` in the order of their
    /// pointers. Linux: `echo scan` and `cat` of `/sys/kernel/debug/kmemleak`.
    ///
    /// `roots` are the ranges of addresses from which everything is reached: the kernel's data,
    /// its heap, stacks, saved registers. They are searched word by aligned word, whatever the
    /// words mean, and so are the static per-CPU variables and what the areas themselves hold.
    ///
    /// Sleeps. Allocations that need memory wait while the search goes on, since pages must not go
    /// away under it; all others, and frees, go on. A reference that moves meanwhile, from where
    /// the search is yet to come to where it has been, is not seen: what a scan of a system at work
    /// reports is suspect, what the next one reports again is a leak. What is allocated meanwhile is
    /// not reported. `roots` is asked with the growth lock held, so it must not allocate unless
    /// atomically, nor do anything else that takes that lock; `visit` is called with no lock held but the
    /// one that keeps other scans out. Neither may ask the tracker to scan, to sum up or to stop: it would
    /// wait for itself, which [panics](crate::sync::Mutex::lock). Either may panic, which ends the scan.
    ///
    /// Costs a load and two comparisons for each word, a step for each CPU if the word may be an
    /// address of an area's, and a search among the records if it may be one on that CPU.
    ///
    /// # Errors
    ///
    /// [`NotStarted`](LeakError::NotStarted).
    ///
    /// # Safety
    ///
    /// Every range is of readable, initialised memory with exposed provenance, until this returns.
    /// Words that others write meanwhile are read by relaxed atomic loads, as a debugger would: the
    /// caller answers for their writes being such that this is no harm, or stops the others.
    ///
    /// Every [`free`](crate::alloc::Allocator::free) so far kept its contract. One that came too
    /// late and took in the place's next area has left a record of that, and the pages that it says
    /// are live may have lost their memory.
    pub unsafe fn scan(
        self,
        roots: impl IntoIterator<Item = Range<usize>>,
        mut visit: impl FnMut(&Leak),
    ) -> Result<Scan, LeakError> {
        let leaks = self.leaks();
        let _scan = self.lock_scan();
        let first = self.allocator.first.get().ok_or(LeakError::NotStarted)?;
        let words = {
            // Pages come and go under the growth lock only.
            let _growth = self.allocator.growth.lock();
            let mut search = Search::begin(leaks, first)?;
            for root in roots {
                // SAFETY: passed on to the caller.
                unsafe { search.range(root) };
            }
            // SAFETY: the growth lock is held.
            unsafe { search.own_memory() };
            search.words
        };
        let now = P::clock_ns();
        let mut scan = Scan { words, complete: true, ..Scan::default() };
        let mut from = Some(0);
        while let Some((areas, leak)) = leaks.next(&mut from, |records, node| {
            scan.complete &= records.missed == 0;
            records.judge(node, now)
        }) {
            scan.areas += areas;
            if let Some(leak) = leak {
                scan.leaks += 1;
                scan.leaked_bytes += u64::from(leak.size);
                visit(&leak);
            }
        }
        scan.complete &= leaks.records.lock().missed == 0;
        Ok(scan)
    }

    /// Shows each place that has allocated live areas to `visit`, in the order of files and lines,
    /// with what the latest scan has said of them. Sleeps; takes memory for a line an area, which is
    /// given back.
    ///
    /// # Errors
    ///
    /// [`NoMemory`](LeakError::NoMemory) and [`NotStarted`](LeakError::NotStarted).
    pub fn sites(self, mut visit: impl FnMut(&LeakSite)) -> Result<(), LeakError> {
        let leaks = self.leaks();
        let _scan = self.lock_scan();
        let areas = {
            let records = leaks.records.lock();
            if records.tracking != Tracking::On {
                return Err(LeakError::NotStarted);
            }
            records.areas as usize
        };
        let mut lines = Table::<Line, P>::zeroed(areas)?;
        let mut len = 0;
        let mut from = Some(0);
        // What is allocated meanwhile may find no line left.
        while let Some(line) = leaks.next(&mut from, |records, node| records.line(node))
            && let Some(entry) = lines.get_mut(len)
        {
            *entry = line;
            len += 1;
        }
        let lines = &mut lines[..len];
        lines.sort_unstable_by_key(|line| line.site);
        for lines in lines.chunk_by(|a, b| a.site == b.site) {
            let Some(site) = lines[0].site else { continue };
            let mut of = LeakSite { site, areas: 0, bytes: 0, leaks: 0, leaked_bytes: 0 };
            for line in lines {
                of.areas += 1;
                of.bytes += u64::from(line.size);
                of.leaks += u64::from(line.leaked);
                of.leaked_bytes += if line.leaked { u64::from(line.size) } else { 0 };
            }
            visit(&of);
        }
        Ok(())
    }
}

/// A record, as far as a summary by sites needs it.
#[derive(Clone, Copy)]
struct Line {
    site: Option<&'static Location<'static>>,
    size: u32,
    leaked: bool,
}

// SAFETY: an option of a reference, an integer, a `bool`: all valid as zero.
unsafe impl Zeroable for Line {}

impl<P: Platform> Leaks<P> {
    /// Shows the first record at `from` or behind it, under the lock, and moves `from` behind it.
    fn next<R>(
        &self,
        from: &mut Option<usize>,
        look: impl FnOnce(&mut Records<P>, NodeRef) -> R,
    ) -> Option<R> {
        let mut records = self.records.lock();
        let node = records.tree.ceiling((*from)?)?;
        *from = records.tree.get(node).key.checked_add(1);
        Some(look(&mut records, node))
    }
}

impl<P: Platform> Records<P> {
    /// How many areas, one or none, the latest scan had to judge here, and the leak if it is one.
    fn judge(&mut self, node: NodeRef, now: u64) -> (u64, Option<Leak>) {
        let scan = self.scan;
        let this = self.tree.get_mut(node);
        if this.seen == scan {
            return (u64::from(!this.newborn), None);
        }
        this.leaked = true;
        let leak = this.site.map(|site| Leak {
            pointer: this.key,
            size: this.size.into(),
            site,
            age_ns: now.saturating_sub(this.born_ns),
        });
        (1, leak)
    }

    fn line(&self, node: NodeRef) -> Line {
        let this = self.tree.get(node);
        Line { site: this.site, size: this.size.into(), leaked: this.leaked }
    }
}

/// A search that goes on.
struct Search<'a, P: Platform> {
    leaks: &'a Leaks<P>,
    first: &'a FirstChunk<P>,
    /// Where recorded pointers lie.
    bounds: Range<usize>,
    words: u64,
}

impl<'a, P: Platform> Search<'a, P> {
    fn begin(leaks: &'a Leaks<P>, first: &'a FirstChunk<P>) -> Result<Self, LeakError> {
        let mut records = leaks.records.lock();
        if records.tracking != Tracking::On {
            return Err(LeakError::NotStarted);
        }
        let bounds = records.begin_search();
        drop(records);
        let search = Self { leaks, first, bounds, words: 0 };
        let mut from = Some(0);
        while let Some(()) = leaks.next(&mut from, |records, node| {
            let this = records.tree.get(node);
            if this.pinned && this.seen != records.scan {
                records.mark(node);
            }
        }) {}
        Ok(search)
    }

    /// Searches the static per-CPU variables, and all areas that are referenced until there are no
    /// more of them.
    ///
    /// # Safety
    ///
    /// The growth lock is held.
    unsafe fn own_memory(&mut self) {
        let first = self.first;
        for unit in first.units().iter() {
            let start = first.base + unit.offset;
            // SAFETY: the unit's first pages have memory for as long as there is the first chunk,
            // and the template lies at their beginning.
            unsafe { self.range(start..start + first.static_size) };
        }
        loop {
            let mut records = self.leaks.records.lock();
            let Some((pointer, size)) = records.pop_pending() else {
                records.end_search();
                return;
            };
            drop(records);
            for unit in first.units().iter() {
                let start = pointer.wrapping_add(first.delta()).wrapping_add(unit.offset);
                // SAFETY: the area was live while the growth lock was held, which still is; so its
                // pages have had memory in every unit since, even if it was freed meanwhile.
                unsafe { self.range(start..start + usize::from(size)) };
            }
        }
    }

    /// Searches the aligned words of `range`.
    ///
    /// # Safety
    ///
    /// They are readable, initialised, and of exposed provenance.
    unsafe fn range(&mut self, range: Range<usize>) {
        let end = range.end - range.end % WORD;
        let Some(mut at) = range.start.checked_next_multiple_of(WORD) else { return };
        while at < end {
            let word = with_exposed_provenance::<AtomicPtr<()>>(at);
            // SAFETY: aligned, and readable by this function's contract. What it holds is read as a
            // pointer, which may be any number, so that one may be there.
            let word = unsafe { (*word).load(Ordering::Relaxed) }.addr();
            self.see(word);
            self.words += 1;
            at += WORD;
        }
    }

    /// Takes a word for whatever reference it may be.
    #[inline]
    fn see(&self, word: usize) {
        self.refer(word);
        // As an address it is a pointer plus this and plus the offset of a unit.
        let at = word.wrapping_sub(self.first.delta());
        let reach = self.bounds.len().saturating_add(self.first.span);
        if at.wrapping_sub(self.bounds.start) < reach {
            for unit in self.first.units().iter() {
                self.refer(at.wrapping_sub(unit.offset));
            }
        }
    }

    #[inline]
    fn refer(&self, pointer: usize) {
        if self.bounds.contains(&pointer) {
            self.leaks.records.lock().refer(pointer);
        }
    }
}

impl<P: Platform> Drop for Search<'_, P> {
    /// Ends the search also when whoever gave the roots panicked: nothing waits to be searched any
    /// more, and what is allocated from now on does not either.
    fn drop(&mut self) {
        self.leaks.records.lock().end_search();
        while self.leaks.records.lock().pop_pending().is_some() {}
    }
}
