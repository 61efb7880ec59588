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
//! The word has 63 bits for the value. An add that these would not hold makes the counter per-CPU
//! first, as contention does.
//!
//! Parts are never moved or zeroed: a CPU that goes down leaves its part where it is, in memory that
//! stays, and it goes on being summed. Nothing is to be done on hotplug, and no lock is needed to sum.

use core::fmt;

use super::count::Count;
use crate::alloc::{AllocError, AllocFlags, free_percpu, global};
use crate::arch;
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
/// add may allocate. It may be made in a `static`, before the per-CPU areas are set up, and a kernel's
/// boot CPU may add to it then.
///
/// The one word holds values from -2⁶² to 2⁶² - 1. An add that leaves this range makes the counter
/// per-CPU, whereupon it has 64 bits as the other counters have; if there is no memory for that the
/// add panics, and the counter stays what it was.
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

    /// The word with `amount` more in it, from a word that is a value. `None` if 63 bits do not hold
    /// that.
    #[inline]
    const fn plus(word: u64, amount: i64) -> Option<u64> {
        let Some(value) = (word as i64 >> 1).checked_add(amount) else { return None };
        let Some(word) = value.checked_mul(2) else { return None };
        Some(word as u64)
    }

    fn per_cpu(parts: PerCpuPtr<i64>) -> u64 {
        // Aligned to 8.
        parts.raw() as u64 | PER_CPU
    }
}

impl LazyCounter {
    /// A counter that stands at `amount`. Allocates nothing.
    ///
    /// # Panics
    ///
    /// If `amount` is less than -2⁶² or not less than 2⁶²; in a `static` the compiler says so.
    pub const fn new(amount: i64) -> Self {
        let Some(word) = State::plus(0, amount) else {
            panic!("a lazy counter begins as one word, which holds values from -2^62 to 2^62 - 1")
        };
        Self { word: AtomicU64::new(word) }
    }

    /// Adds `amount`. One atomic compare-exchange; once the counter is per-CPU, one unlocked
    /// instruction.
    ///
    /// The add that makes it per-CPU allocates atomically: from populated memory, without sleeping. If
    /// there is none the counter stays as it is, and the next add that finds contention tries again.
    ///
    /// # Panics
    ///
    /// If one word does not hold the sum and there is no memory. Nothing has changed.
    #[inline]
    pub fn add(&self, amount: i64) {
        let word = self.word.load(Acquire);
        match State::of(word) {
            // SAFETY: the word names the area until the counter is dropped; all accesses to it are of
            // this kind, or atomic.
            State::PerCpu(parts) => unsafe { parts.add(amount) },
            State::Single(_) => self.add_single(word, amount),
        }
    }

    /// Adds to the word, in which the value `word` was seen.
    fn add_single(&self, mut word: u64, amount: i64) {
        // One word needs no CPU, but what it becomes does.
        arch::check_cpu();
        let mut failures = 0;
        let mut may_upgrade = true;
        loop {
            let Some(new) = State::plus(word, amount) else {
                return self.upgrade_and_add(word, amount).unwrap_or_else(|error| no_room(error));
            };
            let Err(seen) = self.word.compare_exchange(word, new, Relaxed, Acquire) else { return };
            failures += 1;
            match State::of(seen) {
                // SAFETY: as in `add`.
                State::PerCpu(parts) => return unsafe { parts.add(amount) },
                State::Single(_) => word = seen,
            }
            if failures >= CONTENDED && may_upgrade {
                if self.upgrade_and_add(word, amount).is_ok() {
                    return;
                }
                may_upgrade = false;
            }
        }
    }

    /// Makes the counter per-CPU and adds `amount`. An error says that neither was done.
    #[cold]
    #[inline(never)]
    fn upgrade_and_add(&self, word: u64, amount: i64) -> Result<(), AllocError> {
        if let Some(winner) = self.upgrade(word, amount)? {
            // SAFETY: as in `add`.
            unsafe { winner.add(amount) };
        }
        Ok(())
    }

    /// Makes the counter per-CPU now, for who knows that CPUs will contend for it. Does nothing if it is
    /// already. Allocates as [`add`](Self::add) does.
    ///
    /// # Errors
    ///
    /// There is no populated memory, or the per-CPU areas are not set up yet. The counter stays one
    /// word.
    pub fn make_per_cpu(&self) -> Result<(), AllocError> {
        let word = self.word.load(Acquire);
        match State::of(word) {
            State::Single(_) => self.upgrade(word, 0).map(drop),
            State::PerCpu(_) => Ok(()),
        }
    }

    /// Adds `amount` to the value that was seen as `word`, and makes the counter per-CPU. An error
    /// says that neither was done. If another call made it per-CPU first nothing was added, and the
    /// parts are returned.
    ///
    /// Keeps no guard: it does not matter whose part has the value, and nobody else knows the area.
    fn upgrade(&self, mut word: u64, amount: i64) -> Result<Option<PerCpuPtr<i64>>, AllocError> {
        let area = global().alloc(size_of::<i64>(), align_of::<i64>(), AllocFlags::ATOMIC)?;
        let parts = area.cast::<i64>();
        let holder = cpu::booted_once().iter().next().expect("the boot CPU has a unit");
        loop {
            match State::of(word) {
                // SAFETY: the area is there, and this call's own until the exchange.
                State::Single(value) => unsafe {
                    parts.write_on(holder, value.wrapping_add(amount));
                },
                State::PerCpu(winner) => {
                    // SAFETY: allocated above, and nobody else has seen it.
                    unsafe { free(parts) };
                    return Ok(Some(winner));
                }
            }
            // Who finds the pointer finds what is behind it.
            let to = State::per_cpu(parts);
            match self.word.compare_exchange(word, to, AcqRel, Acquire) {
                Ok(_) => return Ok(None),
                Err(seen) => word = seen,
            }
        }
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

#[cold]
#[inline(never)]
fn no_room(error: AllocError) -> ! {
    panic!(
        "a lazy counter is to leave the values that one word holds, from -2^62 to 2^62 - 1: {error}"
    );
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
