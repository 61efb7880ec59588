//! The batch: how large a local part may get before it is folded.
//!
//! It follows the number of online CPUs. What a local part can be *at most* is another matter. When
//! the batch becomes smaller each CPU folds what it has too much of (nobody else may touch the local
//! parts of a CPU that runs), but an add that has looked at the batch before and is preempted may
//! still leave a local part that is smaller than the old batch only, on any CPU and at any later time.
//! To exclude that would take a wait for every thread there is. So bounds go by the largest batch
//! there has been: in a system that never had more than 16 CPUs that is the smallest one, too.

use crate::atomic::AtomicI32;
use crate::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::cpu;
use crate::sync::SpinLock;

/// The smallest batch, and the one before hotplug is known of, unless somebody wants another one.
const MIN_BATCH: i32 = 32;

/// Both on a cache line that nobody else writes: each add reads it.
#[repr(align(64))]
struct Batches {
    /// From which local value on an add folds. Linux: `percpu_counter_batch`.
    current: AtomicI32,
    /// The largest there has been. Raised before `current`, so that whoever finds a local part that
    /// was made under a batch finds a `largest` that is no smaller.
    largest: AtomicI32,
    /// What `current` does not fall below.
    smallest: AtomicI32,
}

static BATCHES: Batches = Batches {
    current: AtomicI32::new(MIN_BATCH),
    largest: AtomicI32::new(MIN_BATCH),
    smallest: AtomicI32::new(MIN_BATCH),
};

/// From which local value on [`add`](super::PercpuCounter::add) folds: twice the number of online
/// CPUs, at least 32 or what was [chosen](set_smallest_batch). One load. Linux: `percpu_counter_batch`.
#[inline]
pub fn batch() -> i32 {
    BATCHES.current.load(Acquire)
}

/// Makes `batch`, at least 1, the smallest that is ever in force, in place of 32. Smaller ones fold more
/// often. [Bounds](super::PercpuCounter::error_bound) reckon with the largest batch there has been,
/// which is at least 32. May be called at any time, from any thread. Linux has no such choice.
pub fn set_smallest_batch(batch: i32) {
    BATCHES.smallest.store(batch.max(1), Relaxed);
    compute();
}

/// The largest batch that was ever in force: what every local part is smaller than, unless it was
/// added to with a batch of its own.
pub(super) fn largest_batch() -> i32 {
    BATCHES.largest.load(Acquire)
}

/// Recomputes the batch for the CPUs that are online. Of several calls at the same time the last one
/// finds what the others were called for.
pub(super) fn compute() {
    static ONE_AT_A_TIME: SpinLock<()> = SpinLock::new(());

    let _alone = ONE_AT_A_TIME.lock();
    let online = cpu::online().count();
    let twice = i32::try_from(online.saturating_mul(2)).unwrap_or(i32::MAX);
    let new = twice.max(BATCHES.smallest.load(Relaxed));
    BATCHES.largest.fetch_max(new, Relaxed);
    BATCHES.current.store(new, Release);
}

/// Address of the batch.
pub(crate) fn batch_address() -> usize {
    (&raw const BATCHES.current).expose_provenance()
}
