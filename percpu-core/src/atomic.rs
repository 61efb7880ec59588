//! The atomics and the cell that the allocator and the locks are made of: the core library's own,
//! or, with `--cfg loom`, such as [loom](https://docs.rs/loom) schedules and watches, or, with `--cfg
//! shuttle`, such as [shuttle](https://docs.rs/shuttle) schedules.

#[cfg(loom)]
#[doc(hidden)]
pub mod model;
#[cfg(shuttle)]
#[doc(hidden)]
#[path = "atomic/scheduled.rs"]
pub mod model;

#[cfg(not(any(loom, shuttle)))]
pub(crate) use core::cell::UnsafeCell;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use core::sync::atomic::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicPtr, AtomicU8,
    AtomicU16, AtomicU32, AtomicU64, AtomicUsize, fence,
};

#[cfg(any(loom, shuttle))]
pub(crate) use model::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicPtr, AtomicU8,
    AtomicU16, AtomicU32, AtomicU64, AtomicUsize, UnsafeCell, fence,
};

pub(crate) use core::sync::atomic::Ordering;
