//! The deterministic machine: a guest whose CPUs run one at a time, on one thread of the host, and
//! a seed that says which of them runs, from which step to which.
//!
//! Everything that happens to the guest is an event of the schedule: a switch to another CPU, a timer
//! interrupt, a plug, an injected failure. It comes at a step, which the guest counts itself, so one
//! seed gives one [run](Machine::run), to the last step and on any host. What happened is summed up
//! in a hash, and two runs of a seed can be compared entry by entry.
//!
//! - [`Scenario`]: what a seed stands for;
//! - [`Schedule`]: who runs, and when that changes. The guest follows it by itself: its CPUs are
//!   contexts of one vCPU;
//! - [`Trace`]: what happened;
//! - [`Machine`]: a VM that goes through one scenario after the other, put back between them to the
//!   moment at which its guest had booted.

mod bounds;
mod contents;
mod cpus;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod looks;
mod mutate;
mod random;
mod restore;
mod run;
pub(crate) mod scenario;
mod schedule;
mod serial;
mod trace;
mod written;

pub use bounds::{Flaw, Place};
pub use random::Random;
pub use run::{Ending, Outcome, Span};
pub use scenario::{Plug, Scenario, Strategy, Topology, Unit};
pub use schedule::{Change, Schedule, What};
pub use serial::Machine;
pub use trace::{Entry, Trace};
