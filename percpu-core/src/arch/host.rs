//! Threads of a process as CPUs: a thread's offset, and operations for where there is no GS base.
//!
//! The offset is kept in a thread-local in every case: it tells whether the thread is a CPU at all.
//! On x86-64 it is also the thread's GS base, which Linux leaves to the program.

use core::cell::Cell;

std::thread_local! {
    /// Offset of the CPU that this thread is; 0 if it is none.
    static OFFSET: Cell<usize> = const { Cell::new(0) };
}

/// Panics unless this thread is a CPU.
#[inline(always)]
pub(crate) fn check() {
    if OFFSET.get() == 0 {
        not_a_cpu();
    }
}

#[cold]
#[inline(never)]
fn not_a_cpu() -> ! {
    panic!("this thread is no CPU: call percpu_core::host::enter before it uses per-CPU data");
}

/// The offset of the CPU that this thread is, 0 if it is none.
pub(crate) fn offset() -> usize {
    OFFSET.get()
}

/// Makes this thread the CPU whose unit lies at `template start + offset`, or none if `offset` is 0.
///
/// # Safety
///
/// `offset` is 0 or the offset of a unit that no other thread uses as its own; the caller holds no
/// guard and no reference that was made under another offset.
pub unsafe fn set_offset(offset: usize) {
    // SAFETY: the caller's duty is passed on as it is.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    unsafe {
        set_gs_base(offset)
    };
    OFFSET.set(offset);
}

/// # Safety
///
/// As [`set_offset`].
#[cfg(all(target_arch = "x86_64", not(miri)))]
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

#[cfg(any(miri, not(target_arch = "x86_64")))]
pub(crate) use portable::*;

#[cfg(any(miri, not(target_arch = "x86_64")))]
mod portable {
    use core::ptr::with_exposed_provenance_mut;
    use core::sync::atomic::{
        AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicU8, AtomicU16,
        AtomicU32, AtomicU64, AtomicUsize,
        Ordering::{AcqRel, Relaxed},
    };

    use super::super::{Number, Word};
    use super::{check, offset};

    /// Subtracts one from this CPU's copy; if that makes 0, calls `zero`.
    ///
    /// # Safety
    ///
    /// As [`Word::read`].
    pub(crate) unsafe fn dec_and_branch_if_zero(addr: usize, zero: fn()) {
        // SAFETY: the caller vouches for `addr`.
        if unsafe { u32::add_return(addr, u32::MAX) } == 0 {
            zero();
        }
    }

    /// Adds to this CPU's copy; whether the sum is negative.
    ///
    /// Also orders what the CPU did before against a swap of the copy by another one.
    ///
    /// # Safety
    ///
    /// As [`Word::read`].
    pub(crate) unsafe fn add_is_negative(addr: usize, value: i64) -> bool {
        // SAFETY: the caller vouches for `addr`; all other accesses are atomic.
        let before = unsafe { AtomicI64::from_ptr(here(addr)) }.fetch_add(value, AcqRel);
        before.wrapping_add(value) < 0
    }

    /// Where this CPU's copy lies.
    fn here<T>(addr: usize) -> *mut T {
        check();
        with_exposed_provenance_mut(addr.wrapping_add(offset()))
    }

    macro_rules! word {
        ($($ty:ident, $atomic:ident;)*) => {$(
            // SAFETY: each operation is one atomic access to the copy of the CPU that this thread
            // is, and stays during the access.
            unsafe impl Word for $ty {
                unsafe fn read(addr: usize) -> Self {
                    // SAFETY: the caller vouches for `addr`.
                    unsafe { Self::load(here(addr)) }
                }

                unsafe fn write(addr: usize, value: Self) {
                    // SAFETY: the caller vouches for `addr`.
                    unsafe { Self::store(here(addr), value) }
                }

                unsafe fn cmpxchg(addr: usize, old: Self, new: Self) -> Result<Self, Self> {
                    // SAFETY: the caller vouches for `addr`; all other accesses are atomic.
                    unsafe { $atomic::from_ptr(here(addr)) }
                        .compare_exchange(old, new, Relaxed, Relaxed)
                }

                unsafe fn load(ptr: *mut Self) -> Self {
                    // SAFETY: the caller vouches for `ptr`; all other accesses are atomic.
                    unsafe { $atomic::from_ptr(ptr) }.load(Relaxed)
                }

                unsafe fn store(ptr: *mut Self, value: Self) {
                    // SAFETY: the caller vouches for `ptr`; all other accesses are atomic.
                    unsafe { $atomic::from_ptr(ptr) }.store(value, Relaxed);
                }
            }
        )*};
    }

    macro_rules! number {
        ($($ty:ident, $atomic:ident;)*) => {$(
            word!($ty, $atomic;);

            // SAFETY: as for `Word`.
            unsafe impl Number for $ty {
                const ONE: Self = 1;

                unsafe fn add(addr: usize, value: Self) {
                    // SAFETY: the caller vouches for `addr`; all other accesses are atomic.
                    unsafe { $atomic::from_ptr(here(addr)) }.fetch_add(value, Relaxed);
                }

                unsafe fn sub(addr: usize, value: Self) {
                    // SAFETY: the caller vouches for `addr`; all other accesses are atomic.
                    unsafe { $atomic::from_ptr(here(addr)) }.fetch_sub(value, Relaxed);
                }

                unsafe fn inc(addr: usize) {
                    // SAFETY: the caller vouches for `addr`.
                    unsafe { Self::add(addr, 1) };
                }

                unsafe fn dec(addr: usize) {
                    // SAFETY: the caller vouches for `addr`.
                    unsafe { Self::sub(addr, 1) };
                }

                unsafe fn and(addr: usize, value: Self) {
                    // SAFETY: the caller vouches for `addr`; all other accesses are atomic.
                    unsafe { $atomic::from_ptr(here(addr)) }.fetch_and(value, Relaxed);
                }

                unsafe fn or(addr: usize, value: Self) {
                    // SAFETY: the caller vouches for `addr`; all other accesses are atomic.
                    unsafe { $atomic::from_ptr(here(addr)) }.fetch_or(value, Relaxed);
                }

                unsafe fn add_return(addr: usize, value: Self) -> Self {
                    // SAFETY: the caller vouches for `addr`; all other accesses are atomic.
                    unsafe { $atomic::from_ptr(here(addr)) }
                        .fetch_add(value, Relaxed)
                        .wrapping_add(value)
                }
            }
        )*};
    }

    number! {
        u8, AtomicU8;
        i8, AtomicI8;
        u16, AtomicU16;
        i16, AtomicI16;
        u32, AtomicU32;
        i32, AtomicI32;
        u64, AtomicU64;
        i64, AtomicI64;
        usize, AtomicUsize;
        isize, AtomicIsize;
    }
    word!(bool, AtomicBool;);
}
