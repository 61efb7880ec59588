//! Typed CPU numbers.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

/// The largest number of CPUs the crate can be told of. Linux: `NR_CPUS`.
pub const NR_CPUS: usize = 1024;

/// One more than the highest possible CPU; 0 until [`set_possible`](super::mask) was called.
static NR_CPU_IDS: AtomicU32 = AtomicU32::new(0);

/// One more than the number of the highest possible CPU, 0 before set-up. Linux: `nr_cpu_ids`.
#[inline]
pub fn nr_cpu_ids() -> usize {
    NR_CPU_IDS.load(Ordering::Relaxed) as usize
}

/// Publishes the number of CPU ids; called once, when the possible mask is frozen.
pub(crate) fn set_nr_cpu_ids(n: usize) {
    debug_assert!(n <= NR_CPUS);
    NR_CPU_IDS.store(n as u32, Ordering::Release);
}

/// The number of a possible CPU. It cannot be made for any other number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(u32);

impl CpuId {
    /// The CPU numbered `n`, if it is possible.
    #[inline]
    pub fn new(n: usize) -> Option<Self> {
        (n < NR_CPUS && super::possible().contains_index(n)).then_some(Self(n as u32))
    }

    /// The CPU numbered `n`.
    ///
    /// # Safety
    ///
    /// CPU `n` is possible.
    #[inline]
    pub const unsafe fn new_unchecked(n: usize) -> Self {
        Self(n as u32)
    }

    /// The number, usable as an index into a table of `nr_cpu_ids` entries.
    #[inline]
    pub const fn index(self) -> usize {
        let index = self.0 as usize;
        // Tables of all CPUs need no bounds check.
        // SAFETY: both ways to make a `CpuId` demand that the CPU is possible.
        unsafe { core::hint::assert_unchecked(index < NR_CPUS) };
        index
    }
}

impl fmt::Debug for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPU {}", self.0)
    }
}

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
