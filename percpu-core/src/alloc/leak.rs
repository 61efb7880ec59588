//! The leak tracker: which areas nothing points to any more, and who allocated them. Linux:
//! kmemleak.
//!
//! ```text
//! let tracker = alloc::global().leak_tracker();
//! tracker.log_early();                                  // before `setup_per_cpu_areas`
//! ...
//! tracker.start()?;                                     // when there is memory
//! ...
//! // SAFETY: the kernel's data and stacks are readable.
//! unsafe { tracker.scan(roots, |leak| println!("{leak}"))? };
//! ```
//!
//! An area is an object on each CPU that has a unit: the range at `pointer + offset(cpu)`. It counts
//! as referenced when a word that was searched is the address of any byte of any of its objects, or
//! the number of the per-CPU pointer to it. Searched are the roots that the caller gives, the
//! static per-CPU variables of all CPUs, and the contents of all areas that are referenced.
//!
//! # Implementation
//!
//! One record stands for all objects of an area: they have one size, and their addresses differ by
//! the CPUs' offsets, which are known. So an allocation costs one insertion, however many CPUs there
//! are, and a CPU that gets its unit later has its objects without further ado.
//!
//! | | |
//! |---|---|
//! | `tree` | records in the order of per-CPU pointers |
//! | `pool` | memory for records, at hand in atomic context |
//! | `records` | what the tracker's lock owns, the early log included |
//! | `scan` | looking for references, and at what has none |
//!
//! An area is recorded before the caller of `alloc` has its pointer, and forgotten by the `free` that
//! takes it in, before another allocation can have its place, so that a record is of a live area
//! always, and no two are of the same: as long as callers of `free` keep its contract. One that frees
//! an area twice may come between, find no record, and take in the area that has the place by then:
//! then a record is of no area, until the next one at this place has its own instead.
//!
//! # Which areas are recorded
//!
//! Areas are handed out and taken in with one of several locks held, a CPU's cache's or the short lock,
//! and each of these locks counts what it has handed out and taken in. With the counts it owns a flag:
//! whether what it hands out is to be recorded. A start sets the flags one after the other and adds the
//! counts up as they are at that moment. So an area is handed out either before its lock's flag is set,
//! and is in the sum, or behind that, and is recorded, or counted as missed for want of memory: no area
//! is left out, and none counts twice. What frees do to the sum:
//!
//! | the flag of the lock under which the area is freed | area without a record | area with a record |
//! |---|---|---|
//! | set | the sum has the area, and keeps it | the record goes |
//! | clear: the sum will have the free | the sum has neither the area nor its end | the record goes, and the sum is made up for the free |
//!
//! So behind a start the live areas are those with a record and some of the missed ones: the others of
//! these were freed since. An area that was handed out to be recorded by a tracker that has been stopped
//! and started again meanwhile is in the new sum, and is not recorded: each start is an *era* of its own.
//!
//! Locks: the scan lock, the growth lock, a cache's, the short lock, the tracker's, in this order; the
//! tracker's is a leaf. Tracking begins and ends under the scan lock and the growth lock.

mod pool;
mod records;
mod scan;
mod tree;

use core::fmt;
use core::panic::Location;

pub use records::{EARLY_CALLS, Tracking};
pub use scan::{Leak, LeakSite, Scan};

use super::Allocator;
use super::cache::Caches;
use super::grow::Growth;
use crate::atomic::{AtomicU64, Ordering};
use crate::platform::{NoMemory, Platform};
use crate::sync::{Mutex, MutexGuard, SpinLock};
use crate::unwind::AtEnd;
use crate::var::PerCpuPtr;
use pool::NewSlab;
use records::{Area, Records};

/// The part of the tracker that an allocator has, whether it is on or not.
pub(super) struct Leaks<P: Platform> {
    /// The number of the start since which calls are recorded, early or not; 0 while none are. Changes
    /// under the growth lock.
    era: AtomicU64,
    records: SpinLock<Records<P>, P>,
    /// Held while a scan goes on, while a report on the latest one is made, and while tracking begins or
    /// ends.
    scan: Mutex<(), P>,
}

