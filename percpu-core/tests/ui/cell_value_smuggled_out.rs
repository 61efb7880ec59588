//! The reference that a cell, a lock or a box lends out ends with what keeps others away.

use percpu_core::alloc::PerCpuBox;
use percpu_core::cpu::CpuId;
use percpu_core::local::{IrqCell, LocalLock};
use percpu_core::{irq, percpu, preempt};

percpu! {
    static CELL: PerCpu<IrqCell<u32>> = IrqCell::new(0);
    static LOCK: PerCpu<LocalLock<u32>> = LocalLock::new(0);
}

fn of_a_cell() -> &'static mut u32 {
    CELL.with_mut(&preempt::disable(), |value| value).unwrap() //~ error lifetime may not live long enough
}

fn of_a_masked_cell() -> &'static mut u32 {
    CELL.with_mut_irq(&irq::disable(), |value| value).unwrap() //~ error lifetime may not live long enough
}

fn of_a_lock() -> &'static mut u32 {
    &mut *LOCK.lock() //~ E0515
}

fn two_of_a_box(boxed: &mut PerCpuBox<u32>, a: CpuId, b: CpuId) {
    let first = boxed.get_mut(a);
    let second = boxed.get_mut(b); //~ E0499
    core::mem::swap(first, second);
}

fn unlocked(boxed: &mut PerCpuBox<LocalLock<u32>>, cpu: CpuId) {
    let guard = boxed.lock();
    boxed.get_mut(cpu); //~ E0502
    drop(guard);
}

fn main() {}
