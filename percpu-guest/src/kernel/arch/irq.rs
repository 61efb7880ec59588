//! Interrupts masked in software.
//!
//! The hardware's interrupt flag stays on; a per-CPU count says whether a handler may run. The entry
//! stub reads it: where it is not 0, the vector is noted as pending and the interrupted code goes on.
//! Whoever takes the count to 0 looks for pending vectors and handles them by a call. Masking costs
//! one instruction, unmasking one and two loads.

use crate::abi::{VECTOR_COMMAND, VECTOR_IPI, VECTOR_TIMER};
use percpu_core::{percpu, preempt};

use crate::kernel::sched;

/// First vector of an interrupt; vectors 0x40..0x80 have a bit in [`IRQ_PENDING`].
pub(super) const FIRST_VECTOR: u32 = 0x40;

percpu! {
    /// How often interrupts are masked on this CPU; no handler runs while it is not 0. A count, so
    /// that guards may be dropped in any order. A CPU starts masked.
    #[unsafe(no_mangle)]
    pub static IRQ_MASKED: PerCpu<u32> = 1;
    /// Vectors that arrived while interrupts were masked, bit 0 = 0x40.
    #[unsafe(no_mangle)]
    pub static IRQ_PENDING: PerCpu<u64> = 0;
}

/// Masks interrupts once more: one instruction.
#[inline]
pub fn mask() {
    IRQ_MASKED.inc();
}

/// Whether interrupts are masked on this CPU.
#[inline]
pub fn masked() -> bool {
    IRQ_MASKED.read() != 0
}

/// Takes one [`mask`] back; the last one unmasks, and handles what is pending.
///
/// # Safety
///
/// A `mask` of this thread, or of the CPU's start, has not been taken back yet.
#[inline]
pub unsafe fn unmask() {
    debug_assert!(masked(), "interrupts are unmasked more often than masked");
    loop {
        IRQ_MASKED.dec();
        // Once unmasked the thread may migrate between these loads. Then it was by an interrupt,
        // whose exit has handled what was pending on the CPU it left; and what is pending on this
        // one while it is unmasked is about to be handled here.
        if IRQ_MASKED.read() != 0 || IRQ_PENDING.read() == 0 {
            return;
        }
        IRQ_MASKED.inc();
        irq_replay_all();
    }
}

/// Handles all pending vectors of this CPU. Interrupts are masked.
pub extern "C" fn irq_replay_all() {
    let mut pending = IRQ_PENDING.xchg(0);
    while pending != 0 {
        let bit = pending.trailing_zeros();
        pending &= pending - 1;
        handle(FIRST_VECTOR + bit);
    }
    sched::on_interrupt_exit();
}

/// Handles one interrupt. Interrupts are masked, the stub has acknowledged.
pub extern "C" fn irq_dispatch(vector: u32) {
    handle(vector);
    sched::on_interrupt_exit();
}

fn handle(vector: u32) {
    // Handlers are not preemptible: a guard dropped inside must not switch threads.
    let guard = preempt::disable();
    match u8::try_from(vector) {
        Ok(VECTOR_TIMER) => crate::kernel::tick::on_timer(),
        Ok(VECTOR_COMMAND) => crate::kernel::control::on_command(),
        Ok(VECTOR_IPI) => crate::kernel::ipi::on_ipi(),
        // Spurious: nothing asked for it, nothing is lost.
        _ => {}
    }
    drop(guard);
}
