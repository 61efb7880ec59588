//! [`PercpuCounter`] itself.

use core::cmp::Ordering;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use super::batch::batch;
use super::count::Count;
use super::memory::{self, Nodes};
use super::node::{Node, add_below};
use crate::alloc::AllocError;
use crate::arch;
use crate::irq;
use crate::var::PerCpuPtr;

/// A counter with one local part for each CPU. Linux: `struct percpu_counter`.
///
/// The handle can be moved; the counter itself stays where it is, in the list of all counters.
/// Any number of threads and interrupt handlers may use it at the same time, NMI handlers none.
/// Making and dropping it is for contexts that may sleep.
///
/// Builds with debug assertions check on every slow way (a fold, a sum, a CPU's death, the drop) that
/// the counter was not destroyed, and panic if it was: there is no safe way to use one that was, but
/// a kernel has others. Linux: `CONFIG_DEBUG_OBJECTS_PERCPU_COUNTER`.
///
/// ```
/// use percpu_core::{counter::PercpuCounter, host};
///
/// host::boot(2).unwrap();
/// let inodes = PercpuCounter::new(10).unwrap();
/// host::on_each_cpu(|_| inodes.inc());
/// assert_eq!((inodes.read(), inodes.sum()), (10, 12));
/// ```
pub struct PercpuCounter {
    node: NonNull<Node>,
    /// The node's, so that an add need not look there.
    locals: PerCpuPtr<i32>,
}

// SAFETY: the node is shared by atomics and a lock; the handle is only a pointer to it.
unsafe impl Send for PercpuCounter {}
// SAFETY: as above.
unsafe impl Sync for PercpuCounter {}

impl PercpuCounter {
    /// A counter that stands at `amount`. Linux: `percpu_counter_init`.
    ///
    /// Takes a cache line, and four bytes on each CPU. May sleep.
    ///
    /// # Errors
    ///
    /// As [`alloc_percpu`](crate::alloc::alloc_percpu), and [`NoMemory`](AllocError::NoMemory) for
    /// the counter's own memory. Nothing has changed.
    pub fn new(amount: i64) -> Result<Self, AllocError> {
        let nodes = Nodes::new(1, amount)?;
        // SAFETY: just made, and nobody else has a handle.
        Ok(unsafe { Self::from_node(nodes.first) })
    }

