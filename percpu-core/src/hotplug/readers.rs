//! The lock that keeps the online mask still: many readers, or one CPU on its way.

use core::marker::PhantomData;

use crate::atomic::{AtomicU32, Ordering};
use crate::platform::{Global, Platform};

/// Set while a CPU goes up or down, or is about to.
const WRITER: u32 = 1 << 31;

/// Number of readers, and [`WRITER`].
static STATE: AtomicU32 = AtomicU32::new(0);

/// Keeps every CPU as it is, up or down, until the guard is dropped. Linux: `cpus_read_lock`.
///
/// Lets other threads run until no CPU is on its way. Not for step callbacks, for which the masks
/// stand still anyway, and not twice on one thread: a CPU that wants to go between the two would
/// wait for the first and hold up the second.
pub fn cpus_read_lock() -> CpusReadGuard {
    loop {
        let state = STATE.load(Ordering::Relaxed);
        if state & WRITER == 0
            && STATE
                .compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        {
            return CpusReadGuard { not_send: PhantomData };
        }
        Global::yield_now();
    }
}

/// Proof that the online mask stands still. Linux: the stretch up to `cpus_read_unlock`.
#[must_use = "the online mask may change as soon as the guard is dropped"]
#[derive(Debug)]
pub struct CpusReadGuard {
    not_send: PhantomData<*mut ()>,
}

impl Drop for CpusReadGuard {
    fn drop(&mut self) {
        STATE.fetch_sub(1, Ordering::Release);
    }
}

/// Keeps readers out; held by whoever holds the control lock, so there is one at most.
pub(super) struct WriteGuard(());

/// Waits until the last reader is gone.
pub(super) fn write_lock() -> WriteGuard {
    STATE.fetch_or(WRITER, Ordering::Relaxed);
    while STATE.load(Ordering::Acquire) != WRITER {
        Global::yield_now();
    }
    WriteGuard(())
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        STATE.fetch_and(!WRITER, Ordering::Release);
    }
}
