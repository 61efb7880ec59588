//! except by somebody who answers for it.

use percpu_core::cpu::CpuId;

fn main() {
    let _ = CpuId::new_unchecked(1000); //~ E0133
}
