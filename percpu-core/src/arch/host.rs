//! Threads of a process as CPUs: which CPU a thread is.
//!
//! The offset is kept in a thread-local in every case: it tells whether the thread is a CPU at all.
//! On x86-64 it is also the thread's GS base, which Linux leaves to the program.

use core::cell::Cell;

/// No CPU's offset: units and template begin on pages.
const NO_CPU: usize = 1;

std::thread_local! {
    /// Offset of the CPU that this thread is, or [`NO_CPU`].
    static OFFSET: Cell<usize> = const { Cell::new(NO_CPU) };
}

/// Panics unless this thread is a CPU.
#[inline(always)]
pub(crate) fn check() {
    if raw_offset() == NO_CPU {
        not_a_cpu();
    }
}

#[cold]
#[inline(never)]
fn not_a_cpu() -> ! {
    panic!("this thread is no CPU: call percpu_core::host::enter before it uses per-CPU data");
}

/// The offset of the CPU that this thread is.
///
/// # Panics
///
/// If it is none.
#[inline(always)]
#[cfg_attr(
    all(target_arch = "x86_64", not(any(miri, loom, shuttle, percpu_portable))),
    expect(dead_code, reason = "instructions add it by themselves")
)]
pub(crate) fn offset() -> usize {
    check();
    raw_offset()
}

/// The offset of the CPU that this thread is, if it is one.
pub(crate) fn offset_of_thread() -> Option<usize> {
    Some(raw_offset()).filter(|&offset| offset != NO_CPU)
}

#[inline(always)]
fn raw_offset() -> usize {
    #[cfg(any(loom, shuttle))]
    if let Some(offset) = crate::atomic::model::offset() {
        return offset.unwrap_or(NO_CPU);
    }
    OFFSET.get()
}

/// Makes this thread the CPU whose unit lies at `template start + offset`.
///
/// # Safety
///
/// `offset` is that of a unit that no other thread uses as its own; the caller holds no guard and
/// no reference that was made under another offset.
pub unsafe fn set_offset(offset: usize) {
    #[cfg(all(
        target_arch = "x86_64",
        not(any(miri, loom, shuttle, percpu_portable, feature = "up"))
    ))]
    // SAFETY: the caller's duty is passed on as it is.
    unsafe {
        set_gs_base(offset)
    };
    #[cfg(any(loom, shuttle))]
    if crate::atomic::model::set_offset(offset) {
        return;
    }
    OFFSET.set(offset);
}

/// Makes this thread no CPU.
///
/// # Safety
///
/// It holds no guard and no reference that was made while it was one.
pub(crate) unsafe fn leave() {
    // SAFETY: an access checks first; otherwise the caller's duty.
    unsafe { set_offset(NO_CPU) };
}

/// # Safety
///
/// As [`set_offset`].
#[cfg(all(target_arch = "x86_64", not(any(miri, loom, shuttle, percpu_portable, feature = "up"))))]
unsafe fn set_gs_base(base: usize) {
    const ARCH_SET_GS: libc::c_int = 0x1001;
    const HWCAP2_FSGSBASE: libc::c_ulong = 1 << 1;

    // SAFETY: reads a word of the auxiliary vector.
    if unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0 {
        // SAFETY: the kernel says that programs may use the instruction; user space on x86-64
        // Linux keeps nothing of its own in GS.
        unsafe { core::arch::asm!("wrgsbase {}", in(reg) base, options(nostack, preserves_flags)) };
        return;
    }
    // SAFETY: sets the GS base of this thread and touches no memory.
    let failed = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    assert!(failed == 0, "the kernel refuses {base:#x} as this thread's GS base");
}
