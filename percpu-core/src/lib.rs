//! The Linux per-CPU subsystem as a crate.
#![cfg_attr(not(any(test, feature = "host")), no_std)]
#![warn(missing_docs)]

pub mod alloc;
pub mod arch;
pub mod area;
pub mod counter;
pub mod cpu;
#[cfg(feature = "host")]
pub mod host;
pub mod hotplug;
pub mod irq;
pub mod platform;
pub mod preempt;
pub mod sync;
pub mod var;
pub mod view;
