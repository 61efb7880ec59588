//! Pulling the plugs: which CPU goes up or down next, and how the guest is told.

mod injector;
mod plan;

pub use injector::{Injector, Order, Pending};
pub use plan::{CpuNow, Plan};
