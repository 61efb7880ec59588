//! Values that have the operations: what every way of reaching a copy implements.

use core::sync::atomic::Ordering;

use super::operations::operations;
use crate::atomic;
use crate::var::RawPtr;

/// A method of a trait for each row of the table.
macro_rules! declare {
    ({}
        word { $($(#[$wdoc:meta])* $word:ident($($warg:ident: $wty:ty),*) -> $wret:ty = |$wold:ident| $wbody:expr;)* }
        number { $($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = |$old:ident| $body:expr;)* }
    ) => {
        /// Values of one or two words that a CPU reads, writes and exchanges in its own copy.
        ///
        /// `addr` is a template address: the operation acts on the copy at `addr` plus the offset of
        /// the CPU that runs it.
        ///
        /// # Safety
        ///
        /// Each operation is one step for migration, and for interrupts of the same CPU if
        /// `IRQ_SAFE`; one that may write is a compiler barrier for memory. Every value is
        /// initialised memory without padding.
        pub unsafe trait Word: Copy + PartialEq + 'static {
            $(
                $(#[$wdoc])*
                ///
                /// # Safety
                ///
                /// `addr` is the template address of a live per-CPU variable of this type, aligned,
                /// whose copies are changed by these operations and by atomic accesses only.
                unsafe fn $word<const IRQ_SAFE: bool>(addr: usize $(, $warg: $wty)*) -> $wret;
            )*
        }

        /// Words with wrapping arithmetic.
        ///
        /// # Safety
        ///
        /// As [`Word`].
        pub unsafe trait Number: Single {
            /// 1.
            const ONE: Self;
            $(
                $(#[$doc])*
                ///
                /// # Safety
                ///
                /// As [`Word::read`].
                unsafe fn $name<const IRQ_SAFE: bool>(addr: usize $(, $arg: $ty)*) -> $ret;
            )*
        }
    };
}

operations!(Self, declare! {});

/// Words that any CPU reads and writes in one step: of 1, 2, 4 or 8 bytes.
///
/// # Safety
///
/// As [`Word`]; and these are atomic accesses to the copy at an absolute address.
pub unsafe trait Single: Word {
    /// Loads.
    ///
    /// # Safety
    ///
    /// `ptr` is valid and aligned, and the copy is changed by the operations of [`Word`] and by
    /// atomic accesses only.
    unsafe fn load(ptr: *mut Self, order: Ordering) -> Self;

    /// Stores.
    ///
    /// # Safety
    ///
    /// As [`load`](Self::load).
    unsafe fn store(ptr: *mut Self, value: Self, order: Ordering);

    /// Stores if the copy is `old`; if not, what it is.
    ///
    /// # Safety
    ///
    /// As [`load`](Self::load).
    unsafe fn compare_exchange(
        ptr: *mut Self,
        old: Self,
        new: Self,
        order: Ordering,
    ) -> Result<Self, Self>;
}

macro_rules! single {
    ($({$($g:ident)?} $ty:ty, $atomic:ty, |$out:ident| $wrap:expr, |$in:ident| $unwrap:expr;)*) => {$(
        // SAFETY: these are the atomic accesses of the type, or of the one that it wraps.
        unsafe impl $(<$g: 'static>)? Single for $ty {
            #[inline(always)]
            unsafe fn load(ptr: *mut Self, order: Ordering) -> Self {
                // SAFETY: the caller vouches for `ptr`; all other accesses are atomic.
                let $out = unsafe { <$atomic>::from_ptr(ptr.cast()) }.load(order);
                $wrap
            }

            #[inline(always)]
            unsafe fn store(ptr: *mut Self, $in: Self, order: Ordering) {
                // SAFETY: the caller vouches for `ptr`; all other accesses are atomic.
                unsafe { <$atomic>::from_ptr(ptr.cast()) }.store($unwrap, order);
            }

            #[inline(always)]
            unsafe fn compare_exchange(
                ptr: *mut Self,
                old: Self,
                new: Self,
                order: Ordering,
            ) -> Result<Self, Self> {
                let old = { let $in = old; $unwrap };
                let new = { let $in = new; $unwrap };
                // SAFETY: the caller vouches for `ptr`; all other accesses are atomic.
                let atomic = unsafe { <$atomic>::from_ptr(ptr.cast()) };
                match atomic.compare_exchange(old, new, order, Ordering::Relaxed) {
                    Ok($out) => Ok($wrap),
                    Err($out) => Err($wrap),
                }
            }
        }
    )*};
}

single! {
    {} bool, atomic::AtomicBool, |value| value, |value| value;
    {} u8, atomic::AtomicU8, |value| value, |value| value;
    {} i8, atomic::AtomicI8, |value| value, |value| value;
    {} u16, atomic::AtomicU16, |value| value, |value| value;
    {} i16, atomic::AtomicI16, |value| value, |value| value;
    {} u32, atomic::AtomicU32, |value| value, |value| value;
    {} i32, atomic::AtomicI32, |value| value, |value| value;
    {} u64, atomic::AtomicU64, |value| value, |value| value;
    {} i64, atomic::AtomicI64, |value| value, |value| value;
    {} usize, atomic::AtomicUsize, |value| value, |value| value;
    {} isize, atomic::AtomicIsize, |value| value, |value| value;
    {U} RawPtr<U>, atomic::AtomicPtr<U>, |value| RawPtr::new(value), |value| value.get();
}
