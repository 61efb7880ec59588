//! A counter of one word, until CPUs get into each other's way.
//!
//! Most counters of a large system are hardly ever changed by two CPUs at once, and per-CPU memory
//! for each of them is wasted. A lazy counter is a plain atomic until an add has lost against others
//! twice in a row, which on one CPU does not happen: it would take two interrupts in the few
//! instructions between a load and a compare-exchange, one each time. Then it gets a part on each CPU.
//!
//! # Implementation
//!
//! The word is `value << 1`, or the number of a per-CPU pointer with the lowest bit set. It goes
//! from the first to the second once: the new area is nobody else's until a compare-exchange puts it
//! in the place of exactly that value that was written into it. So each reader finds the whole
//! value, in the word or in the area, and each add goes to whichever holds it: one that still has the
//! value in hand fails its compare-exchange.
//!
//! Parts are never moved or zeroed: a CPU that goes down leaves its part where it is, in memory that
//! stays, and it goes on being summed. Nothing is to be done on hotplug, and no lock is needed to sum.

use core::fmt;

use super::count::Count;
use crate::alloc::{AllocError, AllocFlags, free_percpu, global};
use crate::atomic::AtomicU64;
use crate::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use crate::cpu;
use crate::var::PerCpuPtr;

/// Set in the word of a counter that has a part on each CPU.
const PER_CPU: u64 = 1;

/// How often the compare-exchange of one add fails before the counter becomes per-CPU.
const CONTENDED: u32 = 2;

/// A counter that begins as one word and becomes per-CPU when CPUs contend for it. Linux has no such
/// counter; proposals for it go by "lazy percpu counters".
///
/// Any number of threads and interrupt handlers may use it at the same time, NMI handlers none: an
/// add may allocate. It may be made in a `static`, before the per-CPU areas are set up.
///
/// While it is one word it has 63 bits and wraps there; afterwards 64. Who stays within ±2⁶² sees
/// neither.
///
/// ```
/// use percpu_core::{counter::{Count, LazyCounter}, host};
///
/// static OPENED: LazyCounter = LazyCounter::new(0);
///
/// host::boot(2).unwrap();
/// host::on_each_cpu(|_| OPENED.inc());
/// assert_eq!(OPENED.sum(), 2);
/// ```
pub struct LazyCounter {
    word: AtomicU64,
}

/// What a word says.
enum State {
    Single(i64),
    PerCpu(PerCpuPtr<i64>),
}

impl State {
    #[inline]
    fn of(word: u64) -> Self {
        if word & PER_CPU == 0 {
            Self::Single((word as i64) >> 1)
        } else {
            Self::PerCpu(PerCpuPtr::from_raw((word & !PER_CPU) as usize))
        }
    }

    /// The word, with the lowest bit of the value lost beyond its 63.
    #[inline]
    const fn single(value: i64) -> u64 {
        (value as u64) << 1
    }

    fn per_cpu(parts: PerCpuPtr<i64>) -> u64 {
        // Aligned to 8.
        parts.raw() as u64 | PER_CPU
    }
}

impl LazyCounter {
    /// A counter that stands at `amount`, of which 63 bits count. Allocates nothing.
    pub const fn new(amount: i64) -> Self {
        Self { word: AtomicU64::new(State::single(amount)) }
    }

    /// Adds `amount`. One atomic compare-exchange; once the counter is per-CPU, one unlocked
    /// instruction.
    ///
    /// The add that makes it per-CPU allocates atomically: from populated memory, without sleeping. If
    /// there is none the counter stays as it is, and the next add that finds contention tries again.
    #[inline]
    pub fn add(&self, amount: i64) {
        match State::of(self.word.load(Acquire)) {
            // SAFETY: the word names the area until the counter is dropped; all accesses to it are of
            // this kind, or atomic.
            State::PerCpu(parts) => unsafe { parts.add(amount) },
            State::Single(value) => self.add_single(value, amount),
        }
    }

    /// Adds to the word, in which `value` was seen.
    fn add_single(&self, mut value: i64, amount: i64) {
        let mut failures = 0;
        let mut may_upgrade = true;
        loop {
            let new = State::single(value.wrapping_add(amount));
            let exchange = self.word.compare_exchange(State::single(value), new, Relaxed, Acquire);
            let Err(seen) = exchange else { return };
            failures += 1;
            match State::of(seen) {
                // SAFETY: as in `add`.
                State::PerCpu(parts) => return unsafe { parts.add(amount) },
                State::Single(seen) => value = seen,
            }
            if failures >= CONTENDED && may_upgrade {
                if self.upgrade(value, amount).is_ok() {
                    return;
                }
                may_upgrade = false;
            }
        }
    }

