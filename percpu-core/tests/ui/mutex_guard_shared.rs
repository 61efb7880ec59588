//! A lock's guard is as good as a `&mut`: shared between threads only if the value may be.

use core::cell::Cell;

use percpu_core::sync::Mutex;

/// Runs on another thread, which may be on another CPU.
fn elsewhere<T: Send>(_: T) {}

static LOCK: Mutex<Cell<u64>> = Mutex::new(Cell::new(0));

fn main() {
    let guard = LOCK.lock();
    elsewhere(&guard); //~ E0277
}
