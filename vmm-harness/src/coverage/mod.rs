//! Coverage: what of the guest's code runs have reached.
//!
//! The guest for the deterministic machine is built with SanitizerCoverage's inline flags: the compiler
//! gives every edge between basic blocks a byte, which the guest's code sets when it goes there, and an
//! entry in a table that says where in the code the edge ends. The host finds both in the image
//! ([`Edges`]), reads the bytes in one piece after a run, and has a set of edges ([`Covered`]) for the
//! price of some microseconds. A scenario that adds to the set is worth keeping and changing.
//!
//! Edges are soon exhausted: a race is about code that was reached long ago, in an order that was not.
//! So a run's [`Features`] have a second kind, where CPUs gave way to each other.
//!
//! # What is counted
//! Between two runs the flags are put back, with the rest of the guest's memory, to what they were when
//! the guest had booted. So what boot reached is part of every run, and what a run before reached is not.
//! Runs are added up in a [`Coverage`], which belongs to one image and is part of a campaign's report.
//!
//! # For people
//! They are written in the form of lcov and as a part of a campaign's page: which lines and functions of percpu-core
//! ran, and which never did. [`SourceCoverage`] says what "ran" means.

mod code;
mod covered;
mod edges;
mod features;
mod file;
mod html;
mod lcov;
mod reports;
mod source;
#[cfg(test)]
mod testing;

pub use covered::Covered;
pub use edges::Edges;
pub(crate) use edges::FLAGS;
pub use features::{Features, New};
pub use file::Coverage;
pub(crate) use html::section;
pub use reports::write_lcov_file;
pub use source::{FileCoverage, FunctionCoverage, Part, SourceCoverage};
