//! Types that may begin as zero bytes.

use core::cell::{Cell, UnsafeCell};
use core::mem::{ManuallyDrop, MaybeUninit};
use core::sync::atomic::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicPtr, AtomicU8,
    AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
};

/// Types of which all bytes zero make a valid value.
///
/// # Safety
///
/// `size_of::<Self>()` zero bytes are a valid `Self`.
pub unsafe trait Zeroable {}

macro_rules! zeroable {
    ($($ty:ty),* $(,)?) => {$(
        // SAFETY: integers, floats and `bool` are valid as zero, and so are atomics around them.
        unsafe impl Zeroable for $ty {}
    )*};
}

zeroable! {
    (), bool, u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, f32, f64,
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize,
    AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
}

// SAFETY: a null pointer is zero and a valid raw pointer.
unsafe impl<T> Zeroable for *const T {}
// SAFETY: as above.
unsafe impl<T> Zeroable for *mut T {}
// SAFETY: as above.
unsafe impl<T> Zeroable for AtomicPtr<T> {}
#[cfg(any(loom, shuttle, percpu_steps))]
// SAFETY: the same bytes as core's.
unsafe impl<T> Zeroable for crate::atomic::AtomicPtr<T> {}
// SAFETY: each element is zeroable, and there is nothing else.
unsafe impl<T: Zeroable, const N: usize> Zeroable for [T; N] {}
// SAFETY: the same bytes as a `T`.
unsafe impl<T: Zeroable> Zeroable for Cell<T> {}
// SAFETY: the same bytes as a `T`.
unsafe impl<T: Zeroable> Zeroable for UnsafeCell<T> {}
// SAFETY: the same bytes as a `T`.
unsafe impl<T: Zeroable> Zeroable for ManuallyDrop<T> {}
// SAFETY: any bytes are valid.
unsafe impl<T> Zeroable for MaybeUninit<T> {}
