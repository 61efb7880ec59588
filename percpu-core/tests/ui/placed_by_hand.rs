//! Nothing but a per-CPU variable lies in the sections: what is there is copied for each CPU.

use std::sync::atomic::AtomicU64;

percpu_core::__percpu_place! { Plain static STRAY: AtomicU64 = AtomicU64::new(0); } //~ error no rules expected
percpu_core::percpu! { @ [define] [] [Elsewhere] static ELSEWHERE: PerCpu<u64> = 0; } //~ error no rules expected
percpu_core::percpu! { @place [define] [] [Hot Plain] static TWICE: PerCpu<u64> = 0; } //~ error placed in one way

fn main() {}
