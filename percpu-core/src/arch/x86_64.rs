//! x86-64: one instruction with a `gs` prefix an operation, no `lock`.
//!
//! A single instruction is not interrupted half-way and runs on one CPU; nobody else writes the
//! copy of that CPU, so no bus lock is needed. `xchg` with memory locks the bus unasked, which is
//! why an exchange is built on `cmpxchg`.

use core::arch::asm;
use core::sync::atomic::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicU8, AtomicU16,
    AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed,
};

use super::{Number, Word};

/// Makes `offset` the offset of this CPU: from now on it works on the unit at
/// `template start + offset`. Linux: `load_percpu_segment`.
///
/// Needs `CR4.FSGSBASE`, or a thread of a Linux process whose kernel allows the instruction.
///
/// # Safety
///
/// `offset` is 0 (the template itself, before set-up, on the boot CPU alone) or the offset of a
/// unit that no other CPU uses as its own; the caller holds no guard and no reference that was
/// made under another offset.
#[cfg(not(feature = "host"))]
#[inline]
pub unsafe fn set_offset(offset: usize) {
    // SAFETY: writes the GS base only; what that means for later operations is the caller's duty.
    unsafe { asm!("wrgsbase {}", in(reg) offset, options(nostack, preserves_flags)) };
}

#[cfg(feature = "host")]
pub use super::host::set_offset;

/// A kernel's CPU always has an offset; a thread of a process has one only while it is a CPU.
#[inline(always)]
fn check() {
    #[cfg(feature = "host")]
    super::host::check();
}

/// Subtracts one from this CPU's copy; if that makes 0, calls `zero`.
///
/// # Safety
///
/// As [`Word::read`].
#[inline(always)]
pub(crate) unsafe fn dec_and_branch_if_zero(addr: usize, zero: fn()) {
    check();
    // SAFETY: the caller vouches for `addr`; decrement and branch use one and the same flags.
    unsafe {
        asm!(
            "dec dword ptr gs:[{addr}]",
            "jz {zero}",
            addr = in(reg) addr,
            zero = label { zero() },
            options(nostack),
        );
    }
}

/// Adds to this CPU's copy; whether the sum is negative.
///
/// One instruction and a branch on its flags. Where other CPUs swap the copy
/// ([`REMOTE_SAFE`](super::REMOTE_SAFE)) it locks the bus.
///
/// # Safety
///
/// As [`Word::read`].
#[inline(always)]
pub(crate) unsafe fn add_is_negative(addr: usize, value: i64) -> bool {
    check();
    macro_rules! add {
        ($add:literal) => {
            // SAFETY: the caller vouches for `addr`; add and branch use one and the same flags.
            unsafe {
                asm!(
                    concat!($add, " qword ptr gs:[{addr}], {value}"),
                    "js {negative}",
                    addr = in(reg) addr,
                    value = in(reg) value,
                    negative = label { return true },
                    options(nostack),
                );
            }
        };
    }
    #[cfg(feature = "host")]
    add!("lock add");
    #[cfg(not(feature = "host"))]
    add!("add");
    false
}

