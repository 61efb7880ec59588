//! Pulling the plugs: which CPU goes up or down next, which trials the guest goes through, and how
//! it is told.

mod injector;
mod plan;
mod trials;

pub use injector::{Injector, Order, Pending};
pub use plan::{CpuNow, Plan};
pub use trials::Trials;
