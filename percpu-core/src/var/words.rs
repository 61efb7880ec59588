//! Words that are no integers: a pointer, and two words that change together.

use core::fmt;
use core::ptr::{null_mut, with_exposed_provenance_mut};

/// A raw pointer in a per-CPU variable, with the `this_cpu` operations. Any CPU may hold it, as an
/// `AtomicPtr`: what it points to is the business of whoever follows it.
///
/// ```
/// use percpu_core::{host, percpu, var::RawPtr};
///
/// percpu! {
///     /// The thread that runs on the CPU. Linux: `current_task`.
///     static CURRENT: PerCpu<RawPtr<u64>> = RawPtr::null();
/// }
///
/// host::boot(2).unwrap();
/// let _cpu = host::enter_any().unwrap();
/// let mut thread = 7;
/// assert!(CURRENT.xchg(RawPtr::new(&raw mut thread)).is_null());
/// assert_eq!(CURRENT.read().get(), &raw mut thread);
/// ```
#[repr(transparent)]
pub struct RawPtr<T>(*mut T);

// SAFETY: a number with provenance, of which nothing is read without `unsafe`.
unsafe impl<T> Send for RawPtr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for RawPtr<T> {}

impl<T> RawPtr<T> {
    /// Wraps a pointer.
    #[inline]
    pub const fn new(ptr: *mut T) -> Self {
        Self(ptr)
    }

    /// The null pointer.
    #[inline]
    pub const fn null() -> Self {
        Self(null_mut())
    }

    /// The pointer.
    #[inline]
    pub const fn get(self) -> *mut T {
        self.0
    }

    /// Whether it is null.
    #[inline]
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The pointer whose address an instruction has brought from where [`expose`](Self::expose) had
    /// it put.
    #[cfg_attr(
        any(miri, loom, shuttle, percpu_portable, not(target_arch = "x86_64")),
        expect(dead_code)
    )]
    #[inline]
    pub(crate) fn from_exposed(address: usize) -> Self {
        Self(with_exposed_provenance_mut(address))
    }

    /// The address, for an instruction.
    #[cfg_attr(
        any(miri, loom, shuttle, percpu_portable, not(target_arch = "x86_64")),
        expect(dead_code)
    )]
    #[inline]
    pub(crate) fn expose(self) -> usize {
        self.0.expose_provenance()
    }
}

impl<T> Clone for RawPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for RawPtr<T> {}

impl<T> PartialEq for RawPtr<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.addr() == other.0.addr()
    }
}

impl<T> Eq for RawPtr<T> {}

impl<T> fmt::Debug for RawPtr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Pointer::fmt(&self.0, f)
    }
}

/// Two words that one operation exchanges: a pointer and the count of its changes, say, as in a
/// free list. Linux: `this_cpu_cmpxchg128`, `this_cpu_cmpxchg_double`.
///
/// ```
/// use percpu_core::{host, percpu, var::DoubleWord};
///
/// percpu! {
///     static HEAD: PerCpu<DoubleWord> = DoubleWord { low: 0, high: 0 };
/// }
///
/// host::boot(2).unwrap();
/// let _cpu = host::enter_any().unwrap();
/// let mut head = HEAD.read();
/// loop {
///     let new = DoubleWord { low: 0x1000, high: head.high + 1 };
///     if HEAD.try_cmpxchg(&mut head, new) {
///         break;
///     }
/// }
/// assert_eq!(HEAD.read(), DoubleWord { low: 0x1000, high: 1 });
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct DoubleWord {
    /// The word at the lower address.
    pub low: u64,
    /// The word at the higher address.
    pub high: u64,
}

// SAFETY: integers.
unsafe impl crate::alloc::Zeroable for DoubleWord {}
// SAFETY: zero bytes are the null pointer.
unsafe impl<T> crate::alloc::Zeroable for RawPtr<T> {}