impl<P: Platform> Leaks<P> {
    pub(super) const fn new() -> Self {
        Self {
            era: AtomicU64::new(0),
            records: SpinLock::new(Records::new()),
            scan: Mutex::new(()),
        }
    }

    /// Returns whether calls are recorded. One relaxed load, which is enough for a free: whoever has a
    /// recorded area has it from a lock whose flag was set after this.
    #[inline(always)]
    pub(super) fn is_active(&self) -> bool {
        self.era.load(Ordering::Relaxed) != 0
    }

    /// Returns the era of an area that is handed out under a lock whose flag is `tracked`, to be passed to
    /// [`allocated`](Self::allocated); 0 if that is not to be called. With the lock still held.
    #[inline(always)]
    pub(super) fn era_if(&self, tracked: bool) -> u64 {
        if tracked { self.era.load(Ordering::Relaxed) } else { 0 }
    }

    /// Records that `size` bytes at `pointer` have been handed out to `site`, which does not have
    /// them yet, in the era `era`. Returns whether a thread that may sleep is to call
    /// [`refill`](Self::refill).
    #[cold]
    #[must_use]
    pub(super) fn allocated(
        &self,
        pointer: usize,
        size: usize,
        site: &'static Location<'static>,
        era: u64,
        may_sleep: bool,
    ) -> bool {
        if may_sleep {
            self.refill();
        }
        let area = Area { pointer, size: size as u16, site, born_ns: P::clock_ns() };
        let (first_missed, run_short) = {
            let mut records = self.records.lock();
            (!records.allocated(area, era) && records.missed == 1, records.run_short())
        };
        if first_missed {
            P::log(format_args!(
                "percpu: an area is not tracked for want of memory: leaks may be reported that \
                 are none"
            ));
        }
        run_short && !may_sleep
    }

    /// Records that the area at `pointer` has been taken in. With the lock held under which it was, whose
    /// flag is `tracked`.
    #[cold]
    pub(super) fn freed(&self, pointer: usize, tracked: bool) {
        self.records.lock().freed(pointer, tracked);
    }

    /// Gets memory for further records if they run short. Sleeps; without memory it changes
    /// nothing.
    pub(super) fn refill(&self) {
        let short = self.records.lock().run_short();
        if short && let Ok(slab) = NewSlab::new() {
            let mut records = self.records.lock();
            // The tracker may have been stopped meanwhile, or somebody else came first.
            if records.run_short() {
                records.add_nodes(slab);
            } else {
                drop(records);
                drop(slab);
            }
        }
    }

    /// Bytes of metadata memory.
    pub(super) fn metadata_bytes(&self) -> usize {
        self.records.lock().node_bytes()
    }
}

/// Why the tracker does not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeakError {
    /// The platform has no memory left.
    NoMemory,
    /// So many calls found the early log full. The tracker remains disabled: it would not know of
    /// areas that have references to others.
    EarlyLogOverflow(u64),
    /// The tracker was not started.
    NotStarted,
}

impl fmt::Display for LeakError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoMemory => f.write_str("the platform has no memory left"),
            Self::EarlyLogOverflow(lost) => {
                write!(f, "the early log holds {EARLY_CALLS} calls, {lost} more were lost")
            }
            Self::NotStarted => f.write_str("leak tracking is not on"),
        }
    }
}

impl core::error::Error for LeakError {}

impl From<NoMemory> for LeakError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// An allocator's leak tracker. Linux: kmemleak, and `/sys/kernel/debug/kmemleak`.
///
/// While it is off, an allocation and a free pay one relaxed load each for it. While it is on, each
/// of them takes a lock of the tracker's and costs a search among all records, O(log areas), with
/// interrupts masked; a record is 64 bytes of metadata memory.
pub struct LeakTracker<'a, P: Platform> {
    allocator: &'a Allocator<P>,
}

