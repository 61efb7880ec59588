//! A scalar is never lent out: `this_cpu` operations change it behind the reference.

use percpu_core::{alloc::PerCpuBox, cpu, irq, percpu, preempt};

percpu! { static PACKETS: PerCpu<u64> = 0; }

fn main() {
    PACKETS.with(&preempt::disable(), |packets| *packets); //~ E0277 a per-CPU `u64` cannot be lent out by reference
    PACKETS.with_irq(&irq::disable(), |packets| *packets); //~ E0277 a per-CPU `u64` cannot be lent out by reference
    PACKETS.remote(cpu::current()); //~ E0277 a per-CPU `u64` cannot be lent out by reference
    PerCpuBox::<u64>::try_new_zeroed().unwrap().remote(cpu::current()); //~ E0277 a per-CPU `u64` cannot be lent out by reference
}
