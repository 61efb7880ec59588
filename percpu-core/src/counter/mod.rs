//! Counters that many CPUs change and few read. Linux: `percpu_counter`.
//!
//! A counter has a shared part and a small local part on each CPU. An add changes the local part
//! with one instruction; only when that reaches the *batch* it is folded into the shared part, under
//! the counter's lock. [`read`](PercpuCounter::read) looks at the shared part alone and is off by
//! less than batch times CPUs; [`sum`](PercpuCounter::sum) is exact.
//!
//! ```
//! use percpu_core::{counter::PercpuCounter, host};
//!
//! host::boot(2).unwrap();
//! let _cpu = host::enter_any().unwrap();
//! let blocks = PercpuCounter::new(1000).unwrap();
//! blocks.sub(3);
//! assert_eq!(blocks.read(), 1000); // the three are still in this CPU's local part
//! assert_eq!(blocks.sum(), 997);
//! assert!(!blocks.limited_add(998, 2));
//! ```
//!
//! # CPUs that come and go
//!
//! A CPU that dies leaves its local parts behind. [`cpu_dead`] folds them, in every counter there
//! is, and leaves zeroes; until then the CPU is in the dying mask and [`sum`](PercpuCounter::sum)
//! counts it. So a sum is exact at every moment, and no local part is folded twice.
//! [`register_hotplug_steps`] has this done at the right time.

mod hotplug;
mod list;
mod node;
pub mod v26;

use core::alloc::Layout;
use core::cmp::Ordering;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicI32, Ordering::Relaxed};

use crate::alloc::{AllocError, alloc_percpu, free_percpu};
use crate::cpu;
use crate::irq;
use crate::platform::{Global, Platform};
use crate::var::PerCpuPtr;

pub use hotplug::{cpu_dead, register_hotplug_steps};
pub(crate) use list::head_address;

use node::Node;

/// The smallest batch, and the one before hotplug is known of.
const MIN_BATCH: i32 = 32;

/// From which local value on [`add`](PercpuCounter::add) folds. Linux: `percpu_counter_batch`.
static BATCH: AtomicI32 = AtomicI32::new(MIN_BATCH);

/// From which local value on [`add`](PercpuCounter::add) folds: twice the number of online CPUs, at
/// least 32. Linux: `percpu_counter_batch`.
#[inline]
pub fn batch() -> i32 {
    BATCH.load(Relaxed)
}

/// Address of the batch.
pub(crate) fn batch_address() -> usize {
    (&raw const BATCH).expose_provenance()
}

fn batch_for(cpus: usize) -> i32 {
    i32::try_from(2 * cpus).unwrap_or(i32::MAX).max(MIN_BATCH)
}

/// The largest batch there can ever be: local parts may be left over from a time with more CPUs.
fn largest_batch() -> i32 {
    batch_for(cpu::nr_cpu_ids())
}

/// A counter with one local part for each possible CPU.
///
/// The handle can be moved; the counter itself stays where it is, in the list of all counters.
/// Any number of threads and interrupt handlers may use it at the same time. Making and dropping it
/// is for contexts that may sleep.
pub struct PercpuCounter {
    node: NonNull<Node>,
}

// SAFETY: the node is shared by atomics and a lock; the handle is only a pointer to it.
unsafe impl Send for PercpuCounter {}
// SAFETY: as above.
unsafe impl Sync for PercpuCounter {}

impl PercpuCounter {
    /// A counter that stands at `amount`. Linux: `percpu_counter_init`.
    ///
    /// # Errors
    ///
    /// There is no memory for it.
    pub fn new(amount: i64) -> Result<Self, AllocError> {
        let locals = alloc_percpu(size_of::<i32>(), align_of::<i32>())?;
        let Some(memory) = Global::alloc_meta(Layout::new::<Node>()) else {
            // SAFETY: allocated above and told to nobody.
            let freed = unsafe { free_percpu(locals) };
            debug_assert!(freed.is_ok(), "the area was allocated above");
            return Err(AllocError::NoMemory);
        };
        let node = memory.cast::<Node>();
        // SAFETY: `alloc_meta` gave memory of this layout to us alone.
        unsafe { node.write(Node::new(amount, locals.cast())) };
        // Those who walk the list by its view come by number.
        node.as_ptr().expose_provenance();
        // SAFETY: it stays where it is until `drop` takes it out of the list.
        unsafe { list::insert(node) };
        Ok(Self { node })
    }

    /// Adds `amount`. Linux: `percpu_counter_add`.
    ///
    /// Two instructions on this CPU's local part; takes the counter's lock once a batch.
    #[inline]
    pub fn add(&self, amount: i64) {
        self.node().add(amount, batch());
    }

    /// Subtracts `amount`. Linux: `percpu_counter_sub`.
    #[inline]
    pub fn sub(&self, amount: i64) {
        self.add(amount.wrapping_neg());
    }

    /// Adds one. Linux: `percpu_counter_inc`.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Subtracts one. Linux: `percpu_counter_dec`.
    #[inline]
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Adds `amount`, and folds from a local part of `batch` on. Linux: `percpu_counter_add_batch`.
    #[inline]
    pub fn add_batch(&self, amount: i64, batch: i32) {
        let node = self.node();
        node.allow_locals_below(batch);
        node.add(amount, batch);
    }

