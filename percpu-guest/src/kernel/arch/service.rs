//! What the kernel asks of ring 0.
//!
//! In ring 3 it does so by `int3`: the one software trap that enters ring 0 on every host. In ring 0
//! it calls the same code, since a host that emulates ring 0 may not know the instruction.

use core::arch::asm;

#[cfg(percpu_steps)]
use super::doorbell;
#[cfg(percpu_steps)]
use crate::abi::Doorbell;
use crate::kernel::shared;

/// Numbers that the stub knows.
#[cfg(not(percpu_steps))]
const IDLE: u32 = 0;
const FLUSH_TLB: u32 = 1;
const TRIPLE_FAULT: u32 = 2;

fn call(number: u32) {
    if shared::boot().ring == 0 {
        // SAFETY: the service wants real interrupts off, and they are on everywhere outside stubs.
        // It changes rdi and flags only.
        unsafe { asm!("cli", "call service", "sti", in("eax") number, out("rdi") _) };
    } else {
        // SAFETY: as above; the gate turns interrupts off, the return restores them.
        unsafe { asm!("int3", in("eax") number, out("rdi") _) };
    }
}

/// Waits for an interrupt. To be called with interrupts masked: what arrives is noted as pending,
/// and if something already is, the call returns at once.
pub fn idle() {
    #[cfg(not(percpu_steps))]
    call(IDLE);
    #[cfg(percpu_steps)]
    doorbell::ring(Doorbell::Idle, 0);
}

/// Makes this CPU forget all translations.
pub fn flush_tlb() {
    call(FLUSH_TLB);
}

/// Ends the virtual machine the hard way: a fault that cannot be delivered.
pub fn triple_fault() -> ! {
    call(TRIPLE_FAULT);
    unreachable!("a triple fault was survived")
}
