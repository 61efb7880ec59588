//! Operations that rely on staying on a CPU stay on their thread, whoever vouches for that.

use percpu_core::percpu;

/// Runs on another thread, which may be on another CPU.
fn elsewhere<T: Send>(_: T) {}

percpu! { static PACKETS: PerCpu<u64> = 0; }

fn main() {
    elsewhere(PACKETS.asserted()); //~ E0277
    elsewhere(PACKETS.unguarded()); //~ E0277
}
