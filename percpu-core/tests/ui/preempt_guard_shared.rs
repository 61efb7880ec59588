//! A guard proves something for the CPU it was made on, so another thread cannot even look at it.

use percpu_core::preempt;

/// Runs on another thread, which may be on another CPU.
fn elsewhere<T: Send>(_: T) {}

fn main() {
    let guard = preempt::disable();
    elsewhere(&guard); //~ E0277
}