    /// `N` counters that each stand at `amount`, for the price of one area, one block of memory and
    /// one look at the list of counters. Linux: `percpu_counter_init_many`.
    ///
    /// Each can be dropped by itself; the memory goes with the last.
    /// [`destroy_many`](Self::destroy_many) drops them together, [`PercpuCounters`] are counters
    /// whose number the program knows only when it runs.
    ///
    /// ```
    /// use percpu_core::{counter::PercpuCounter, host};
    ///
    /// host::boot(2).unwrap();
    /// let _cpu = host::enter_any().unwrap();
    /// let [files, anonymous] = PercpuCounter::new_many(0).unwrap();
    /// files.add(3);
    /// anonymous.add(4);
    /// assert_eq!(files.sum() + anonymous.sum(), 7);
    /// PercpuCounter::destroy_many([files, anonymous]);
    /// ```
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); [`Size`](AllocError::Size) if the local parts of so many do not fit one
    /// area: 8192 do.
    ///
    /// [`PercpuCounters`]: super::PercpuCounters
    pub fn new_many<const N: usize>(amount: i64) -> Result<[Self; N], AllocError> {
        // With none there is no node to begin with.
        let nodes = (N > 0).then(|| Nodes::new(N, amount)).transpose()?;
        let mut nodes = nodes.into_iter().flat_map(Nodes::iter);
        Ok(core::array::from_fn(|_| {
            let node = nodes.next().expect("there are N of them");
            // SAFETY: just made, and each is given out once.
            unsafe { Self::from_node(node) }
        }))
    }

    /// Drops counters with one look at the list of counters. Linux: `percpu_counter_destroy_many`.
    ///
    /// They need not have been [made together](Self::new_many).
    pub fn destroy_many<const N: usize>(counters: [Self; N]) {
        let nodes = counters.map(|counter| ManuallyDrop::new(counter).node);
        // SAFETY: the handles are gone, and nobody else reaches the nodes but by the list.
        unsafe { memory::destroy(nodes.into_iter()) };
    }

    /// The handle of a node.
    ///
    /// # Safety
    ///
    /// The node is one of [`Nodes::new`], alive as long as the handle, which is the only one.
    pub(super) unsafe fn from_node(node: NonNull<Node>) -> Self {
        // SAFETY: by the caller's word.
        Self { node, locals: unsafe { node.as_ref() }.locals() }
    }

    /// Adds `amount`. Linux: `percpu_counter_add`.
    ///
    /// Two instructions on this CPU's local part, of which the second fails and is tried again if an
    /// interrupt handler added in between; takes the counter's lock once a batch.
    #[inline]
    pub fn add(&self, amount: i64) {
        self.add_or_fold(amount, batch());
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

    /// Adds `amount`, and folds from a local part of `batch` on: with a batch of 1 or less at once.
    /// Linux: `percpu_counter_add_batch`.
    ///
    /// A batch above [`batch()`] makes [`read`](Self::read), [`compare`](Self::compare) and
    /// [`limited_add`](Self::limited_add) reckon with local parts as large, from then on.
    #[inline]
    pub fn add_batch(&self, amount: i64, batch: i32) {
        // Before the batch is announced.
        arch::check_cpu();
        let batch = batch.max(1);
        self.node().allow_locals_below(batch);
        self.add_or_fold(amount, batch);
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

    /// The shared part: one load, off by the sum of the local parts, which is at most
    /// [`error_bound`](Self::error_bound). Linux: `percpu_counter_read`.
    #[inline]
    pub fn read(&self) -> i64 {
        self.node().count()
    }

    /// Returns how far off a [`read`](Self::read) is at most.
    ///
    /// Each local part is smaller than the largest [batch](batch()) there has been, or the largest
    /// that [`add_batch`](Self::add_batch) was called with; the current batch does not say, because
    /// it shrinks when CPUs go down. There is a local part on each CPU that is
    /// [counted](crate::cpu::counted).
    ///
    /// ```
    /// use percpu_core::{counter::PercpuCounter, host};
    ///
    /// host::boot(2).unwrap();
    /// let counter = PercpuCounter::new(0).unwrap();
    /// host::on_each_cpu(|_| counter.add(31));
    /// assert_eq!((counter.read(), counter.sum(), counter.error_bound()), (0, 62, 62));
    /// ```
    pub fn error_bound(&self) -> u64 {
        self.node().error_bound()
    }

    /// As [`read`](Self::read), but 0 instead of a negative number. Linux:
    /// `percpu_counter_read_positive`.
    #[inline]
    pub fn read_positive(&self) -> i64 {
        self.read().max(0)
    }

    /// The exact value: reads the part of every CPU that is [counted](crate::cpu::counted), and none
    /// of them twice unless one is folded meanwhile. Takes no lock, but after a few such tries. An
    /// add at the same time is in the sum or not. Linux: `percpu_counter_sum`.
    pub fn sum(&self) -> i64 {
        self.node().sum()
    }

    /// As [`sum`](Self::sum), but 0 instead of a negative number. Linux:
    /// `percpu_counter_sum_positive`.
    pub fn sum_positive(&self) -> i64 {
        self.sum().max(0)
    }

    /// Makes the [`sum`](Self::sum) `amount`. An add at the same time comes before that, and is gone
    /// with what was counted until then, or after it, and counts. The local parts stay as they are: a
    /// [`read`](Self::read) is off as before. Takes the lock and sums. Linux: `percpu_counter_set`,
    /// which loses adds at the same time.
    pub fn set(&self, amount: i64) {
        self.node().set(amount);
    }

    /// Folds this CPU's local part: takes the lock. Linux: `percpu_counter_sync`.
    pub fn sync(&self) {
        self.node().fold(0);
    }

    /// Compares the exact value with `rhs`, by the shared part alone if that is clear enough.
    /// Linux: `percpu_counter_compare`.
    pub fn compare(&self, rhs: i64) -> Ordering {
        let by_count = self.node().bounds().and_then(|bounds| bounds.compare(rhs));
        by_count.unwrap_or_else(|| self.sum().cmp(&rhs))
    }

    /// Adds `amount` unless that takes the counter past `limit`: above it for a positive amount, below
    /// it for a negative one. Returns whether it added; an amount of 0 always fits. Decided as in
    /// numbers that do not wrap: what does not fit 64 bits is past every limit. Linux:
    /// `percpu_counter_limited_add`.
    ///
    /// Far from the limit it costs an [`add`](Self::add) with interrupts masked, near it takes the
    /// lock and sums. Callers that add at the same time may together pass the limit by what they have
    /// in flight.
    pub fn limited_add(&self, limit: i64, amount: i64) -> bool {
        arch::check_cpu();
        if amount == 0 {
            return true;
        }
        let within = |value: i64| if amount > 0 { value <= limit } else { value >= limit };
        let node = self.node();

        // Far from the limit: whatever the local parts are, the new one included, they do not reach it.
        {
            let _irq = irq::disable();
            let far = || node.bounds().is_some_and(|it| within(it.least) && within(it.most));
            // SAFETY: the handle's local parts.
            if unsafe { add_below(self.locals, amount, batch(), far) } {
                return true;
            }
        }
        let lock = node.lock();
        // What wraps is past the limit, on whichever side that lies.
        let fits = |value: i64| value.checked_add(amount).is_some_and(within);
        let fits = match node.bounds() {
            Some(it) if fits(it.least) == fits(it.most) => fits(it.most),
            _ => fits(node.sum_locked(&lock)),
        };
        if fits {
            node.fold_locked(&lock, amount);
        }
        fits
    }

    /// Address of the counter: that of its [`CounterView`](crate::view::CounterView).
    pub fn address(&self) -> usize {
        self.node.as_ptr().expose_provenance()
    }

    /// Per-CPU pointer to the local parts, for who looks at them from outside.
    pub fn locals(&self) -> PerCpuPtr<i32> {
        self.locals
    }

    /// Adds to this CPU's local part if that stays smaller than the batch, else folds.
    #[inline(always)]
    fn add_or_fold(&self, amount: i64, batch: i32) {
        // SAFETY: the local parts live as long as the handle.
        if !unsafe { add_below(self.locals, amount, batch, || true) } {
            self.fold(amount);
        }
    }

    #[cold]
    #[inline(never)]
    fn fold(&self, amount: i64) {
        self.node().fold(amount);
    }

    #[inline]
    fn node(&self) -> &Node {
        // SAFETY: the node lives as long as its handle, and is shared by atomics and a lock.
        unsafe { self.node.as_ref() }
    }
}

impl Count for PercpuCounter {
    #[inline]
    fn add(&self, amount: i64) {
        self.add(amount);
    }

    #[inline]
    fn read(&self) -> i64 {
        self.read()
    }

    fn sum(&self) -> i64 {
        self.sum()
    }

    fn compare(&self, rhs: i64) -> Ordering {
        self.compare(rhs)
    }
}

impl Drop for PercpuCounter {
    /// Takes the counter out of the list and frees it. Linux: `percpu_counter_destroy`.
    fn drop(&mut self) {
        // SAFETY: this is the end of the only handle.
        unsafe { memory::destroy(core::iter::once(self.node)) };
    }
}

impl fmt::Debug for PercpuCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PercpuCounter").field("count", &self.read()).finish_non_exhaustive()
    }
}
