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
//! | feature `host`, x86-64 | the thread's GS base | the same instruction, after a check that the thread is a CPU |
//! | feature `host` under Miri or on another machine | a thread-local | an atomic operation |

#[cfg(feature = "host")]
pub(crate) mod host;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86_64;

#[cfg(any(miri, not(target_arch = "x86_64")))]
use host as imp;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use x86_64 as imp;

#[cfg(all(not(target_arch = "x86_64"), not(feature = "host")))]
compile_error!(
    "percpu-core knows kernels on x86-64 only; on other machines enable the feature `host`"
);

/// Whether [`add_is_negative`] is one step for other CPUs, too, so that they may swap the copy.
/// Where it is not, they have the CPU itself do that.
pub(crate) const REMOTE_SAFE: bool = cfg!(feature = "host");

mod word;

pub use imp::set_offset;
pub(crate) use imp::{add_is_negative, dec_and_branch_if_zero};
pub(crate) use word::{Number, Word};
