//! Numbers that are read together as they were at one moment.
//!
//! # Implementation
//!
//! A sequence lock with one writer, the CPU itself, after Boehm ("Can seqlocks get along with
//! programming language memory models?", 2012). The sequence number is odd while the numbers are
//! being written. All are atomics, so that to read them at that time is no error, only of no use.
//!
//! - Writer: odd; release fence; numbers; even, by a release store. A reader that sees one of the new
//!   numbers sees, behind its acquire fence, at least the odd sequence: the fences pair.
//! - Reader: sequence, by an acquire load; numbers; acquire fence; sequence again. The first load
//!   pairs with the release store: who sees the even sequence sees the numbers that belong to it.

use crate::alloc::Zeroable;
use crate::arch;
use crate::atomic::{AtomicU64, Ordering, fence};
use crate::cpu::CpuId;
use crate::irq;

/// `N` 64-bit numbers to which this CPU adds, all at once for whoever reads them. Linux:
/// `u64_stats_sync` and what it guards.
///
/// Put it into a [`PerCpu`](crate::var::PerCpu) or a [`PerCpuBox`](crate::alloc::PerCpuBox), which
/// then have [`update`](crate::var::PerCpu::update), [`snapshot`](crate::var::PerCpu::snapshot) and
/// [`sum`](crate::var::PerCpu::sum). For a single number a `PerCpu<u64>` is the better choice.
///
/// The copies are written by their CPU alone, so there is no way to them past those methods:
///
/// ```compile_fail,E0277
/// # use percpu_core::local::SeqStats;
/// # percpu_core::percpu! { static STATS: PerCpu<SeqStats<2>> = SeqStats::new(); }
/// # fn f(cpu: percpu_core::cpu::CpuId) {
/// STATS.remote(cpu);
/// # }
/// ```
// Laid out for those who read it from outside.
#[repr(C)]
pub struct SeqStats<const N: usize> {
    /// Odd while the numbers are being written.
    sequence: AtomicU64,
    numbers: [AtomicU64; N],
}

// SAFETY: atomics around integers.
unsafe impl<const N: usize> Zeroable for SeqStats<N> {}

impl<const N: usize> SeqStats<N> {
    /// Zeroes.
    pub const fn new() -> Self {
        Self { sequence: AtomicU64::new(0), numbers: [const { AtomicU64::new(0) }; N] }
    }

    /// Adds to all numbers; by the CPU whose copy it is, not in the middle of another call.
    #[inline]
    pub(super) fn add(&self, amounts: [u64; N]) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        debug_assert!(sequence.is_multiple_of(2), "an interrupt handler updates a pinned set");
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        for (number, amount) in self.numbers.iter().zip(amounts) {
            let sum = number.load(Ordering::Relaxed).wrapping_add(amount);
            number.store(sum, Ordering::Relaxed);
        }
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// Refuses to wait for an update that does not end before the caller returns. For a copy that could
    /// not be read.
    ///
    /// # Panics
    ///
    /// If this runs on `cpu`, whose copy it is, in the middle of an update.
    #[cold]
    pub(super) fn refuse_interrupted(&self, cpu: CpuId) {
        if !arch::is_cpu() {
            return;
        }
        // While this stays on the CPU, an update there that has begun and not ended is one that this has
        // interrupted: it keeps other threads off the CPU, and so does the guard.
        let pin = irq::disable();
        let is_whole = self.sequence.load(Ordering::Relaxed).is_multiple_of(2);
        assert!(
            pin.cpu() != cpu || is_whole,
            "the numbers of {cpu:?} are read by what has interrupted their update on that CPU: a handler \
             reads them by try_snapshot"
        );
    }

    /// All numbers as of one moment, unless they are being written.
    #[inline]
    pub(super) fn try_read(&self) -> Option<[u64; N]> {
        let before = self.sequence.load(Ordering::Acquire);
        if !before.is_multiple_of(2) {
            return None;
        }
        let mut numbers = [0; N];
        for (number, copy) in self.numbers.iter().zip(&mut numbers) {
            *copy = number.load(Ordering::Relaxed);
        }
        fence(Ordering::Acquire);
        (self.sequence.load(Ordering::Relaxed) == before).then_some(numbers)
    }
}

impl<const N: usize> Default for SeqStats<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::string::String;
    use std::thread;

    use super::*;
    use crate::alloc::PerCpuBox;
    use crate::host;

    #[test]
    fn what_has_interrupted_an_update_does_not_wait_for_its_end() {
        host::boot(2).unwrap();
        let [zero, one] = [0, 1].map(|n| CpuId::new(n).unwrap());
        let mut stats = PerCpuBox::<SeqStats<1>>::try_new_zeroed().unwrap();
        // In the middle of an update.
        *stats.get_mut(zero).sequence.get_mut() = 1;
        let cpu = host::enter_when_free(zero).unwrap();
        let text = |read: fn(&PerCpuBox<SeqStats<1>>, CpuId) -> [u64; 1]| {
            let panic = catch_unwind(AssertUnwindSafe(|| read(&stats, zero))).unwrap_err();
            *panic.downcast::<String>().unwrap()
        };
        for panic in [text(|stats, cpu| stats.snapshot(cpu)), text(|stats, _| stats.sum())] {
            assert!(panic.contains("a handler reads them by try_snapshot"), "{panic}");
        }
        assert_eq!((stats.try_snapshot(zero), stats.snapshot(one)), (None, [0]));
        drop(cpu);
        // Others wait: a thread that is another CPU, and one that is none.
        let stats = &stats;
        thread::scope(|scope| {
            let wait = |cpu: Option<CpuId>| {
                scope.spawn(move || {
                    let _cpu = cpu.map(|cpu| host::enter_when_free(cpu).unwrap());
                    stats.snapshot(zero)
                })
            };
            let waiting = [wait(None), wait(Some(one))];
            thread::sleep(std::time::Duration::from_millis(20));
            assert!(waiting.iter().all(|thread| !thread.is_finished()));
            // SAFETY: the copy is there, and atomics.
            unsafe { &*stats.on(zero) }.sequence.store(2, Ordering::Release);
            waiting.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), [0]));
        });
    }
}
