//! A per-CPU pointer says nothing about whether the variable is there: who uses it answers for that.

use percpu_core::{cpu, var::PerCpuPtr};

fn main() {
    let wild = PerCpuPtr::<u64>::from_raw(0x1000);
    wild.add(1); //~ E0133
    wild.read_on(cpu::current()); //~ E0133
}
