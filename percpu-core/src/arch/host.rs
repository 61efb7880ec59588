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
/// no reference that was made under another offset; and the thread is no CPU of
/// [another copy](crate::host#several-copies-in-a-process) of this crate.
pub unsafe fn set_offset(offset: usize) {
    #[cfg(any(loom, shuttle))]
    if crate::atomic::model::set_offset(offset) {
        return;
    }
    #[cfg(all(
        target_arch = "x86_64",
        not(any(miri, loom, shuttle, percpu_portable, feature = "up"))
    ))]
    // SAFETY: the thread is no CPU, or one of this copy; the rest is the caller's duty.
    unsafe {
        gs::set(offset, offset_of_thread().is_some());
    }
    OFFSET.set(offset);
}

/// Makes this thread no CPU.
///
/// # Safety
///
/// It is one, and holds no guard and no reference that was made while it was.
pub(crate) unsafe fn leave() {
    #[cfg(any(loom, shuttle))]
    if crate::atomic::model::set_offset(NO_CPU) {
        return;
    }
    OFFSET.set(NO_CPU);
    #[cfg(all(
        target_arch = "x86_64",
        not(any(miri, loom, shuttle, percpu_portable, feature = "up"))
    ))]
    // SAFETY: an operation looks at `OFFSET` first; otherwise the caller's duty.
    unsafe {
        gs::restore();
    }
}

/// Returns whether this thread, which is no CPU of this copy of the crate, is one of another copy.
pub(crate) fn is_cpu_of_another_copy() -> bool {
    #[cfg(all(
        target_arch = "x86_64",
        not(any(miri, loom, shuttle, percpu_portable, feature = "up"))
    ))]
    return gs::is_taken();
    // What says so is a thread-local of each copy, and there is no register that they share.
    #[cfg(not(all(
        target_arch = "x86_64",
        not(any(miri, loom, shuttle, percpu_portable, feature = "up"))
    )))]
    return false;
}

/// The GS base of this thread, which all copies of the crate in a process share.
///
/// A base other than 0 does not say that the thread is a CPU: a new thread begins with the base of
/// the thread that started it. So a thread that is a CPU says so by a value that all copies find and
/// that is not inherited: a thread-specific value of the C library. Each copy has a key of its own;
/// the value is made of the base, and other copies look for it under all keys there are.
#[cfg(all(target_arch = "x86_64", not(any(miri, loom, shuttle, percpu_portable, feature = "up"))))]
mod gs {
    use core::arch::asm;
    use core::cell::Cell;
    use core::ffi::{c_int, c_ulong, c_void};
    use core::ptr::{null, without_provenance};
    use std::sync::LazyLock;

    /// What makes a base the value that says so. The same in all versions of this crate.
    const CLAIM: usize = 0x7065_7263_7075_2121;

    std::thread_local! {
        /// The base before this thread became a CPU.
        static FOUND: Cell<usize> = const { Cell::new(0) };
    }

    /// The key of this copy of the crate.
    static KEY: LazyLock<libc::pthread_key_t> = LazyLock::new(|| {
        let mut key = 0;
        // SAFETY: writes a key; nothing is to be called when a thread ends.
        let failed = unsafe { libc::pthread_key_create(&raw mut key, None) };
        assert!(failed == 0, "the process has no key for a thread-specific value left");
        key
    });

    /// Whether programs may use the instructions: if not, the kernel has to do it.
    static FSGSBASE: LazyLock<bool> = LazyLock::new(|| {
        const HWCAP2_FSGSBASE: c_ulong = 1 << 1;
        // SAFETY: reads a word of the auxiliary vector.
        unsafe { libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 }
    });

    fn claim(base: usize) -> *const c_void {
        without_provenance(base ^ CLAIM)
    }

    /// Makes `base` this thread's base, as that of a CPU. `again` says that the thread is a CPU
    /// already.
    ///
    /// # Safety
    ///
    /// No other code needs the thread's base until it is [restored](restore).
    pub(super) unsafe fn set(base: usize, again: bool) {
        if !again {
            FOUND.set(read());
        }
        // SAFETY: the key was created; nothing is done with the value but to compare it.
        let failed = unsafe { libc::pthread_setspecific(*KEY, claim(base)) };
        assert!(failed == 0, "there is no memory for a thread-specific value");
        // SAFETY: passed on to the caller.
        unsafe { write(base) };
    }

    /// Gives the base back that was there before the thread became a CPU.
    ///
    /// # Safety
    ///
    /// No code needs the one that was [set](set).
    pub(super) unsafe fn restore() {
        // SAFETY: passed on to the caller.
        unsafe { write(FOUND.get()) };
        // SAFETY: as in `set`.
        unsafe { libc::pthread_setspecific(*KEY, null()) };
    }

    /// Returns whether a copy of the crate has made this thread a CPU.
    pub(super) fn is_taken() -> bool {
        let base = read();
        base != 0 && is_claimed(base)
    }

    #[cold]
    fn is_claimed(base: usize) -> bool {
        // SAFETY: asks for a number.
        let keys = unsafe { libc::sysconf(libc::_SC_THREAD_KEYS_MAX) };
        // SAFETY: the C library (glibc, musl) has a null pointer for keys that were not created.
        (0..keys as libc::pthread_key_t)
            .any(|key| unsafe { libc::pthread_getspecific(key) }.cast_const() == claim(base))
    }

    fn read() -> usize {
        const ARCH_GET_GS: c_int = 0x1004;

        let mut base = 0usize;
        if *FSGSBASE {
            // SAFETY: the kernel says that programs may use the instruction, which reads a register.
            unsafe { asm!("rdgsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
        } else {
            // SAFETY: writes this thread's base to `base`.
            let failed = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_GS, &raw mut base) };
            assert!(failed == 0, "the kernel does not tell this thread's GS base");
        }
        base
    }

    /// # Safety
    ///
    /// As [`set`].
    unsafe fn write(base: usize) {
        const ARCH_SET_GS: c_int = 0x1001;

        if *FSGSBASE {
            // SAFETY: the kernel says that programs may use the instruction; that no other code needs
            // the base is the caller's duty.
            unsafe {
                asm!("wrgsbase {}", in(reg) base, options(nostack, preserves_flags));
            }
        } else {
            // SAFETY: sets the GS base of this thread and touches no memory; as above.
            let failed = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
            assert!(failed == 0, "the kernel refuses {base:#x} as this thread's GS base");
        }
    }
}
