//! Shortage on purpose: from some request on, the kernel grants percpu-core no memory. By that the
//! host sees what a failed growth leaves behind.

use core::sync::atomic::{AtomicU64, Ordering};

/// Requests that are still granted; `u64::MAX` where memory is not short.
static GRANTED: AtomicU64 = AtomicU64::new(u64::MAX);

/// Runs `work`, during which `granted` requests for memory are granted and no more. Nobody else may
/// be about who could ask for memory.
pub fn with<R>(granted: u64, work: impl FnOnce() -> R) -> R {
    GRANTED.store(granted, Ordering::SeqCst);
    let result = work();
    GRANTED.store(u64::MAX, Ordering::SeqCst);
    result
}

/// Whether a request for memory is to be refused.
pub fn strikes() -> bool {
    if GRANTED.load(Ordering::Relaxed) == u64::MAX {
        return false;
    }
    GRANTED
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |granted| granted.checked_sub(1))
        .is_err()
}
