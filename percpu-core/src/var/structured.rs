//! Values that may be lent out by reference.

use core::cell::{Cell, OnceCell, RefCell, UnsafeCell};
use core::mem::MaybeUninit;
use core::sync::atomic::*;

/// Types that are not scalars: a per-CPU variable of such a type has no `this_cpu` operations and
/// can therefore be lent out as `&T`.
///
/// Implement it, with an empty body, for a type of your own that is to be used with
/// [`PerCpu::with`](super::PerCpu::with) and its like. It is safe to implement: the operations exist
/// for the primitive types only, and nobody but the core library may implement a foreign trait for
/// those.
#[diagnostic::on_unimplemented(
    message = "a per-CPU `{Self}` cannot be lent out by reference",
    note = "scalars are changed by `this_cpu` operations behind any reference: use `read`, `add` ..., or an atomic type",
    note = "for a type of your own write `impl percpu_core::var::Structured for {Self} {{}}`"
)]
pub trait Structured {}

macro_rules! structured {
    ($($ty:ty),* $(,)?) => { $(impl Structured for $ty {})* };
}

structured! {
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize,
    AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
}

impl<T> Structured for AtomicPtr<T> {}
impl<T> Structured for Cell<T> {}
impl<T> Structured for RefCell<T> {}
impl<T> Structured for OnceCell<T> {}
impl<T> Structured for UnsafeCell<T> {}
impl<T> Structured for MaybeUninit<T> {}
impl<T> Structured for Option<T> {}
impl<T, const N: usize> Structured for [T; N] {}
impl<T, U> Structured for (T, U) {}
impl<T, P: crate::platform::Platform> Structured for crate::sync::SpinLock<T, P> {}
impl<T, P: crate::platform::Platform> Structured for crate::sync::Mutex<T, P> {}
