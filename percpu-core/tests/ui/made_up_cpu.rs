//! The number of a CPU that is not possible cannot be made,

use percpu_core::cpu::CpuId;

fn main() {
    let _ = CpuId(1000); //~ E0423
}