    /// Adds `amount` to this CPU's local part, however large that gets; folds only what 32 bits
    /// cannot hold. For a counter that is summed more often than it is read. Linux:
    /// `percpu_counter_add_local`.
    #[inline]
    pub fn add_local(&self, amount: i64) {
        self.add_batch(amount, i32::MAX);
    }

    /// Subtracts as [`add_local`](Self::add_local) adds. Linux: `percpu_counter_sub_local`.
    #[inline]
    pub fn sub_local(&self, amount: i64) {
        self.add_local(amount.wrapping_neg());
    }

    /// The shared part: cheap, and off by the sum of the local parts. Linux: `percpu_counter_read`.
    #[inline]
    pub fn read(&self) -> i64 {
        self.node().count()
    }

    /// As [`read`](Self::read), but 0 instead of a negative number. Linux:
    /// `percpu_counter_read_positive`.
    #[inline]
    pub fn read_positive(&self) -> i64 {
        self.read().max(0)
    }

    /// The exact value: takes the lock and visits every CPU that is online or dying. Linux:
    /// `percpu_counter_sum`.
    pub fn sum(&self) -> i64 {
        let node = self.node();
        let _lock = node.lock();
        node.sum_locked()
    }

    /// As [`sum`](Self::sum), but 0 instead of a negative number. Linux:
    /// `percpu_counter_sum_positive`.
    pub fn sum_positive(&self) -> i64 {
        self.sum().max(0)
    }

    /// Makes the counter stand at `amount`. An add at the same time may be lost, or survive. Linux:
    /// `percpu_counter_set`.
    pub fn set(&self, amount: i64) {
        let node = self.node();
        let _lock = node.lock();
        for cpu in cpu::booted_once().iter() {
            node.take_local_of(cpu);
        }
        node.set_count(amount);
    }

    /// Folds this CPU's local part. Linux: `percpu_counter_sync`.
    pub fn sync(&self) {
        self.node().fold(0);
    }

    /// Compares the value with `rhs`, exactly, by the shared part alone if that is clear enough.
    /// Linux: `percpu_counter_compare`.
    pub fn compare(&self, rhs: i64) -> Ordering {
        let node = self.node();
        let count = node.count();
        if count.abs_diff(rhs) > node.slack().unsigned_abs() {
            count.cmp(&rhs)
        } else {
            self.sum().cmp(&rhs)
        }
    }

    /// Adds `amount` if that takes the counter not past `limit`: not above it for a positive
    /// amount, not below it for a negative one. Whether it added. Linux:
    /// `percpu_counter_limited_add`.
    ///
    /// Callers that add at the same time may together pass the limit by what they have in flight.
    pub fn limited_add(&self, limit: i64, amount: i64) -> bool {
        if amount == 0 {
            return true;
        }
        let within = |value: i64| if amount > 0 { value <= limit } else { value >= limit };
        let node = self.node();
        // The most and the least, towards the limit, that the local parts can make up.
        let (most, least) = match (node.slack(), amount > 0) {
            (slack, true) => (slack, -slack),
            (slack, false) => (-slack, slack),
        };

        // Far from the limit: all local parts, the new one included, cannot reach it.
        {
            let _irq = irq::disable();
            if node
                .add_to_local_below(amount, batch(), || within(node.count().saturating_add(most)))
            {
                return true;
            }
        }
        let _lock = node.lock();
        let count = node.count().saturating_add(amount);
        if !within(count.saturating_add(least)) {
            return false;
        }
        if !within(count.saturating_add(most)) && !within(node.sum_locked().saturating_add(amount))
        {
            return false;
        }
        node.fold_locked(amount);
        true
    }

    /// Address of the counter: that of its [`CounterView`](crate::view::CounterView).
    pub fn address(&self) -> usize {
        self.node.as_ptr().expose_provenance()
    }

    /// Per-CPU pointer to the local parts.
    pub fn locals(&self) -> PerCpuPtr<i32> {
        self.node().locals()
    }

    #[inline]
    fn node(&self) -> &Node {
        // SAFETY: the node lives as long as its handle, and is shared by atomics and a lock.
        unsafe { self.node.as_ref() }
    }
}

impl Drop for PercpuCounter {
    /// Takes the counter out of the list and frees it. Linux: `percpu_counter_destroy`.
    fn drop(&mut self) {
        // SAFETY: `new` put it there, and this happens once.
        unsafe { list::remove(self.node) };
        let locals = self.node().locals().cast();
        // SAFETY: nobody reaches the local parts but through the handle and the list.
        let freed = unsafe { free_percpu(locals) };
        debug_assert!(freed.is_ok(), "the area is the counter's own");
        // SAFETY: as for the local parts; a node has nothing to drop.
        unsafe { Global::free_meta(self.node.cast(), Layout::new::<Node>()) };
    }
}

impl fmt::Debug for PercpuCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PercpuCounter").field("count", &self.read()).finish_non_exhaustive()
    }
}
