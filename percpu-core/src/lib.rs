//! The Linux per-CPU subsystem as a crate.
#![cfg_attr(not(any(test, feature = "host")), no_std)]
#![warn(missing_docs)]

pub mod cpu;
pub mod platform;
pub mod sync;
pub mod view;
