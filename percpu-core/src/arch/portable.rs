//! Without assembly: the operations made from the table.
//!
//! In a kernel interrupts are masked around an operation, unless it need not be safe against them:
//! then the CPU is the only one that writes its copy. Threads of a process have no interrupts to
//! mask, and a model under loom has contexts of a CPU that stand for its interrupt handlers: there
//! an operation is an atomic one.

use core::sync::atomic::Ordering;

use super::operations::operations;
use super::{Number, Single, Word};
use crate::var::{DoubleWord, RawPtr};

use super::offset;

/// Threads of a CPU see what others of the same CPU did before. Under loom they are threads like
/// any other, and must be told.
#[cfg(feature = "host")]
const LOCAL: (Ordering, Ordering) = if cfg!(loom) {
    (Ordering::Acquire, Ordering::AcqRel)
} else {
    (Ordering::Relaxed, Ordering::Relaxed)
};

/// Changes this CPU's copy by what a row of the table says.
///
/// # Safety
///
/// As [`Word::read`].
#[cfg(feature = "host")]
unsafe fn operate<T: Single, R>(
    addr: usize,
    _irq_safe: bool,
    mut row: impl FnMut(T) -> (Option<T>, R),
) -> R {
    let copy = here(addr);
    // SAFETY: the caller vouches for `addr`; all other accesses are atomic.
    let mut old = unsafe { T::load(copy, LOCAL.0) };
    loop {
        let (new, result) = row(old);
        let Some(new) = new else { return result };
        // SAFETY: as above.
        match unsafe { T::compare_exchange(copy, old, new, LOCAL.1) } {
            Ok(_) => return result,
            Err(seen) => old = seen,
        }
    }
}

/// Changes this CPU's copy by what a row of the table says.
///
/// # Safety
///
/// As [`Word::read`].
#[cfg(not(feature = "host"))]
#[inline]
unsafe fn operate<T: Single, R>(
    addr: usize,
    irq_safe: bool,
    mut row: impl FnMut(T) -> (Option<T>, R),
) -> R {
    let _masked = irq_safe.then(crate::irq::disable);
    let copy = here(addr);
    // SAFETY: the caller vouches for `addr`; all other accesses are atomic.
    let (new, result) = row(unsafe { T::load(copy, Ordering::Relaxed) });
    if let Some(new) = new {
        // SAFETY: as above.
        unsafe { T::store(copy, new, Ordering::Relaxed) };
    }
    result
}

/// As [`operate`], for two words. There is no atomic access to both: interrupts are masked in every
/// case, or a pair could be made of halves that were never together; and other CPUs do not look.
///
/// # Safety
///
/// As [`Word::read`].
unsafe fn operate_double<R>(
    addr: usize,
    _irq_safe: bool,
    mut row: impl FnMut(DoubleWord) -> (Option<DoubleWord>, R),
) -> R {
    let _masked = crate::irq::disable();
    let low = here::<u64>(addr);
    let high = here::<u64>(addr.wrapping_add(size_of::<u64>()));
    // SAFETY: the caller vouches for `addr`, where two words lie one after the other.
    let old = unsafe {
        DoubleWord {
            low: u64::load(low, Ordering::Relaxed),
            high: u64::load(high, Ordering::Relaxed),
        }
    };
    let (new, result) = row(old);
    if let Some(new) = new {
        // SAFETY: as above.
        unsafe {
            u64::store(low, new.low, Ordering::Relaxed);
            u64::store(high, new.high, Ordering::Relaxed);
        }
    }
    result
}

/// Where this CPU's copy lies.
#[inline]
fn here<T>(addr: usize) -> *mut T {
    let offset = offset();
    #[cfg(all(debug_assertions, not(any(feature = "host", feature = "up"))))]
    super::check_offset(offset);
    core::ptr::with_exposed_provenance_mut(addr.wrapping_add(offset))
}

macro_rules! implement {
    ({ $operate:ident {$($g:ident)?} $ty:ty }
        word { $($(#[$wdoc:meta])* $word:ident($($warg:ident: $wty:ty),*) -> $wret:ty = |$wold:ident| $wbody:expr;)* }
        number { $($rest:tt)* }
    ) => {
        // SAFETY: each operation is one atomic access, or done while interrupts are masked, on the
        // copy of the CPU that runs it. A thread that is moved meanwhile, which only one that need
        // not be safe against interrupts can be, loses no more than the other CPU's change: what it
        // reads and writes is one word.
        unsafe impl $(<$g: 'static>)? Word for $ty {
            $(
                #[inline]
                unsafe fn $word<const IRQ_SAFE: bool>(addr: usize $(, $warg: $wty)*) -> $wret {
                    // SAFETY: the caller vouches for `addr`.
                    unsafe { $operate(addr, IRQ_SAFE, |$wold: Self| $wbody) }
                }
            )*
        }
    };
}

macro_rules! implement_number {
    ({ $ty:ty }
        word { $($words:tt)* }
        number { $($(#[$doc:meta])* $name:ident($($arg:ident: $aty:ty),*) -> $ret:ty = |$old:ident| $body:expr;)* }
    ) => {
        // SAFETY: as for `Word`.
        unsafe impl Number for $ty {
            const ONE: Self = 1;
            $(
                #[inline]
                unsafe fn $name<const IRQ_SAFE: bool>(addr: usize $(, $arg: $aty)*) -> $ret {
                    // SAFETY: the caller vouches for `addr`.
                    unsafe { operate(addr, IRQ_SAFE, |$old: Self| $body) }
                }
            )*
        }
    };
}

macro_rules! numbers {
    ($($ty:ty)*) => {$(
        operations!(Self, implement! { operate {} $ty });
        operations!(Self, implement_number! { $ty });
    )*};
}

numbers! { u8 i8 u16 i16 u32 i32 u64 i64 usize isize }
operations!(Self, implement! { operate {} bool });
operations!(Self, implement! { operate {U} RawPtr<U> });
operations!(Self, implement! { operate_double {} DoubleWord });

/// Adds to this CPU's copy. Returns whether the sum is negative, or this is no CPU: then nothing was
/// added.
///
/// Another CPU that swaps the copy ([`REMOTE_SAFE`](super::REMOTE_SAFE)) sees what this one did before.
///
/// # Safety
///
/// As [`Word::read`].
#[inline]
pub(crate) unsafe fn add_is_negative(addr: usize, value: i64) -> bool {
    #[cfg(feature = "host")]
    {
        if !super::is_cpu() {
            return true;
        }
        // SAFETY: the caller vouches for `addr`; all other accesses are atomic.
        let copy = unsafe { crate::atomic::AtomicI64::from_ptr(here(addr)) };
        copy.fetch_add(value, Ordering::AcqRel).wrapping_add(value) < 0
    }
    #[cfg(not(feature = "host"))]
    // SAFETY: the caller vouches for `addr`.
    unsafe {
        i64::add_return::<true>(addr, value) < 0
    }
}

/// Adds one to this CPU's copy of a static.
macro_rules! inc_static {
    ($name:ident) => {
        $name.inc()
    };
}

/// Subtracts one from this CPU's copy of a static; if that makes 0, calls `$zero`.
macro_rules! dec_static_and_branch_if_zero {
    ($name:ident, $zero:expr) => {
        if $name.dec_return() == 0 {
            $zero()
        }
    };
}

pub(crate) use {dec_static_and_branch_if_zero, inc_static};
