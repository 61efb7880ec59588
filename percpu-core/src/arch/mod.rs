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

/// Whether [`add_is_negative`] is one step for other CPUs, too, so that they may swap the copy.
/// Where it is not, they have the CPU itself do that.
pub(crate) const REMOTE_SAFE: bool = cfg!(feature = "host");