    /// Makes the counter per-CPU now, for who knows that CPUs will contend for it. Does nothing if it is
    /// already. Allocates as [`add`](Self::add) does.
    ///
    /// # Errors
    ///
    /// There is no populated memory, or the per-CPU areas are not set up yet. The counter stays one
    /// word.
    pub fn make_per_cpu(&self) -> Result<(), AllocError> {
        match State::of(self.word.load(Acquire)) {
            State::Single(value) => self.upgrade(value, 0),
            State::PerCpu(_) => Ok(()),
        }
    }

    /// Adds `amount` to the `value` that was seen in the word, and makes the counter per-CPU. An error
    /// says that neither was done.
    ///
    /// Keeps no guard: it does not matter whose part has the value, and nobody else knows the area.
    #[cold]
    #[inline(never)]
    fn upgrade(&self, mut value: i64, amount: i64) -> Result<(), AllocError> {
        let area = global().alloc(size_of::<i64>(), align_of::<i64>(), AllocFlags::ATOMIC)?;
        let parts = area.cast::<i64>();
        let holder = cpu::booted_once().iter().next().expect("the boot CPU has a unit");
        let winner = loop {
            // SAFETY: the area is there, and this call's own until the exchange.
            unsafe { parts.write_on(holder, value.wrapping_add(amount)) };
            let (from, to) = (State::single(value), State::per_cpu(parts));
            // Who finds the pointer finds what is behind it.
            let Err(seen) = self.word.compare_exchange(from, to, AcqRel, Acquire) else {
                return Ok(());
            };
            match State::of(seen) {
                State::Single(seen) => value = seen,
                State::PerCpu(parts) => break parts,
            }
        };
        // Another add was first.
        // SAFETY: allocated above, and nobody else has seen it.
        unsafe { free(parts) };
        // SAFETY: as in `add`.
        unsafe { winner.add(amount) };
        Ok(())
    }

    /// The exact value: one load, or one for each CPU that has been up. An add at the same time is in
    /// it or not.
    pub fn sum(&self) -> i64 {
        match State::of(self.word.load(Acquire)) {
            State::Single(value) => value,
            State::PerCpu(parts) => cpu::booted_once().iter().fold(0, |sum, cpu| {
                // SAFETY: as in `add`.
                sum.wrapping_add(unsafe { parts.read_on(cpu) })
            }),
        }
    }

    /// Address of the counter: that of its [`LazyView`](crate::view::LazyView).
    pub fn address(&self) -> usize {
        const { assert!(PER_CPU == crate::view::LAZY_PER_CPU) };
        (&raw const self.word).expose_provenance()
    }

    /// The parts, if the counter has become per-CPU.
    pub fn parts(&self) -> Option<PerCpuPtr<i64>> {
        match State::of(self.word.load(Acquire)) {
            State::Single(_) => None,
            State::PerCpu(parts) => Some(parts),
        }
    }
}

impl Count for LazyCounter {
    #[inline]
    fn add(&self, amount: i64) {
        self.add(amount);
    }

    /// The exact value: there is no cheaper one.
    fn read(&self) -> i64 {
        self.sum()
    }

    fn sum(&self) -> i64 {
        self.sum()
    }
}

impl Default for LazyCounter {
    /// A counter that stands at 0.
    fn default() -> Self {
        Self::new(0)
    }
}

impl Drop for LazyCounter {
    fn drop(&mut self) {
        if let Some(parts) = self.parts() {
            // SAFETY: the word named it, and nobody asks the word any more.
            unsafe { free(parts) };
        }
    }
}

/// # Safety
///
/// The area came from `upgrade`, and nobody uses it any more.
unsafe fn free(parts: PerCpuPtr<i64>) {
    // SAFETY: passed on to the caller.
    let freed = unsafe { free_percpu(parts.cast()) };
    debug_assert!(freed.is_ok(), "the area is the counter's own");
}

impl fmt::Debug for LazyCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyCounter")
            .field("sum", &self.sum())
            .field("per_cpu", &self.parts().is_some())
            .finish()
    }
}
