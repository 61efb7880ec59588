//! The guest that percpu-core is tested with: tests, workloads and a benchmark on the kernel of this
//! package's library half, which they use as a crate of somebody else would.
#![no_std]
#![no_main]

mod bench;
mod tests;
mod workloads;
