//! Interrupts and time where CPUs run one at a time, in place of the local APIC and the time stamp
//! counter: nothing here depends on how fast the host is.
//!
//! The clock is the count of steps, so that each CPU finds it as the schedule makes it. The timer is
//! a moment in the control block, at which `turns` sets the bit. An IPI is a bit that the sender
//! sets in its target's word: nobody else runs meanwhile, and the target sees it when it runs next,
//! at a step with interrupts unmasked or when it unmasks them.

use core::arch::asm;
use core::sync::atomic::Ordering;

use crate::abi::VECTOR_IPI;
use percpu_core::cpu::CpuId;

use super::irq::{FIRST_VECTOR, IRQ_PENDING};
use super::{tsc, turns};
use crate::kernel::shared;

/// End-of-interrupt register of the controller that is not used: no stub of an interrupt runs.
pub const EOI: usize = 0xfee0_00b0;

/// Tells the host where this CPU's pending interrupts are noted. Interrupts are masked.
pub fn enable() {
    let word = IRQ_PENDING.ptr().raw() + percpu_core::area::offset(percpu_core::cpu::current());
    shared::this_control().pending.store(word as u64, Ordering::Relaxed);
}

/// No more timer interrupts.
pub fn disable() {
    shared::this_control().timer.store(0, Ordering::Relaxed);
}

/// One timer interrupt, `us` microseconds from now.
pub fn arm_timer(us: u32) {
    let ticks = u64::from(us) * u64::from(shared::boot().tsc_mhz);
    shared::this_control().timer.store(tsc::now() + ticks, Ordering::Relaxed);
    turns::look_again();
}

/// Interrupts `cpu` with the kernel's own IPI.
pub fn send_ipi(cpu: u32) {
    raise(cpu, VECTOR_IPI);
}

/// Never: CPUs that run one at a time are started without it.
pub fn send_init_sipi(cpu: u32, _entry: u64) {
    panic!("CPU {cpu} is to be started by INIT and SIPI, and its host knows no such thing");
}

fn raise(cpu: u32, vector: u8) {
    let target = CpuId::new(cpu as usize).expect("an IPI to a CPU that is not possible");
    let word = IRQ_PENDING.ptr().on(target);
    let bit = 1u64 << (u32::from(vector) - FIRST_VECTOR);
    // SAFETY: the word is the target's copy of a live variable. The target does not run now, nor
    // does any other CPU before the next step, and there is none in assembly.
    unsafe { asm!("or qword ptr [{}], {}", in(reg) word, in(reg) bit, options(nostack)) };
    turns::look_again();
}
