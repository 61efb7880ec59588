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
//! An area is recorded before the caller of `alloc` has its pointer, and forgotten before `free`
//! begins, so that a record is of a live area always, and no two are of the same: as long as callers
//! of `free` keep its contract. One that frees an area twice may come between, find no record, and
//! take in the area that has the place by then: then a record is of no area, until the next one at
//! this place has its own instead. Locks: the scan lock, the growth lock, the tracker's, in this
//! order; the tracker's is a leaf.

mod pool;
mod records;
mod scan;
mod tree;

use core::fmt;
use core::panic::Location;
use core::sync::atomic::{AtomicBool, Ordering};

pub use records::{EARLY_CALLS, Tracking};
pub use scan::{Leak, LeakSite, Scan};

use super::Allocator;
use crate::platform::{NoMemory, Platform};
use crate::sync::{Mutex, SpinLock};
use crate::var::PerCpuPtr;
use pool::NewSlab;
use records::{Area, Records};

/// The part of the tracker that an allocator has, whether it is on or not.
pub(super) struct Leaks<P: Platform> {
    /// Whether calls are recorded, early or not. The one thing that costs when nothing is.
    active: AtomicBool,
    records: SpinLock<Records<P>, P>,
    /// Held while a scan goes on, and while a report on the latest one is made.
    scan: Mutex<(), P>,
}

impl<P: Platform> Leaks<P> {
    pub(super) const fn new() -> Self {
        Self {
            active: AtomicBool::new(false),
            records: SpinLock::new(Records::new()),
            scan: Mutex::new(()),
        }
    }

    /// Whether the allocator is to report what it does. One relaxed load.
    #[inline(always)]
    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Records that `size` bytes at `pointer` have been handed out to `site`, which does not have
    /// them yet. Returns whether somebody who may sleep is to call [`refill`](Self::refill).
    #[cold]
    #[must_use]
    pub(super) fn allocated(
        &self,
        pointer: usize,
        size: usize,
        site: &'static Location<'static>,
        may_sleep: bool,
    ) -> bool {
        if may_sleep {
            self.refill();
        }
        let area = Area { pointer, size: size as u32, site, born_ns: P::clock_ns() };
        let (first_missed, run_short) = {
            let mut records = self.records.lock();
            (!records.allocated(area) && records.missed == 1, records.run_short())
        };
        if first_missed {
            P::log(format_args!(
                "percpu: an area is not tracked for want of memory: leaks may be reported that \
                 are none"
            ));
        }
        run_short && !may_sleep
    }

    /// Records that the area at `pointer` is about to be freed. Of a pointer that is none it takes
    /// no note.
    #[cold]
    pub(super) fn freed(&self, pointer: usize) {
        self.records.lock().freed(pointer);
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
    /// [`EARLY_CALLS`] calls. Does nothing unless the tracker is off.
    pub fn log_early(self) {
        let leaks = self.leaks();
        let mut records = leaks.records.lock();
        if records.tracking == Tracking::Off {
            records.tracking = Tracking::Early;
            leaks.active.store(true, Ordering::Relaxed);
        }
    }

    /// Begins to record areas, those of the early log included. Sleeps. Linux: `kmemleak_init`.
    ///
    /// Areas that are live by now and in no log are not tracked, and count as
    /// [missed](LeakStatistics::missed). Does nothing if the tracker is on.
    ///
    /// # Errors
    ///
    /// [`NoMemory`](LeakError::NoMemory) changes nothing.
    /// [`EarlyLogOverflow`](LeakError::EarlyLogOverflow) disables the tracker for good, which is
    /// logged.
    pub fn start(self) -> Result<(), LeakError> {
        self.get_going().inspect_err(|_| {
            let nodes = self.leaks().records.lock().unused_nodes();
            drop(nodes);
        })
    }

    /// As [`start`](Self::start), but a failure leaves nodes behind.
    fn get_going(self) -> Result<(), LeakError> {
        let leaks = self.leaks();
        let mut slab = None;
        loop {
            let live = self.allocator.statistics().live;
            let mut records = leaks.records.lock();
            let lost = records.early_lost();
            match records.tracking {
                Tracking::On => return Ok(()),
                Tracking::Disabled => return Err(LeakError::EarlyLogOverflow(lost)),
                Tracking::Early if lost != 0 => {
                    records.tracking = Tracking::Disabled;
                    leaks.active.store(false, Ordering::Relaxed);
                    drop(records);
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
                if records.tracking == Tracking::Off {
                    records.missed = live;
                }
                records.replay();
                records.tracking = Tracking::On;
                leaks.active.store(true, Ordering::Relaxed);
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
        let leaks = self.leaks();
        let _scan = leaks.scan.lock();
        let mut records = leaks.records.lock();
        if records.tracking != Tracking::Disabled {
            let nodes = records.reset();
            leaks.active.store(false, Ordering::Relaxed);
            drop(records);
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
    /// memory was at hand in an atomic allocation. Unless it is 0 reported leaks may be none: what
    /// such an area refers to is not seen.
    pub missed: u64,
    /// Calls that found the early log full.
    pub early_lost: u64,
}