macro_rules! word {
    ($ty:ty as $reg_ty:ty, $from:expr, $atomic:ident, $class:ident, $modifier:literal, $size:literal, $acc:tt) => {
        // SAFETY: each operation is a single instruction that reads or writes `gs:[addr]`; `asm!`
        // without `nomem` is a compiler barrier.
        unsafe impl Word for $ty {
            #[inline(always)]
            unsafe fn read(addr: usize) -> Self {
                check();
                let value: $reg_ty;
                // SAFETY: the caller vouches for `addr`.
                unsafe {
                    asm!(
                        concat!("mov {v", $modifier, "}, ", $size, " ptr gs:[{a}]"),
                        a = in(reg) addr,
                        v = lateout($class) value,
                        options(nostack, preserves_flags, readonly),
                    );
                }
                ($from)(value)
            }

            #[inline(always)]
            unsafe fn write(addr: usize, value: Self) {
                check();
                // SAFETY: the caller vouches for `addr`.
                unsafe {
                    asm!(
                        concat!("mov ", $size, " ptr gs:[{a}], {v", $modifier, "}"),
                        a = in(reg) addr,
                        v = in($class) value as $reg_ty,
                        options(nostack, preserves_flags),
                    );
                }
            }

            #[inline(always)]
            unsafe fn cmpxchg(addr: usize, old: Self, new: Self) -> Result<Self, Self> {
                check();
                let seen: $reg_ty;
                // SAFETY: the caller vouches for `addr`.
                unsafe {
                    asm!(
                        concat!("cmpxchg ", $size, " ptr gs:[{a}], {n", $modifier, "}"),
                        a = in(reg) addr,
                        n = in($class) new as $reg_ty,
                        inout($acc) old as $reg_ty => seen,
                        options(nostack),
                    );
                }
                let seen = ($from)(seen);
                if seen == old { Ok(seen) } else { Err(seen) }
            }

            #[inline(always)]
            unsafe fn load(ptr: *mut Self) -> Self {
                // SAFETY: the caller vouches for `ptr`; all other accesses are atomic.
                unsafe { $atomic::from_ptr(ptr) }.load(Relaxed)
            }

            #[inline(always)]
            unsafe fn store(ptr: *mut Self, value: Self) {
                // SAFETY: the caller vouches for `ptr`; all other accesses are atomic.
                unsafe { $atomic::from_ptr(ptr) }.store(value, Relaxed);
            }
        }
    };
}

macro_rules! binary {
    ($name:ident, $op:literal, $class:ident, $modifier:literal, $size:literal) => {
        #[inline(always)]
        unsafe fn $name(addr: usize, value: Self) {
            check();
            // SAFETY: the caller vouches for `addr`.
            unsafe {
                asm!(
                    concat!($op, " ", $size, " ptr gs:[{a}], {v", $modifier, "}"),
                    a = in(reg) addr,
                    v = in($class) value,
                    options(nostack),
                );
            }
        }
    };
}

macro_rules! unary {
    ($name:ident, $size:literal) => {
        #[inline(always)]
        unsafe fn $name(addr: usize) {
            check();
            // SAFETY: the caller vouches for `addr`.
            unsafe {
                asm!(
                    concat!(stringify!($name), " ", $size, " ptr gs:[{a}]"),
                    a = in(reg) addr,
                    options(nostack),
                );
            }
        }
    };
}

macro_rules! number {
    ($($ty:ident, $atomic:ident, $class:ident, $modifier:literal, $size:literal, $acc:tt;)*) => {$(
        word!($ty as $ty, core::convert::identity, $atomic, $class, $modifier, $size, $acc);

        // SAFETY: as for `Word`.
        unsafe impl Number for $ty {
            const ONE: Self = 1;

            binary!(add, "add", $class, $modifier, $size);
            binary!(sub, "sub", $class, $modifier, $size);
            binary!(and, "and", $class, $modifier, $size);
            binary!(or, "or", $class, $modifier, $size);
            unary!(inc, $size);
            unary!(dec, $size);

            #[inline(always)]
            unsafe fn add_return(addr: usize, value: Self) -> Self {
                check();
                let before: Self;
                // SAFETY: the caller vouches for `addr`.
                unsafe {
                    asm!(
                        concat!("xadd ", $size, " ptr gs:[{a}], {v", $modifier, "}"),
                        a = in(reg) addr,
                        v = inout($class) value => before,
                        options(nostack),
                    );
                }
                before.wrapping_add(value)
            }
        }
    )*};
}

number! {
    u8, AtomicU8, reg_byte, "", "byte", "al";
    i8, AtomicI8, reg_byte, "", "byte", "al";
    u16, AtomicU16, reg, ":x", "word", "ax";
    i16, AtomicI16, reg, ":x", "word", "ax";
    u32, AtomicU32, reg, ":e", "dword", "eax";
    i32, AtomicI32, reg, ":e", "dword", "eax";
    u64, AtomicU64, reg, ":r", "qword", "rax";
    i64, AtomicI64, reg, ":r", "qword", "rax";
    usize, AtomicUsize, reg, ":r", "qword", "rax";
    isize, AtomicIsize, reg, ":r", "qword", "rax";
}
word!(bool as u8, |byte| byte != 0, AtomicBool, reg_byte, "", "byte", "al");
