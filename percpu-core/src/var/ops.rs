//! The `this_cpu` operations as safe methods of whatever owns a per-CPU variable.

use crate::arch;

/// Values with single-instruction operations: the integers up to 64 bits, and `bool`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no single-instruction operations",
    note = "lend the copy out under a guard instead: `with` or `with_irq`"
)]
pub trait Scalar: arch::Word {}

/// Scalars with wrapping arithmetic: the integers up to 64 bits.
pub trait Integer: Scalar + arch::Number {}

impl<T: arch::Word> Scalar for T {}
impl<T: arch::Number> Integer for T {}

/// Gives a type the `this_cpu` operations. The type owns a variable that exists as long as `&self`,
/// names it by `fn ptr(&self) -> PerCpuPtr<T>`, and never lends a copy of a scalar out.
macro_rules! this_cpu_ops {
    (impl<T $(, $p:ident: $bound:path)?> $ty:ty) => {
        /// Operations on the copy of the CPU that runs them, each safe against interrupts and
        /// migration without a guard, and each one instruction on x86-64 ([`xchg`](Self::xchg): two).
        impl<T: $crate::var::Scalar $(, $p: $bound)?> $ty {
            $crate::var::ops::forward! {
                /// Reads. Linux: `this_cpu_read`.
                read() -> T;
                /// Writes. Linux: `this_cpu_write`.
                write(value: T) -> ();
                /// Writes and returns the value before. Linux: `this_cpu_xchg`.
                xchg(value: T) -> T;
                /// Writes if the copy equals `old`; returns the value before, in `Ok` if it was
                /// written. Linux: `this_cpu_cmpxchg`.
                cmpxchg(old: T, new: T) -> Result<T, T>;
                /// Writes if the copy equals `old`, else puts its value into `old`. Linux:
                /// `this_cpu_try_cmpxchg`.
                try_cmpxchg(old: &mut T, new: T) -> bool;
            }
        }

        /// Arithmetic on the copy of the CPU that runs it; wraps.
        impl<T: $crate::var::Integer $(, $p: $bound)?> $ty {
            $crate::var::ops::forward! {
                /// Adds. Linux: `this_cpu_add`.
                add(value: T) -> ();
                /// Subtracts. Linux: `this_cpu_sub`.
                sub(value: T) -> ();
                /// Adds one. Linux: `this_cpu_inc`.
                inc() -> ();
                /// Subtracts one. Linux: `this_cpu_dec`.
                dec() -> ();
                /// Keeps the bits that are set in `value`. Linux: `this_cpu_and`.
                and(value: T) -> ();
                /// Sets the bits that are set in `value`. Linux: `this_cpu_or`.
                or(value: T) -> ();
                /// Adds and returns the sum. Linux: `this_cpu_add_return`.
                add_return(value: T) -> T;
            }
        }
    };
}

macro_rules! forward {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(&self $(, $arg: $ty)*) -> $ret {
            // SAFETY: the variable exists while `self` does, and nobody lends out a scalar.
            unsafe { self.ptr().$name($($arg),*) }
        }
    )*};
}

pub(crate) use {forward, this_cpu_ops};
