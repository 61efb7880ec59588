//! What was taken on a thread is given back on it: locks that mask interrupts, the seat of a CPU, the
//! right to see the online mask stand still.

use percpu_core::{host, hotplug, sync::SpinLock};

/// Runs on another thread, which may be on another CPU.
fn elsewhere<T: Send>(_: T) {}

static LOCK: SpinLock<u32> = SpinLock::new(0);

fn main() {
    elsewhere(LOCK.lock()); //~ E0277
    elsewhere(host::enter_any().unwrap()); //~ E0277
    elsewhere(hotplug::cpus_read_lock()); //~ E0277
}
