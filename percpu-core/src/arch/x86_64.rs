//! x86-64: one instruction with a `gs` prefix an operation, no `lock`.
//!
//! A single instruction is not interrupted half-way and runs on one CPU; nobody else writes the
//! copy of that CPU, so no bus lock is needed. `xchg` with memory locks the bus unasked, which is
//! why an exchange is built on `cmpxchg`.
//!
//! In an `up` build there is one copy, at the variable's own address, and no prefix.

use core::arch::asm;
use core::convert::identity;

use super::{Number, Word};
use crate::var::{DoubleWord, RawPtr};

/// The segment whose base is the CPU's offset.
#[cfg(not(feature = "up"))]
macro_rules! seg {
    () => {
        "gs:"
    };
}
/// There is one CPU, whose offset is 0.
#[cfg(feature = "up")]
macro_rules! seg {
    () => {
        ""
    };
}

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
#[cfg(not(any(feature = "host", feature = "up")))]
#[inline]
pub unsafe fn set_offset(offset: usize) {
    // SAFETY: writes the GS base only; what that means for later operations is the caller's duty.
    unsafe { asm!("wrgsbase {}", in(reg) offset, options(nostack, preserves_flags)) };
}

/// The offset of this CPU.
#[cfg(all(debug_assertions, not(any(feature = "host", feature = "up"))))]
#[inline(always)]
pub(crate) fn offset() -> usize {
    let offset;
    // SAFETY: reads a register. Not `pure`: the thread may have been moved since the last time.
    unsafe { asm!("rdgsbase {}", out(reg) offset, options(nomem, nostack, preserves_flags)) };
    offset
}

/// A kernel's CPU has an offset from set-up on, which builds with debug assertions check; a thread of
/// a process has one only while it is a CPU. Where CPUs run one at a time, another may come before
/// the operation.
#[inline(always)]
pub(crate) fn check() {
    #[cfg(feature = "host")]
    super::host::check();
    #[cfg(all(debug_assertions, not(any(feature = "host", feature = "up"))))]
    super::check_offset(offset());
    #[cfg(percpu_steps)]
    crate::steps::point();
}

macro_rules! word {
    ({$($g:ident)?} $ty:ty as $reg_ty:ty, $from:expr, $into:expr, $class:ident, $modifier:literal, $size:literal, $acc:tt) => {
        // SAFETY: each operation is a single instruction that reads or writes the copy; `asm!` that
        // is not `readonly` is a compiler barrier. An exchange that others get in between of is done
        // again.
        unsafe impl $(<$g: 'static>)? Word for $ty {
            #[inline(always)]
            unsafe fn read<const IRQ_SAFE: bool>(addr: usize) -> Self {
                check();
                let value: $reg_ty;
                // SAFETY: the caller vouches for `addr`.
                unsafe {
                    asm!(
                        concat!("mov {v", $modifier, "}, ", $size, " ptr ", seg!(), "[{a}]"),
                        a = in(reg) addr,
                        v = lateout($class) value,
                        options(nostack, preserves_flags, readonly),
                    );
                }
                ($from)(value)
            }

            #[inline(always)]
            unsafe fn write<const IRQ_SAFE: bool>(addr: usize, value: Self) {
                check();
                // SAFETY: the caller vouches for `addr`.
                unsafe {
                    asm!(
                        concat!("mov ", $size, " ptr ", seg!(), "[{a}], {v", $modifier, "}"),
                        a = in(reg) addr,
                        v = in($class) ($into)(value),
                        options(nostack, preserves_flags),
                    );
                }
            }

            #[inline(always)]
            unsafe fn xchg<const IRQ_SAFE: bool>(addr: usize, value: Self) -> Self {
                // SAFETY: passed on to the caller.
                unsafe {
                    let mut old = Self::read::<IRQ_SAFE>(addr);
                    if IRQ_SAFE {
                        while !Self::try_cmpxchg::<IRQ_SAFE>(addr, &mut old, value) {}
                    } else {
                        Self::write::<IRQ_SAFE>(addr, value);
                    }
                    old
                }
            }

            #[inline(always)]
            unsafe fn cmpxchg<const IRQ_SAFE: bool>(
                addr: usize,
                old: Self,
                new: Self,
            ) -> Result<Self, Self> {
                check();
                let seen: $reg_ty;
                // SAFETY: the caller vouches for `addr`.
                unsafe {
                    asm!(
                        concat!("cmpxchg ", $size, " ptr ", seg!(), "[{a}], {n", $modifier, "}"),
                        a = in(reg) addr,
                        n = in($class) ($into)(new),
                        inout($acc) ($into)(old) => seen,
                        options(nostack),
                    );
                }
                let seen = ($from)(seen);
                if seen == old { Ok(seen) } else { Err(seen) }
            }

            #[inline(always)]
            unsafe fn try_cmpxchg<const IRQ_SAFE: bool>(
                addr: usize,
                old: &mut Self,
                new: Self,
            ) -> bool {
                // SAFETY: the caller vouches for `addr`.
                let result = unsafe { Self::cmpxchg::<IRQ_SAFE>(addr, *old, new) };
                if let Err(seen) = result {
                    *old = seen;
                }
                result.is_ok()
            }
        }
    };
}

