//! Operations that rely on a guard do not outlive it.

use percpu_core::{percpu, preempt};

percpu! { static PACKETS: PerCpu<u64> = 0; }

fn main() {
    let pin = preempt::disable();
    let packets = PACKETS.pinned(&pin);
    drop(pin); //~ E0505
    packets.add(1);
}
