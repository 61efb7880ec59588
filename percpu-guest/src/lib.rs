//! A small guest kernel for the code under test, and the interface between it and the host that runs and
//! judges it.
//!
//! - [`abi`]: shared memory. Both sides compile it: the kernel writes these structures, the host reads
//!   them from raw guest memory.
//! - `kernel`, with the feature of that name: interrupts, preemptible threads that migrate, CPUs that
//!   come and go. A program that uses it is a guest; what it tests and what it does all day it declares by
//!   `#[percpu_guest::test]` and `#[percpu_guest::workload]`.
#![no_std]

pub mod abi;
#[cfg(feature = "kernel")]
pub mod kernel;

#[cfg(feature = "kernel")]
pub use percpu_guest_macros::{test, workload};
