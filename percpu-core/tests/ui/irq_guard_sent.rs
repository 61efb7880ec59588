//! A guard holds for the CPU it was made on: another thread, on another CPU, cannot drop it.

use percpu_core::irq;

/// Runs on another thread, which may be on another CPU.
fn elsewhere<T: Send>(_: T) {}

fn main() {
    elsewhere(irq::disable()); //~ E0277
}
