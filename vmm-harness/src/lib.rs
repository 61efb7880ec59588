//! A small VMM that runs the percpu guest and judges it.

pub mod error;
pub mod host;
pub mod judge;
pub mod memory;
