//! What a benchmark run tells the host: a table of rows, each written once.

use core::sync::atomic::{AtomicU32, AtomicU64};

use percpu_core::view::View;

/// Rows that the table has room for.
pub const BENCH_ROWS: usize = 96;
/// Rounds that a row has at most.
pub const BENCH_ROUNDS: u32 = 301;

/// The table. The guest writes row n, then `done = n + 1`; when that reaches `planned`, it is
/// complete.
#[repr(C, align(64))]
pub struct BenchTable {
    /// Rows there will be; 0 before the guest has got to it.
    pub planned: AtomicU32,
    /// Rows that are there.
    pub done: AtomicU32,
    /// 1 if the image was built with debug assertions, which cost time.
    pub debug_assertions: AtomicU32,
    pad: u32,
    /// Each of the size of a [`BenchRow`].
    pub rows: [[AtomicU64; size_of::<BenchRow>() / 8]; BENCH_ROWS],
}

/// How long one thing takes, on one or several CPUs, beside what it is measured against.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchRow {
    /// Heading under which it stands; UTF-8, filled up with zeroes.
    pub family: [u8; 24],
    /// What was measured, likewise. Rows of one name differ in `x`.
    pub name: [u8; 48],
    /// The bare instructions beside it, likewise.
    pub bare_name: [u8; 32],
    /// CPUs that did it at the same time.
    pub cpus: u32,
    /// Rounds that counted.
    pub rounds: u32,
    /// [`BenchTarget`](super::BenchTarget).
    pub target: u32,
    /// Its bound, in hundredths.
    pub bound: u32,
    /// [`BenchAxis`](super::BenchAxis): what `x` says.
    pub axis: u32,
    /// How many of them.
    pub x: u32,
    /// The subject.
    pub subject: BenchTimes,
    /// The bare instructions.
    pub bare: BenchTimes,
    /// A `lock xadd` on a word that all those CPUs share.
    pub shared: BenchTimes,
    /// An addition to a word that all those CPUs share, under a spin lock.
    pub locked: BenchTimes,
}
// SAFETY: `repr(C)` of integers without padding.
unsafe impl View for BenchRow {}

/// TSC ticks that one operation took, in thousandths, of all rounds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BenchTimes {
    /// The shortest.
    pub min: u64,
    /// The one in the middle.
    pub median: u64,
    /// The one that 99 in 100 do not exceed.
    pub p99: u64,
    /// By how much the quarters of the rounds differ in the time that counts: the shortest, or, of
    /// several CPUs, the one in the middle.
    pub noise: u64,
}

const _: () = assert!(size_of::<BenchRow>().is_multiple_of(8));
