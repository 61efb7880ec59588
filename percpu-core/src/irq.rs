//! A guard that keeps interrupts away from this CPU.

use core::marker::PhantomData;

use crate::cpu::{self, CpuId};
use crate::platform::{Global, IrqState, Platform};

/// Masks interrupts on this CPU until the guard is dropped. Linux: `local_irq_save`.
///
/// The thread stays on its CPU meanwhile. Guards nest, and may be dropped in any order.
#[inline]
pub fn disable() -> IrqGuard {
    IrqGuard { state: Global::irq_save(), not_send: PhantomData }
}

/// Proof that interrupts are masked on this CPU. Linux: the stretch between `local_irq_save` and
/// `local_irq_restore`.
#[must_use = "interrupts come in again as soon as the guard is dropped"]
#[derive(Debug)]
pub struct IrqGuard {
    state: IrqState,
    /// Neither to be sent to nor to be seen from another thread, which may run elsewhere.
    not_send: PhantomData<*mut ()>,
}

impl IrqGuard {
    /// The CPU on which interrupts are masked.
    ///
    /// # Panics
    ///
    /// Before the per-CPU areas are set up.
    #[inline]
    pub fn cpu(&self) -> CpuId {
        cpu::current()
    }
}

impl Drop for IrqGuard {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the state is of this guard's own save, which nobody else restores.
        unsafe { Global::irq_restore(self.state) };
    }
}