impl<P: Platform> Clone for LeakTracker<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for LeakTracker<'_, P> {}

impl<P: Platform> Allocator<P> {
    /// The leak tracker, which is off until it is told otherwise.
    pub fn leak_tracker(&self) -> LeakTracker<'_, P> {
        LeakTracker { allocator: self }
    }
}

impl<'a, P: Platform> LeakTracker<'a, P> {
    fn leaks(self) -> &'a Leaks<P> {
        &self.allocator.leaks
    }

    /// Logs calls from now on, to be replayed by [`start`](Self::start). To be called before the
    /// first allocation, even before the areas are set up; needs no memory. The log holds
    /// [`EARLY_CALLS`] calls. Does nothing unless the tracker is off. Sleeps while another thread grows or
    /// shrinks the allocator, scans, or starts or stops the tracker.
    ///
    /// Areas that are live by then count as [missed](LeakStatistics::missed).
    pub fn log_early(self) {
        if self.tracking() != Tracking::Off {
            return;
        }
        let _alone = self.lock_scan();
        if self.tracking() == Tracking::Off {
            self.begin(Tracking::Early);
        }
    }

    fn tracking(self) -> Tracking {
        self.leaks().records.lock().tracking
    }

    /// Takes the scan lock, whose holder may wait for the growth lock.
    ///
    /// # Panics
    ///
    /// If this thread holds either of them: it is called back by a scan, or by what shows the chunks.
    fn lock_scan(self) -> MutexGuard<'a, (), P> {
        assert!(
            !self.allocator.growth.is_held_here(),
            "a visitor of chunks, or what gives a scan its roots, calls the leak tracker, which may wait \
             for the lock with which it was called"
        );
        self.leaks().scan.lock()
    }

    /// Begins to record, or to log. The scan lock is held, and the tracker is off.
    fn begin(self, tracking: Tracking) {
        // First, since it may panic: then all is as it was.
        let growth = self.allocator.growth.lock();
        let leaks = self.leaks();
        let era = leaks.records.lock().begin(tracking);
        leaks.era.store(era, Ordering::Relaxed);
        let live = self.allocator.set_tracked(&growth, true);
        leaks.records.lock().missed_before(live);
    }

    /// Has nothing recorded any more, after `change` to what is. The scan lock is held.
    fn end<R>(self, change: impl FnOnce(&mut Records<P>) -> R) -> R {
        // First, since it may panic: then all is as it was.
        let growth = self.allocator.growth.lock();
        let changed = change(&mut self.leaks().records.lock());
        self.allocator.set_tracked(&growth, false);
        self.leaks().era.store(0, Ordering::Relaxed);
        changed
    }

    /// Begins to record areas, those of the early log included. Sleeps. Linux: `kmemleak_init`.
    ///
    /// Areas that are live by now and in no log are not tracked, and count as
    /// [missed](LeakStatistics::missed). Every area that is live afterwards is tracked or counts as missed,
    /// and none is both, whatever other threads allocate and free meanwhile. Does nothing if the tracker is
    /// on.
    ///
    /// Costs a step for each CPU's cache.
    ///
    /// # Errors
    ///
    /// [`NoMemory`](LeakError::NoMemory) changes nothing.
    /// [`EarlyLogOverflow`](LeakError::EarlyLogOverflow) disables the tracker for good, which is
    /// logged.
    pub fn start(self) -> Result<(), LeakError> {
        if self.tracking() == Tracking::On {
            // Also for a scan's callback, which must not wait for the end of the scan.
            return Ok(());
        }
        let _alone = self.lock_scan();
        let _nodes = AtEnd(|| {
            let nodes = self.leaks().records.lock().unused_nodes();
            drop(nodes);
        });
        self.get_going()
    }

    /// As [`start`](Self::start), with the scan lock held; a failure leaves nodes behind.
    fn get_going(self) -> Result<(), LeakError> {
        let leaks = self.leaks();
        let mut slab = None;
        loop {
            let mut records = leaks.records.lock();
            let lost = records.early_lost();
            match records.tracking {
                Tracking::On => return Ok(()),
                Tracking::Disabled => return Err(LeakError::EarlyLogOverflow(lost)),
                Tracking::Early if lost != 0 => {
                    drop(records);
                    self.end(|records| records.tracking = Tracking::Disabled);
                    let error = LeakError::EarlyLogOverflow(lost);
                    P::log(format_args!("percpu: leak tracking is disabled: {error}"));
                    return Err(error);
                }
                Tracking::Off | Tracking::Early => {}
            }
            if let Some(slab) = slab.take() {
                records.add_nodes(slab);
            }
            if records.nr_free() >= records.early_nodes() + pool::LOW {
                if records.tracking == Tracking::Early {
                    records.replay();
                    records.tracking = Tracking::On;
                } else {
                    drop(records);
                    self.begin(Tracking::On);
                }
                return Ok(());
            }
            drop(records);
            slab = Some(NewSlab::new()?);
        }
    }

    /// Stops recording, forgets all areas and gives the memory back. Sleeps; waits for a scan. A
    /// disabled tracker remains so. Linux: `echo off`.
    ///
    /// Costs a step for each area with interrupts masked.
    pub fn stop(self) {
        let _alone = self.lock_scan();
        if matches!(self.tracking(), Tracking::Early | Tracking::On) {
            let nodes = self.end(Records::reset);
            drop(nodes);
        }
    }

    /// Takes the area at `ptr` as referenced from now on: its only reference is where no search
    /// finds it, say in a device or in disguise. Whether the area is tracked. Linux:
    /// `kmemleak_not_leak`, with its contents searched.
    pub fn not_leak<T>(self, ptr: PerCpuPtr<T>) -> bool {
        let mut records = self.leaks().records.lock();
        let Some(node) = records.tree.find(ptr.raw()) else { return false };
        records.tree.get_mut(node).pinned = true;
        true
    }

    /// What the tracker knows. Takes the tracker's lock.
    pub fn statistics(self) -> LeakStatistics {
        let records = self.leaks().records.lock();
        LeakStatistics {
            tracking: records.tracking,
            areas: records.areas,
            bytes: records.bytes,
            missed: records.missed,
            early_lost: records.early_lost(),
        }
    }
}

