//! Workloads of percpu-core, a file each.

mod alloc;
mod areas;
mod counter;
mod exchange;
mod mount;
mod refs;
mod statics;
mod trace;

use percpu_guest::abi::LEDGER_SLOTS;

pub use mount::Mount;

/// Ledger slots: whose is which.
mod slots {
    pub const STATICS: u32 = 0;
    pub const COUNTERS: u32 = 40;
    pub const STILL_COUNTERS: u32 = 56;
    pub const OWN_COUNTERS: u32 = 64;
    pub const MOUNTS: u32 = 80;
    pub const REFS: u32 = 96;
    pub const TREES: u32 = 104;
    pub const LAZY_COUNTERS: u32 = 112;
}
const _: () = assert!(slots::LAZY_COUNTERS + 16 <= LEDGER_SLOTS as u32);

/// Operations of a round between two boundaries, of which `usual` make sense where boundaries cost
/// something: one where each operation is to be a thing of its own.
const fn round(usual: u32) -> u32 {
    if cfg!(percpu_steps) { 1 } else { usual }
}

/// Which of `n` things to do: all of them, or, where each is to be done by itself, one.
fn parts(n: u64, random: u64) -> core::ops::Range<u64> {
    if cfg!(percpu_steps) {
        let one = random % n;
        one..one + 1
    } else {
        0..n
    }
}
