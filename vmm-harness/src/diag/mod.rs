//! What a developer needs when the guest crashes or hangs: who stands still, where, and how it
//! came there.

mod cpu_report;
mod log;
pub(crate) mod source;
mod stack;
mod symbols;
mod watchdog;

pub use cpu_report::{CpuReport, Registers};
pub(crate) use log::log_tail;
pub use stack::{Frame, backtrace};
pub use symbols::{SourceFrame, Symbols};
pub use watchdog::{Limits, Sample, Stuck, Watchdog};
