//! The atomics and the cell that the allocator and the locks are made of: the core library's own,
//! or, with `--cfg loom`, such as [loom](https://docs.rs/loom) schedules and watches, or, with `--cfg
//! shuttle`, such as [shuttle](https://docs.rs/shuttle) schedules, or, with `--cfg percpu_steps`, such
//! as a machine that runs CPUs one at a time can stop at.

#[cfg(loom)]
#[doc(hidden)]
pub mod model;
#[cfg(shuttle)]
#[doc(hidden)]
#[path = "atomic/scheduled.rs"]
pub mod model;
#[cfg(percpu_steps)]
mod stepped;

#[cfg(not(any(loom, shuttle)))]
pub(crate) use core::cell::UnsafeCell;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use core::sync::atomic::fence;
#[cfg(not(any(loom, shuttle, percpu_steps)))]
pub(crate) use core::sync::atomic::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicPtr, AtomicU8,
    AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
};

#[cfg(percpu_steps)]
pub(crate) use stepped::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicPtr, AtomicU8,
    AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
};

#[cfg(any(loom, shuttle))]
pub(crate) use model::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicPtr, AtomicU8,
    AtomicU16, AtomicU32, AtomicU64, AtomicUsize, UnsafeCell, fence,
};

pub(crate) use core::sync::atomic::Ordering;
