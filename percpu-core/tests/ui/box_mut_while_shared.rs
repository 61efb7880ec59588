//! A copy is lent out as `&mut` by a box that nobody else uses.

use core::sync::atomic::AtomicU32;

use percpu_core::{alloc::PerCpuBox, cpu};

fn main() {
    let mut hits = PerCpuBox::<AtomicU32>::try_new_zeroed().unwrap();
    let here = hits.remote(cpu::current());
    *hits.get_mut(cpu::current()) = AtomicU32::new(1); //~ E0502
    here.load(core::sync::atomic::Ordering::Relaxed);
}
