//! What all counters of this module have in common.

use core::cmp::Ordering;

/// A counter that many CPUs change at the same time.
///
/// Write code against it to choose the kind of counter later: the exact and cheap-to-read
/// [`PercpuCounter`](super::PercpuCounter), the one word of a [`LazyCounter`](super::LazyCounter),
/// the bounded error of a [`HierarchicalCounter`](super::HierarchicalCounter), or, to compare with,
/// the [counter of Linux 2.6](super::v26::Counter).
///
/// ```
/// use percpu_core::counter::{Count, LazyCounter, PercpuCounter};
/// use percpu_core::host;
///
/// fn bill(bytes: &dyn Count) -> i64 {
///     bytes.add(1500);
///     bytes.dec();
///     bytes.sum()
/// }
///
/// host::boot(2).unwrap();
/// let _cpu = host::enter_any().unwrap();
/// assert_eq!(bill(&LazyCounter::new(1)), 1500);
/// assert_eq!(bill(&PercpuCounter::new(2).unwrap()), 1501);
/// ```
pub trait Count: Send + Sync {
    /// Adds `amount`. Linux: `percpu_counter_add`.
    fn add(&self, amount: i64);

    /// The value as far as it is cheap to know: how far off it may be is the counter's affair.
    /// Linux: `percpu_counter_read`.
    fn read(&self) -> i64;

    /// The exact value. An add at the same time is in it or not. Linux: `percpu_counter_sum`.
    fn sum(&self) -> i64;

    /// Subtracts `amount`. Linux: `percpu_counter_sub`.
    #[inline]
    fn sub(&self, amount: i64) {
        self.add(amount.wrapping_neg());
    }

    /// Adds one. Linux: `percpu_counter_inc`.
    #[inline]
    fn inc(&self) {
        self.add(1);
    }

    /// Subtracts one. Linux: `percpu_counter_dec`.
    #[inline]
    fn dec(&self) {
        self.add(-1);
    }

    /// As [`read`](Self::read), but 0 instead of a negative number. Linux:
    /// `percpu_counter_read_positive`.
    #[inline]
    fn read_positive(&self) -> i64 {
        self.read().max(0)
    }

    /// As [`sum`](Self::sum), but 0 instead of a negative number. Linux:
    /// `percpu_counter_sum_positive`.
    #[inline]
    fn sum_positive(&self) -> i64 {
        self.sum().max(0)
    }

    /// Compares the exact value with `rhs`. Linux: `percpu_counter_compare`.
    #[inline]
    fn compare(&self, rhs: i64) -> Ordering {
        self.sum().cmp(&rhs)
    }
}
