//! The `this_cpu` operations as methods: of per-CPU pointers, and safe ones of whatever owns a
//! per-CPU variable.

use core::marker::PhantomData;

use super::PerCpuPtr;
use crate::arch;
use crate::arch::operations;
use crate::irq::IrqGuard;
use crate::preempt::PreemptGuard;

/// Values with `this_cpu` operations: integers up to 64 bits, `bool`, [`RawPtr`](super::RawPtr),
/// and [`DoubleWord`](super::DoubleWord).
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no single-instruction operations",
    note = "lend the copy out under a guard instead: `with` or `with_irq`"
)]
pub trait Word: arch::Word {}

/// Words that other CPUs can read: all but [`DoubleWord`](super::DoubleWord), of which they could
/// see half of an old and half of a new value.
pub trait Scalar: Word + arch::Single {}

/// Scalars with wrapping arithmetic: the integers up to 64 bits.
pub trait Integer: Scalar + arch::Number {}

impl<T: arch::Word> Word for T {}
impl<T: arch::Single> Scalar for T {}
impl<T: arch::Number> Integer for T {}

/// A guard that keeps its thread on the CPU: a [`PreemptGuard`] or an [`IrqGuard`].
pub trait Pin: sealed::Sealed {}
impl Pin for PreemptGuard {}
impl Pin for IrqGuard {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::PreemptGuard {}
    impl Sealed for super::IrqGuard {}
}

/// A per-CPU variable whose operations rely on whoever uses them: the thread stays on its CPU
/// meanwhile, and no interrupt handler changes this CPU's copy. Linux: `__this_cpu_*`, `raw_cpu_*`.
///
/// Where either is not so, a change may get lost, or end up in another CPU's copy; no more than
/// that. On x86-64 these are the instructions of `this_cpu`, except that an exchange is a load and a
/// store; on machines without such instructions they save masking interrupts.
///
/// | made by | what keeps the thread on its CPU | Linux |
/// |---|---|---|
/// | [`pinned`](super::PerCpu::pinned) | the guard | `__this_cpu_*` |
/// | [`asserted`](super::PerCpu::asserted) | looked at when debug assertions are on | `__this_cpu_*` |
/// | [`unguarded`](super::PerCpu::unguarded) | nothing, or it does not matter | `raw_cpu_*` |
pub struct RawCpu<'a, T> {
    ptr: PerCpuPtr<T>,
    variable: PhantomData<(&'a (), *mut ())>,
}

impl<T> RawCpu<'_, T> {
    /// A variable that exists for this lifetime.
    pub(crate) fn new(ptr: PerCpuPtr<T>) -> Self {
        Self { ptr, variable: PhantomData }
    }
}

/// Checks what `asserted` asserts. Linux: `__this_cpu_preempt_check`.
#[track_caller]
#[inline]
pub(crate) fn assert_pinned() {
    debug_assert!(
        crate::preempt::count() != 0
            || <crate::platform::Global as crate::platform::Platform>::is_pinned(),
        "a thread that may be moved to another CPU uses an operation that needs it to stay: take a \
         `preempt::disable()` guard, or use the operation without `asserted()`"
    );
}

