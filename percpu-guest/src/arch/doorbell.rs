//! Calls of the host.

use percpu_guest::abi::{DOORBELL, Doorbell};

/// Tells the host `bell` with an argument below 2^56. The host has acted when the call returns.
pub fn ring(bell: Doorbell, argument: u64) {
    let page = core::ptr::without_provenance_mut::<u64>(DOORBELL as usize);
    // SAFETY: the doorbell page is mapped and has no memory behind it; the store is a call.
    unsafe { page.write_volatile(argument << 8 | u64::from(bell as u8)) };
}

/// Tells the host `bell` and executes nothing more.
pub fn ring_last(bell: Doorbell, argument: u64) -> ! {
    loop {
        ring(bell, argument);
    }
}
