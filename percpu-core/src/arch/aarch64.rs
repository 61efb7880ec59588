//! AArch64: the offset lives in `TPIDR_EL1`, as in Linux. The operations are the portable ones.

use core::arch::asm;

/// The offset of this CPU.
#[inline(always)]
pub(crate) fn offset() -> usize {
    let offset;
    // SAFETY: reads a register. Not `pure`: the thread may have been moved since the last time.
    unsafe {
        asm!("mrs {}, tpidr_el1", out(reg) offset, options(nomem, nostack, preserves_flags));
    }
    offset
}

/// Makes `offset` the offset of this CPU: from now on it works on the unit at
/// `template start + offset`. Linux: `set_my_cpu_offset`.
///
/// For a kernel at EL1. `TPIDR_EL1` belongs to this crate from then on.
///
/// # Safety
///
/// `offset` is 0 (the template itself, before set-up, on the boot CPU alone) or the offset of a
/// unit that no other CPU uses as its own; the caller holds no guard and no reference that was
/// made under another offset.
#[inline]
pub unsafe fn set_offset(offset: usize) {
    // SAFETY: writes a register that is this crate's; what that means for later operations is the
    // caller's duty.
    unsafe { asm!("msr tpidr_el1, {}", in(reg) offset, options(nostack, preserves_flags)) };
}