macro_rules! pointer_methods {
    ({}
        word { $($(#[$wdoc:meta])* $word:ident($($warg:ident: $wty:ty),*) -> $wret:ty = |$wold:ident| $wbody:expr;)* }
        number { $($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = |$old:ident| $body:expr;)* }
    ) => {
        /// The `this_cpu` operations, on the copy of the CPU that runs them; safe against interrupts
        /// and migration. [`PerCpu`](super::PerCpu) has them as safe methods.
        impl<T: Word> PerCpuPtr<T> {
            $(
                $(#[$wdoc])*
                ///
                /// # Safety
                ///
                /// The variable exists, and its copies are changed by these operations and by atomic
                /// accesses only.
                #[inline(always)]
                pub unsafe fn $word(self $(, $warg: $wty)*) -> $wret {
                    // SAFETY: passed on to the caller.
                    unsafe { T::$word::<true>(self.raw() $(, $warg)*) }
                }
            )*
        }

        /// Arithmetic on the copy of the CPU that runs it; wraps.
        impl<T: Integer> PerCpuPtr<T> {
            $(
                $(#[$doc])*
                ///
                /// # Safety
                ///
                /// As [`read`](Self::read).
                #[inline(always)]
                pub unsafe fn $name(self $(, $arg: $ty)*) -> $ret {
                    // SAFETY: passed on to the caller.
                    unsafe { T::$name::<true>(self.raw() $(, $arg)*) }
                }
            )*
        }

        /// Operations on this CPU's copy.
        impl<T: Word> RawCpu<'_, T> {
            $(
                $(#[$wdoc])*
                #[inline(always)]
                pub fn $word(&self $(, $warg: $wty)*) -> $wret {
                    // SAFETY: the variable exists while `self` does, and nobody lends out a word.
                    unsafe { T::$word::<false>(self.ptr.raw() $(, $warg)*) }
                }
            )*
        }

        /// Arithmetic on this CPU's copy; wraps.
        impl<T: Integer> RawCpu<'_, T> {
            $(
                $(#[$doc])*
                #[inline(always)]
                pub fn $name(&self $(, $arg: $ty)*) -> $ret {
                    // SAFETY: as above.
                    unsafe { T::$name::<false>(self.ptr.raw() $(, $arg)*) }
                }
            )*
        }
    };
}

operations!(T, pointer_methods! {});

/// Gives a type the `this_cpu` operations. The type owns a variable that exists as long as `&self`,
/// names it by `fn ptr(&self) -> PerCpuPtr<T>`, and never lends a copy of a word out.
macro_rules! this_cpu_ops {
    (impl<T $(, $p:ident: $bound:path)?> $ty:ty) => {
        $crate::arch::operations!(T, owner_methods! { {$($p: $bound)?} $ty });
    };
}

macro_rules! owner_methods {
    ({ {$($p:ident: $bound:path)?} $owner:ty }
        word { $($(#[$wdoc:meta])* $word:ident($($warg:ident: $wty:ty),*) -> $wret:ty = |$wold:ident| $wbody:expr;)* }
        number { $($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = |$old:ident| $body:expr;)* }
    ) => {
        /// Operations on the copy of the CPU that runs them, each safe against interrupts and
        /// migration without a guard. On x86-64 each is one instruction, but for exchanges, and all
        /// that changes two words, which try again when an interrupt handler comes in between.
        impl<T: $crate::var::Word $(, $p: $bound)?> $owner {
            $(
                $(#[$wdoc])*
                #[inline(always)]
                pub fn $word(&self $(, $warg: $wty)*) -> $wret {
                    // SAFETY: the variable exists while `self` does, and nobody lends out a word.
                    unsafe { self.ptr().$word($($warg),*) }
                }
            )*

            /// The operations for a thread that a guard keeps on its CPU, on a variable that no
            /// interrupt handler changes. Linux: `__this_cpu_*`.
            #[inline(always)]
            pub fn pinned<'a>(
                &'a self,
                pin: &'a impl $crate::var::Pin,
            ) -> $crate::var::RawCpu<'a, T> {
                let _ = pin;
                $crate::var::RawCpu::new(self.ptr())
            }

            /// As [`pinned`](Self::pinned), for a thread that stays on its CPU without a guard at
            /// hand: an interrupt handler, a thread bound to its CPU. Linux: `__this_cpu_*`.
            ///
            /// # Panics
            ///
            /// If debug assertions are on and the thread may be moved.
            #[track_caller]
            #[inline(always)]
            pub fn asserted(&self) -> $crate::var::RawCpu<'_, T> {
                $crate::var::ops::assert_pinned();
                $crate::var::RawCpu::new(self.ptr())
            }

            /// The operations for where it does not matter that a change may get lost: statistics
            /// that need not be exact, or a variable that is only read. Linux: `raw_cpu_*`.
            #[inline(always)]
            pub fn unguarded(&self) -> $crate::var::RawCpu<'_, T> {
                $crate::var::RawCpu::new(self.ptr())
            }
        }

        /// Arithmetic on the copy of the CPU that runs it; wraps.
        impl<T: $crate::var::Integer $(, $p: $bound)?> $owner {
            $(
                $(#[$doc])*
                #[inline(always)]
                pub fn $name(&self $(, $arg: $ty)*) -> $ret {
                    // SAFETY: the variable exists while `self` does, and nobody lends out a word.
                    unsafe { self.ptr().$name($($arg),*) }
                }
            )*
        }
    };
}

pub(crate) use {owner_methods, this_cpu_ops};
