//! The kernel: what percpu-core needs of one, and what its tests and workloads need.
//!
//! A program becomes a guest by using this crate, with no entry point and no panic handler of its own:
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//!
//! use percpu_core::{cpu, percpu};
//! use percpu_guest::kernel::{cpus, testing::run_on, workload::Worker};
//!
//! percpu! {
//!     static HITS: PerCpu<u64> = 0;
//! }
//!
//! #[percpu_guest::test(cpus = 2)]
//! fn each_cpu_has_its_own() {
//!     run_on(1, || HITS.inc());
//!     run_on(0, || assert_eq!(HITS.read(), 0));
//! }
//!
//! #[percpu_guest::workload]
//! fn hits(worker: &mut Worker) {
//!     HITS.inc();
//!     worker.book(0, 1);
//! }
//! ```
//!
//! What such a program uses: [`testing`] and [`workload`]; threads ([`sched`]), CPUs ([`cpus`]), interrupts
//! of others ([`ipi`]) and of the timer ([`tick`]), and the host ([`events`], [`log`]). The rest is the
//! kernel itself.

pub mod arch;
pub mod balance;
mod boot;
mod control;
pub mod cpus;
pub mod events;
mod faults;
pub mod ipi;
pub mod log;
pub mod mem;
mod panic;
mod platform;
pub mod rng;
pub mod sched;
mod section;
pub mod shared;
pub mod testing;
pub mod tick;
mod trials;
pub mod workload;

pub use platform::Kernel;
