//! How a CPU reaches its own copy of a per-CPU variable.
//!
//! An operand is named by its *template address*: where the linker put a static, or the number
//! that is a dynamic pointer. The CPU adds its offset (`unit base - template start`) by itself, so
//! that fetching the offset and touching the operand are one step, and a thread that is moved in
//! between cannot end up on the wrong copy.
//!
//! | build | the offset lives in | an operation is |
//! |---|---|---|
//! | kernel, x86-64 | GS base | one instruction with a `gs` prefix |
//! | kernel, AArch64 | `TPIDR_EL1` | a load and a store with interrupts masked |
//! | kernel, RISC-V | `tp` | the same |
//! | feature `up` | nowhere: it is 0 | the same, on x86-64 one instruction |
//! | feature `host`, x86-64 | the thread's GS base | the kernel's instruction, after a check that the thread is a CPU |
//! | feature `host` under Miri, with `--cfg percpu_portable`, or on another machine | a thread-local | an atomic operation; on two words, a load and a store |
//!
//! A kernel's CPU without an offset works on the template: before set-up that is what the boot CPU
//! does, later it is a fault of the kernel (a CPU was started without its offset, or its GS base was
//! set to 0 by a load of the selector after [`set_offset`]). Builds with debug assertions panic at
//! the first operation then. In other builds the CPU's changes are lost, but never come to any CPU's
//! copy.
//!
//! # A new operation
//!
//! is a row of the table in `arch/operations.rs`, and its instruction in `arch/x86_64.rs`.
//!
//! # A new machine
//!
//! is a file here that keeps the offset somewhere ([`set_offset`] and its counterpart), with which
//! the portable operations work; and later its own form of the operations.

#[cfg(feature = "host")]
pub(crate) mod host;
mod operations;
mod word;

#[cfg(all(target_arch = "x86_64", not(any(miri, loom, shuttle, percpu_portable))))]
pub(crate) mod x86_64;
#[cfg(all(target_arch = "x86_64", not(any(miri, loom, shuttle, percpu_portable))))]
use x86_64 as imp;

#[cfg(not(all(target_arch = "x86_64", not(any(miri, loom, shuttle, percpu_portable)))))]
mod portable;
#[cfg(not(all(target_arch = "x86_64", not(any(miri, loom, shuttle, percpu_portable)))))]
use portable as imp;

// Where the offset lives.
#[cfg(feature = "host")]
use host as register;
#[cfg(all(not(any(feature = "host", feature = "up")), target_arch = "aarch64"))]
#[path = "aarch64.rs"]
mod register;
#[cfg(all(not(any(feature = "host", feature = "up")), target_arch = "riscv64"))]
#[path = "riscv64.rs"]
mod register;
#[cfg(all(not(feature = "host"), feature = "up"))]
#[path = "up.rs"]
mod register;
#[cfg(all(not(any(feature = "host", feature = "up")), target_arch = "x86_64"))]
use x86_64 as register;

#[cfg(not(any(
    feature = "host",
    feature = "up",
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
)))]
compile_error!(
    "percpu-core does not know where a kernel on this machine keeps a CPU's offset: add a file to \
     `arch/`, or enable the feature `host` or `up`"
);

#[cfg(not(all(target_arch = "x86_64", not(any(miri, loom, shuttle, percpu_portable)))))]
use register::offset;
pub use register::set_offset;

pub(crate) use imp::{add_is_negative, dec_static_and_branch_if_zero, inc_static};
pub(crate) use operations::operations;
pub(crate) use word::{Number, Single, Word};

/// Panics unless this thread is a CPU: before something that only a CPU may go on with. A kernel's
/// code always runs on one.
#[inline(always)]
pub(crate) fn check_cpu() {
    #[cfg(feature = "host")]
    host::check();
}

/// Whether [`add_is_negative`] is one step for other CPUs, too, if there are others, so that they may
/// swap the copy. Where it is not, they have the CPU itself do that.
pub(crate) const REMOTE_SAFE: bool = cfg!(any(feature = "host", feature = "up"));

/// Returns whether this is a CPU: a thread of a process need not be one.
#[inline(always)]
pub(crate) fn is_cpu() -> bool {
    #[cfg(feature = "host")]
    return host::offset_of_thread().is_some();
    #[cfg(not(feature = "host"))]
    return true;
}

/// Panics if `offset`, this CPU's, is none although the areas are set up.
#[cfg(all(debug_assertions, not(any(feature = "host", feature = "up"))))]
#[inline]
pub(crate) fn check_offset(offset: usize) {
    if offset == 0 && crate::area::is_set_up() {
        report_no_offset();
    }
}

/// Panics, but not while it does so already: the kernel's panic handler may use per-CPU data.
#[cfg(all(debug_assertions, not(any(feature = "host", feature = "up"))))]
#[cold]
#[inline(never)]
fn report_no_offset() {
    use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

    static REPORTING: AtomicBool = AtomicBool::new(false);

    /// Where panics unwind, the handler is done when this is dropped.
    struct Reported;

    impl Drop for Reported {
        fn drop(&mut self) {
            REPORTING.store(false, Relaxed);
        }
    }

    if !REPORTING.swap(true, Relaxed) {
        let _reported = Reported;
        no_offset();
    }
}

/// The panic of a kernel's CPU that has no offset.
#[cold]
#[inline(never)]
pub(crate) fn no_offset() -> ! {
    panic!(
        "this CPU has no offset: call `arch::set_offset(area::offset(cpu))` on it, after the last \
         load of a segment selector, before it uses per-CPU data"
    );
}
