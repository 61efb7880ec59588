//! Atomics whose read-modify-writes are steps of a machine that runs CPUs one at a time (see
//! [`steps`](crate::steps)). Their loads and stores are so by the compiler's work.

use core::ops::{Deref, DerefMut};
use core::sync::atomic::{self, Ordering};

use crate::steps;

macro_rules! stepped {
    ($($name:ident $(<$g:ident>)?, $core:ty, $value:ty: $($op:ident)*;)*) => {$(
        #[repr(transparent)]
        pub struct $name $(<$g>)? ($core);

        #[allow(dead_code)]
        impl $(<$g>)? $name $(<$g>)? {
            pub const fn new(value: $value) -> Self {
                Self(<$core>::new(value))
            }

            /// # Safety
            ///
            /// As that of core's types.
            pub unsafe fn from_ptr<'a>(ptr: *mut $value) -> &'a Self {
                // SAFETY: the type is core's; the rest is the caller's duty.
                unsafe { &*ptr.cast::<Self>() }
            }

            pub fn compare_exchange(
                &self,
                old: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                steps::point();
                self.0.compare_exchange(old, new, success, failure)
            }

            $(
                pub fn $op(&self, value: $value, order: Ordering) -> $value {
                    steps::point();
                    self.0.$op(value, order)
                }
            )*
        }

        impl $(<$g>)? Deref for $name $(<$g>)? {
            type Target = $core;

            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }

        impl $(<$g>)? DerefMut for $name $(<$g>)? {
            fn deref_mut(&mut self) -> &mut Self::Target {
                &mut self.0
            }
        }
    )*};
}

stepped! {
    AtomicBool, atomic::AtomicBool, bool: swap fetch_or fetch_and;
    AtomicU8, atomic::AtomicU8, u8: swap fetch_add fetch_sub fetch_or fetch_and fetch_max;
    AtomicI8, atomic::AtomicI8, i8: swap fetch_add fetch_sub fetch_or fetch_and fetch_max;
    AtomicU16, atomic::AtomicU16, u16: swap fetch_add fetch_sub fetch_or fetch_and fetch_max;
    AtomicI16, atomic::AtomicI16, i16: swap fetch_add fetch_sub fetch_or fetch_and fetch_max;
    AtomicU32, atomic::AtomicU32, u32: swap fetch_add fetch_sub fetch_or fetch_and fetch_max;
    AtomicI32, atomic::AtomicI32, i32: swap fetch_add fetch_sub fetch_or fetch_and fetch_max;
    AtomicU64, atomic::AtomicU64, u64: swap fetch_add fetch_sub fetch_or fetch_and fetch_max;
    AtomicI64, atomic::AtomicI64, i64: swap fetch_add fetch_sub fetch_or fetch_and fetch_max;
    AtomicUsize, atomic::AtomicUsize, usize: swap fetch_add fetch_sub fetch_or fetch_and fetch_max;
    AtomicIsize, atomic::AtomicIsize, isize: swap fetch_add fetch_sub fetch_or fetch_and fetch_max;
    AtomicPtr<T>, atomic::AtomicPtr<T>, *mut T: swap;
}
