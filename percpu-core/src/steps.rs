//! The points at which a machine that runs several CPUs one at a time may go from one to another.
//!
//! In a build with `--cfg percpu_steps` the compiler puts a call before every load, store and branch.
//! What it does not see are the instructions on per-CPU copies, which are assembly, and atomic
//! read-modify-writes: those call [`point`] themselves. In any other build there is no such thing.

unsafe extern "C" {
    /// Supplied by the kernel. It may do what an interrupt may do.
    safe fn percpu_step();
}

/// Lets another CPU run here, if it is its turn.
#[inline(always)]
pub(crate) fn point() {
    percpu_step();
}
