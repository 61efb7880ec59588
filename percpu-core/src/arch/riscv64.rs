//! RISC-V: the offset lives in `tp`, the thread pointer, of which a bare-metal program makes no other
//! use. The operations are the portable ones.

use core::arch::asm;

/// The offset of this CPU.
#[inline(always)]
pub(crate) fn offset() -> usize {
    let offset;
    // SAFETY: reads a register. Not `pure`: the thread may have been moved since the last time.
    unsafe { asm!("mv {}, tp", out(reg) offset, options(nomem, nostack, preserves_flags)) };
    offset
}

/// Makes `offset` the offset of this CPU: from now on it works on the unit at
/// `template start + offset`.
///
/// `tp` belongs to this crate from then on: it stays with the CPU when a thread leaves it, and a trap
/// handler sets it when it interrupts a program that has its own.
///
/// # Safety
///
/// `offset` is 0 (the template itself, before set-up, on the boot CPU alone) or the offset of a
/// unit that no other CPU uses as its own; the caller holds no guard and no reference that was
/// made under another offset.
#[inline]
pub unsafe fn set_offset(offset: usize) {
    // SAFETY: writes a register that is this crate's, and that compiled code without thread-local
    // variables does not touch; what it means for later operations is the caller's duty.
    unsafe { asm!("mv tp, {}", in(reg) offset, options(nostack, preserves_flags)) };
}
