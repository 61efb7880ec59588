//! Interrupts masked in software.
//!
//! The hardware's interrupt flag stays on; a per-CPU flag says whether a handler may run. The entry
//! stub reads it: where it is set, the vector is noted as pending and the interrupted code goes on.
//! Whoever clears the flag looks for pending vectors and handles them by a call. Masking costs one
//! store, unmasking a store and a load.

use percpu_core::{percpu, preempt};
use percpu_guest::abi::{VECTOR_COMMAND, VECTOR_IPI, VECTOR_TIMER};

use crate::sched;

/// First vector of an interrupt; vectors 0x40..0x80 have a bit in [`IRQ_PENDING`].
const FIRST_VECTOR: u32 = 0x40;

percpu! {
    /// Not 0 while no handler may run on this CPU. A CPU starts masked.
    #[unsafe(no_mangle)]
    pub static IRQ_MASKED: PerCpu<u8> = 1;
    /// Vectors that arrived while interrupts were masked, bit 0 = 0x40.
    #[unsafe(no_mangle)]
    pub static IRQ_PENDING: PerCpu<u64> = 0;
}

/// Masks interrupts; says whether they already were.
///
/// A thread that migrates between the load and the store is right all the same: it can do so only
/// if interrupts are on, and then they are on wherever it goes on.
#[inline]
pub fn save() -> bool {
    let masked = IRQ_MASKED.read() != 0;
    IRQ_MASKED.write(1);
    masked
}

/// Whether interrupts are masked on this CPU.
#[inline]
pub fn masked() -> bool {
    IRQ_MASKED.read() != 0
}

/// Unmasks interrupts unless `masked`, and handles what is pending.
///
/// # Safety
///
/// `masked` is what the matching [`save`] returned.
#[inline]
pub unsafe fn restore(masked: bool) {
    if masked {
        return;
    }
    loop {
        IRQ_MASKED.write(0);
        if IRQ_PENDING.read() == 0 {
            return;
        }
        // If the thread migrates here, it was by an interrupt, whose exit has handled what was
        // pending on the CPU it left; then there is nothing to do on this one.
        IRQ_MASKED.write(1);
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
        Ok(VECTOR_TIMER) => crate::tick::on_timer(),
        Ok(VECTOR_COMMAND) => crate::control::on_command(),
        Ok(VECTOR_IPI) => crate::ipi::on_ipi(),
        // Spurious: nothing asked for it, nothing is lost.
        _ => {}
    }
    drop(guard);
}