macro_rules! binary {
    ($name:ident, $op:literal, $class:ident, $modifier:literal, $size:literal) => {
        #[inline(always)]
        unsafe fn $name<const IRQ_SAFE: bool>(addr: usize, value: Self) {
            check();
            // SAFETY: the caller vouches for `addr`.
            unsafe {
                asm!(
                    concat!($op, " ", $size, " ptr ", seg!(), "[{a}], {v", $modifier, "}"),
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
        unsafe fn $name<const IRQ_SAFE: bool>(addr: usize) {
            check();
            // SAFETY: the caller vouches for `addr`.
            unsafe {
                asm!(
                    concat!(stringify!($name), " ", $size, " ptr ", seg!(), "[{a}]"),
                    a = in(reg) addr,
                    options(nostack),
                );
            }
        }
    };
}

macro_rules! number {
    ($($ty:ident, $class:ident, $modifier:literal, $size:literal, $acc:tt;)*) => {$(
        word!({} $ty as $ty, identity, identity, $class, $modifier, $size, $acc);

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
            unsafe fn add_return<const IRQ_SAFE: bool>(addr: usize, value: Self) -> Self {
                check();
                let before: Self;
                // SAFETY: the caller vouches for `addr`.
                unsafe {
                    asm!(
                        concat!("xadd ", $size, " ptr ", seg!(), "[{a}], {v", $modifier, "}"),
                        a = in(reg) addr,
                        v = inout($class) value => before,
                        options(nostack),
                    );
                }
                before.wrapping_add(value)
            }

            #[inline(always)]
            unsafe fn sub_return<const IRQ_SAFE: bool>(addr: usize, value: Self) -> Self {
                // SAFETY: passed on to the caller.
                unsafe { Self::add_return::<IRQ_SAFE>(addr, value.wrapping_neg()) }
            }

            #[inline(always)]
            unsafe fn inc_return<const IRQ_SAFE: bool>(addr: usize) -> Self {
                // SAFETY: passed on to the caller.
                unsafe { Self::add_return::<IRQ_SAFE>(addr, 1) }
            }

            #[inline(always)]
            unsafe fn dec_return<const IRQ_SAFE: bool>(addr: usize) -> Self {
                // SAFETY: passed on to the caller.
                unsafe { Self::sub_return::<IRQ_SAFE>(addr, 1) }
            }
        }
    )*};
}

number! {
    u8, reg_byte, "", "byte", "al";
    i8, reg_byte, "", "byte", "al";
    u16, reg, ":x", "word", "ax";
    i16, reg, ":x", "word", "ax";
    u32, reg, ":e", "dword", "eax";
    i32, reg, ":e", "dword", "eax";
    u64, reg, ":r", "qword", "rax";
    i64, reg, ":r", "qword", "rax";
    usize, reg, ":r", "qword", "rax";
    isize, reg, ":r", "qword", "rax";
}
word!({} bool as u8, |byte| byte != 0, u8::from, reg_byte, "", "byte", "al");
word!({U} RawPtr<U> as usize, RawPtr::from_exposed, RawPtr::expose, reg, ":r", "qword", "rax");

// SAFETY: each operation ends with a `cmpxchg16b`, a single instruction, that finds the copy as it
// was expected; `asm!` without `nomem` is a compiler barrier.
unsafe impl Word for DoubleWord {
    /// Exchanges zero for zero, which changes nothing and reads.
    #[inline(always)]
    unsafe fn read<const IRQ_SAFE: bool>(addr: usize) -> Self {
        let zero = Self { low: 0, high: 0 };
        // SAFETY: passed on to the caller.
        match unsafe { Self::cmpxchg::<IRQ_SAFE>(addr, zero, zero) } {
            Ok(seen) | Err(seen) => seen,
        }
    }

    #[inline(always)]
    unsafe fn write<const IRQ_SAFE: bool>(addr: usize, value: Self) {
        // SAFETY: passed on to the caller.
        unsafe { Self::xchg::<IRQ_SAFE>(addr, value) };
    }

    #[inline(always)]
    unsafe fn xchg<const IRQ_SAFE: bool>(addr: usize, value: Self) -> Self {
        // SAFETY: passed on to the caller.
        unsafe {
            let mut old = Self::read::<IRQ_SAFE>(addr);
            while !Self::try_cmpxchg::<IRQ_SAFE>(addr, &mut old, value) {}
            old
        }
    }

    #[inline(always)]
    unsafe fn cmpxchg<const IRQ_SAFE: bool>(
        addr: usize,
        old: Self,
        new: Self,
    ) -> Result<Self, Self> {
        check();
        let mut seen = old;
        // SAFETY: the caller vouches for `addr`, which the type aligns to 16 bytes. The compiler
        // does not give `rbx` to operands but may use it itself: it gets back what it was.
        unsafe {
            asm!(
                "xchg {b}, rbx",
                concat!("cmpxchg16b xmmword ptr ", seg!(), "[rdi]"),
                "mov rbx, {b}",
                b = inout(reg) new.low => _,
                in("rcx") new.high,
                inout("rax") seen.low,
                inout("rdx") seen.high,
                in("rdi") addr,
                options(nostack),
            );
        }
        if seen == old { Ok(seen) } else { Err(seen) }
    }

    #[inline(always)]
    unsafe fn try_cmpxchg<const IRQ_SAFE: bool>(addr: usize, old: &mut Self, new: Self) -> bool {
        // SAFETY: the caller vouches for `addr`.
        let result = unsafe { Self::cmpxchg::<IRQ_SAFE>(addr, *old, new) };
        if let Err(seen) = result {
            *old = seen;
        }
        result.is_ok()
    }
}

/// Adds to this CPU's copy. Returns whether the sum is negative, or this is no CPU: then nothing was
/// added.
///
/// One instruction and a branch on its flags. Where other CPUs swap the copy it locks the bus.
///
/// # Safety
///
/// As [`Word::read`].
#[inline(always)]
pub(crate) unsafe fn add_is_negative(addr: usize, value: i64) -> bool {
    macro_rules! add {
        ($add:literal) => {
            // SAFETY: the caller vouches for `addr`; sum and branch use one and the same flags.
            unsafe {
                asm!(
                    concat!($add, " qword ptr ", seg!(), "[{a}], {v}"),
                    "js {negative}",
                    a = in(reg) addr,
                    v = in(reg) value,
                    negative = label { return true },
                    options(nostack),
                );
            }
        };
    }
    if !super::is_cpu() {
        return true;
    }
    #[cfg(percpu_steps)]
    crate::steps::point();
    #[cfg(feature = "host")]
    add!("lock add");
    #[cfg(not(feature = "host"))]
    add!("add");
    false
}

/// Adds one to this CPU's copy of a `PerCpu<u64>`: one instruction, the address in it.
macro_rules! inc_static {
    ($name:ident) => {{
        $crate::arch::x86_64::check();
        // SAFETY: a live static of type `u64`, of which nobody borrows a copy.
        unsafe {
            core::arch::asm!(
                concat!("inc qword ptr ", $crate::arch::x86_64::seg!(), "[rip + {v}]"),
                v = sym $name,
                options(nostack),
            )
        }
    }};
}

/// Subtracts one from this CPU's copy of a `PerCpu<u64>`; if that makes 0, calls `$zero`. Two
/// instructions.
macro_rules! dec_static_and_branch_if_zero {
    ($name:ident, $zero:expr) => {{
        $crate::arch::x86_64::check();
        // SAFETY: a live static of type `u64`, of which nobody borrows a copy; decrement and branch
        // use one and the same flags.
        unsafe {
            core::arch::asm!(
                concat!("dec qword ptr ", $crate::arch::x86_64::seg!(), "[rip + {v}]"),
                "jz {zero}",
                v = sym $name,
                zero = label { $zero() },
                options(nostack),
            )
        }
    }};
}

pub(crate) use {dec_static_and_branch_if_zero, inc_static, seg};
