//! The lock that keeps the online mask still: many readers, or one CPU on its way.

use core::marker::PhantomData;

use super::control::{self, Patience};
use super::{HotplugError, callback};
use crate::atomic::{AtomicU64, Ordering};
use crate::platform::{Global, Platform};

/// Set while a CPU goes up or down, or is about to.
const WRITER: u64 = 1 << 63;

/// Number of readers, and [`WRITER`]. Safe code can forget guards, but not 2^63 of them in a lifetime.
static STATE: AtomicU64 = AtomicU64::new(0);

/// Keeps every CPU as it is, up or down, until the guard is dropped. Linux: `cpus_read_lock`.
///
/// Lets other threads run until no CPU is on its way. Not for step callbacks, for which the masks
/// stand still anyway, and not twice on one thread: a CPU that wants to go between the two would
/// wait for the first and hold up the second, until it [gives up](HotplugError::Readers).
///
/// # Panics
///
/// If it would wait for ever: in a step's callback, where the platform [tells threads
/// apart](Platform::thread_id); and if the CPU that is on its way waits for a CPU that this thread
/// [occupies](super::CpuOps::occupied).
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
        callback::refuse();
        control::refuse_occupied();
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

/// Waits until the last reader is gone, but no longer than a CPU's answer may take.
pub(super) fn write_lock() -> Result<WriteGuard, HotplugError> {
    STATE.fetch_or(WRITER, Ordering::Relaxed);
    let guard = WriteGuard(());
    let mut patience = Patience::new();
    while STATE.load(Ordering::Acquire) != WRITER {
        if patience.is_exhausted() {
            return Err(HotplugError::Readers);
        }
    }
    Ok(guard)
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        STATE.fetch_and(!WRITER, Ordering::Release);
    }
}
