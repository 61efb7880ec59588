//! A reference to another CPU's copy does not outlive the box.

use core::sync::atomic::AtomicU32;

use percpu_core::{alloc::PerCpuBox, cpu};

fn main() {
    let hits = PerCpuBox::<AtomicU32>::try_new_zeroed().unwrap();
    let here = hits.remote(cpu::current());
    drop(hits); //~ E0505
    here.load(core::sync::atomic::Ordering::Relaxed);
}
