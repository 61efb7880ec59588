//! The shared region, as the guest sees it.

use crate::abi::{
    ABI_VERSION, BootParams, ControlBlock, LedgerRow, MAGIC, SHARED, Shared, SharedHeader,
};
use percpu_core::view::Roots;

use core::sync::atomic::Ordering;

fn region() -> &'static Shared {
    let region = core::ptr::with_exposed_provenance::<Shared>(SHARED as usize);
    // SAFETY: the region is RAM mapped for good and used for nothing else. What changes in it is
    // atomic, but for the orders: the host writes those before the first instruction and, in the
    // deterministic machine, while the guest rings `Ready`. No reference to them is kept across that.
    unsafe { &*region }
}

/// The head of the region.
pub fn header() -> &'static SharedHeader {
    &region().header
}

/// The host's orders.
pub fn boot() -> &'static BootParams {
    &header().boot
}

/// The control block of `cpu`.
pub fn control(cpu: u32) -> &'static ControlBlock {
    &region().control[cpu as usize]
}

/// The control block of the CPU that runs this, which may change at any time unless preemption is
/// off.
pub fn this_control() -> &'static ControlBlock {
    control(percpu_core::cpu::this_cpu_raw())
}

/// The ledger row of thread `row`.
pub fn ledger(row: u32) -> &'static LedgerRow {
    &region().ledger[row as usize]
}

/// Account `n`.
pub fn account(n: u32) -> &'static core::sync::atomic::AtomicI64 {
    &region().accounts[n as usize]
}

/// The event ring of `cpu`.
pub fn events(cpu: u32) -> &'static crate::abi::EventRing {
    &region().events[cpu as usize]
}

/// The log ring of `cpu`.
pub fn log(cpu: u32) -> &'static crate::abi::LogRing {
    &region().logs[cpu as usize]
}

/// The benchmark's results.
pub fn bench() -> &'static crate::abi::BenchTable {
    &region().bench
}

/// Who runs when, where CPUs run one at a time.
#[cfg(percpu_steps)]
pub fn turns() -> &'static crate::abi::Turns {
    &region().turns
}

/// Tells the host which ABI this image has, and checks the host's.
pub fn handshake() {
    let header = header();
    header.guest_size.store(size_of::<SharedHeader>() as u32, Ordering::Relaxed);
    header.guest_version.store(ABI_VERSION, Ordering::Release);
    assert!(
        header.magic == MAGIC
            && header.version == ABI_VERSION
            && header.size as usize == size_of::<SharedHeader>(),
        "the host speaks ABI version {} (header of {} bytes), this image {} ({} bytes)",
        header.version,
        header.size,
        ABI_VERSION,
        size_of::<SharedHeader>(),
    );
}

/// Tells the host where the core's structures are.
pub fn publish_roots(roots: Roots, irq_masked: u64) {
    // SAFETY: `Roots` is a view: plain integers without padding, a multiple of eight bytes long.
    let words: [u64; size_of::<Roots>() / 8] = unsafe { core::mem::transmute(roots) };
    for (slot, word) in header().roots.iter().zip(words) {
        slot.store(word, Ordering::Relaxed);
    }
    header().irq_masked.store(irq_masked, Ordering::Release);
}
