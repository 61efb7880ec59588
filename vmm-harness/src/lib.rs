//! A small VMM that runs the percpu guest and judges it.

pub mod bench;
pub mod cli;
mod counts;
pub mod coverage;
mod crash;
pub mod diag;
pub mod error;
pub mod fuzz;
pub mod guest;
pub mod host;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod hostile;
pub mod image;
pub mod judge;
pub mod machine;
pub mod memory;
mod plain;
pub mod plug;
pub mod report;
pub mod run;
pub mod testing;
pub mod vm;

pub use guest::Guest;
