//! The counter of Linux 2.6: a static array of padded local parts. Kept as the baseline that shows
//! what allocating the local parts saves.
//!
//! It takes a cache line for each CPU that could ever be, knows nothing of hotplug (a CPU's local
//! part simply stays where it is and goes on being counted), and an interrupt handler must not add
//! to a counter that its thread adds to.

use core::sync::atomic::{AtomicI64, Ordering::Relaxed};

use super::count::Count;
use crate::preempt;
use crate::sync::SpinLock;

/// A local part on a cache line of its own.
#[repr(align(64))]
struct Padded(AtomicI64);

/// A counter for `CPUS` CPUs. Linux 2.6: `struct percpu_counter`.
///
/// ```
/// use percpu_core::{counter::v26, host};
///
/// static BLOCKS: v26::Counter<2> = v26::Counter::new();
///
/// host::boot(2).unwrap();
/// host::on_each_cpu(|_| BLOCKS.add(7)); // each folds from 8 on
/// assert_eq!((BLOCKS.read(), BLOCKS.sum()), (0, 14));
/// ```
pub struct Counter<const CPUS: usize> {
    lock: SpinLock<()>,
    count: AtomicI64,
    locals: [Padded; CPUS],
}

impl<const CPUS: usize> Counter<CPUS> {
    /// From which local value on an add folds. Linux 2.6: `FBC_BATCH`.
    pub const BATCH: i64 = if CPUS >= 16 { CPUS as i64 * 2 } else { CPUS as i64 * 4 };

    /// A counter that stands at 0. Linux 2.6: `percpu_counter_init`.
    pub const fn new() -> Self {
        Self {
            lock: SpinLock::new(()),
            count: AtomicI64::new(0),
            locals: [const { Padded(AtomicI64::new(0)) }; CPUS],
        }
    }

    /// Adds `amount`. Linux 2.6: `percpu_counter_mod`.
    ///
    /// # Panics
    ///
    /// On a CPU whose number is `CPUS` or more.
    pub fn add(&self, amount: i64) {
        let pin = preempt::disable();
        // Loads and stores, not exchanges: the guard keeps other threads away, and interrupt
        // handlers keep away themselves.
        let local = &self.locals[pin.cpu().index()].0;
        let new = local.load(Relaxed).wrapping_add(amount);
        if new >= Self::BATCH || new <= -Self::BATCH {
            let _lock = self.lock.lock();
            self.count.store(self.count.load(Relaxed).wrapping_add(new), Relaxed);
            local.store(0, Relaxed);
        } else {
            local.store(new, Relaxed);
        }
    }

    /// The shared part. Linux 2.6: `percpu_counter_read`.
    pub fn read(&self) -> i64 {
        self.count.load(Relaxed)
    }

    /// As [`read`](Self::read), but 0 instead of a negative number. Linux 2.6:
    /// `percpu_counter_read_positive`.
    pub fn read_positive(&self) -> i64 {
        self.read().max(0)
    }

    /// The sum of all parts. Linux 2.6: `percpu_counter_sum`.
    pub fn sum(&self) -> i64 {
        let _lock = self.lock.lock();
        self.locals.iter().fold(self.read(), |sum, local| sum.wrapping_add(local.0.load(Relaxed)))
    }
}

impl<const CPUS: usize> Count for Counter<CPUS> {
    fn add(&self, amount: i64) {
        self.add(amount);
    }

    fn read(&self) -> i64 {
        self.read()
    }

    fn sum(&self) -> i64 {
        self.sum()
    }
}

impl<const CPUS: usize> Default for Counter<CPUS> {
    fn default() -> Self {
        Self::new()
    }
}