impl<P: Platform> Allocator<P> {
    /// Sets whether areas are recorded that are handed out from here on. Returns the number of areas that
    /// the locks have handed out and not taken in, each at the moment when its flag was set: negative, as
    /// it were, where areas were taken in under another lock than the one they were handed out under.
    ///
    /// Takes the short lock and each CPU's cache lock, one at a time. CPUs get no cache meanwhile.
    fn set_tracked(&self, _: &Growth, tracked: bool) -> u64 {
        let mut live = 0_u64;
        for cache in self.caches().into_iter().flat_map(Caches::iter) {
            let mut shelves = cache.lock();
            shelves.tracked = tracked;
            live = live.wrapping_add(shelves.allocs).wrapping_sub(shelves.frees);
        }
        let mut state = self.state.lock();
        state.tracked = tracked;
        live.wrapping_add(state.statistics.allocs).wrapping_sub(state.statistics.frees)
    }
}

/// What a leak tracker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeakStatistics {
    /// How far it is.
    pub tracking: Tracking,
    /// Areas that are tracked; each is an object on every CPU that has a unit.
    pub areas: u64,
    /// Their bytes on one CPU.
    pub bytes: u64,
    /// Areas that are not tracked, because they were live when the tracker started or because no
    /// memory was at hand in an atomic allocation; those that were freed since included. Unless it is 0
    /// reported leaks may be none: what such an area refers to is not seen.
    pub missed: u64,
    /// Calls that found the early log full.
    pub early_lost: u64,
}
