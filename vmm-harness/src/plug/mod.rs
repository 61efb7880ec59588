//! Pulling the plugs: which CPU goes up or down next, which trials the guest goes through, and how
//! it is told.

mod given;
mod injector;
mod trials;
mod walk;

pub use given::{Given, GivenPlug, Work};
pub use injector::{Injector, Order, Pending};
pub use trials::Trials;
pub use walk::{CpuNow, Walk};
