//! Calls of the host.

use core::sync::atomic::{Ordering, compiler_fence};

use crate::abi::{DOORBELL, Doorbell};

/// Tells the host `bell` with an argument below 2^56. The host has acted when the call returns.
///
/// Where CPUs run one at a time, what one says of itself is answered without the host.
pub fn ring(bell: Doorbell, argument: u64) {
    #[cfg(percpu_steps)]
    if super::turns::take(bell, argument) {
        return;
    }
    call(bell, argument);
    // The host may have said when it wants to be asked.
    #[cfg(percpu_steps)]
    super::turns::look_again();
}

/// Calls the host.
pub(super) fn call(bell: Doorbell, argument: u64) {
    let page = core::ptr::without_provenance_mut::<u64>(DOORBELL as usize);
    // SAFETY: the doorbell page is mapped and has no memory behind it; the store is a call.
    unsafe { page.write_volatile(argument << 8 | u64::from(bell as u8)) };
    // The host may have written its orders meanwhile: nothing that was read before is still known.
    compiler_fence(Ordering::SeqCst);
}

/// Tells the host `bell` and executes nothing more.
pub fn ring_last(bell: Doorbell, argument: u64) -> ! {
    loop {
        ring(bell, argument);
    }
}
