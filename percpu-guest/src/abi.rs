//! Shared memory, events, commands and doorbells.
//!
//! Everything lies in guest-physical memory, which the guest maps one to one:
//!
//! | from | what |
//! |---|---|
//! | 0 | never mapped |
//! | [`TRAMPOLINE`] | one page of real-mode code for APs, written by the guest |
//! | [`PAGE_TABLES`] | the tables of the identity map, written by the host |
//! | [`SHARED`] | [`SharedHeader`], then a [`ControlBlock`], an [`EventRing`] and a [`LogRing`] a CPU |
//! | [`IMAGE`] | the guest's ELF image |
//! | after it | page frames, the guest's own |
//!
//! Fields that change while both sides look are atomics; the host reads them by offset through its
//! own bounds-checked accessors and never makes a reference to guest memory.

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64};

use percpu_core::view::{Roots, View};

mod bench;
mod codes;
mod image;
mod turns;

pub use bench::*;
pub use codes::*;
pub use image::*;
pub use turns::*;

/// First field of [`SharedHeader`] and [`ImageHeader`].
pub const MAGIC: u64 = u64::from_le_bytes(*b"percpuVM");
/// Changes whenever anything in this module changes its layout or meaning.
pub const ABI_VERSION: u32 = 12;

/// The most CPUs the guest can be given.
pub const MAX_CPUS: usize = 64;
/// The APs' real-mode entry page; SIPI vector = address >> 12.
pub const TRAMPOLINE: u64 = 0x8000;
/// The boot page tables: PML4, PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x1_0000;
/// The shared region.
pub const SHARED: u64 = 0x10_0000;
/// Where the image is linked.
pub const IMAGE: u64 = 0x200_0000;
/// An address without memory: a 64-bit store here exits to the host, in either ring. Bits 0..8 are
/// a [`Doorbell`] code, bits 8..64 its argument.
pub const DOORBELL: u64 = 0xd000_0000;
/// Virtual addresses from which the guest maps chunk pages.
pub const CHUNK_SPACE: u64 = 0x80_0000_0000;

/// Vector of the host's doorbell interrupt: "look at the command ring".
pub const VECTOR_COMMAND: u8 = 0x40;
/// Vector of the LAPIC timer.
pub const VECTOR_TIMER: u8 = 0x41;
/// Vector of the guest's own IPIs.
pub const VECTOR_IPI: u8 = 0x42;

/// Workload threads' ledger: rows (threads) that the shared region has room for.
pub const LEDGER_THREADS: usize = 512;
/// Objects (counters, statics, mounts) a thread can keep a ledger entry for.
pub const LEDGER_SLOTS: usize = 128;
/// Objects of which each is one thread's alone and that are too many for the ledger.
pub const ACCOUNTS: usize = 2048;
/// In [`EventKind::CounterInit`]: the amounts in the slot of all threads and interrupts count.
pub const ALL_ROWS: u64 = u64::MAX;
/// In [`EventKind::CounterInit`]: what is named is no slot of the ledger but an account.
pub const IN_ACCOUNT: u64 = u64::MAX - 1;
/// In words that change as one the second is always so many times the first, wrapping.
pub const PAIR_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// Numbers of a set of statistics ([`SumKind::Stats`]): many, so that it takes a while to write them.
/// All but the first are [`PAIR_FACTOR`] times the first.
pub const STATS: usize = 16;
/// No counter of [`CounterRole::Limited`] passes this, on either side of zero.
pub const COUNTER_LIMIT: i64 = 1000;

/// Events an [`EventRing`] holds.
pub const EVENT_RING_LEN: usize = 2048;
/// Bytes a [`LogRing`] holds.
pub const LOG_RING_LEN: usize = 8192;
/// Commands a [`CommandRing`] holds.
pub const COMMAND_RING_LEN: usize = 64;

/// The 32-bit word that fills CPU `cpu`'s copy of an area with [`AreaContent::Pattern`].
pub const fn pattern_word(seed: u32, cpu: u32) -> u32 {
    seed ^ cpu.wrapping_mul(0x9e37_79b9)
}

/// What the host tells the guest at boot; not changed afterwards.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootParams {
    /// Seed of every random choice in the guest.
    pub seed: u64,
    /// First free page frame after the image.
    pub memory_start: u64,
    /// End of guest memory.
    pub memory_end: u64,
    /// Test to run: address of its function, 0 = run workloads.
    pub test: u64,
    /// Operations after which workload threads end, all together; 0 = never.
    pub operations: u64,
    /// TSC ticks a microsecond.
    pub tsc_mhz: u32,
    /// CPUs that can exist.
    pub possible: u32,
    /// CPUs that the guest brings up by itself at boot.
    pub boot_cpus: u32,
    /// [`BootMode`].
    pub boot_mode: u32,
    /// Privilege level the guest runs at, 0 or 3.
    pub ring: u32,
    /// Bits of workloads, by their places in [`WORKLOAD_SECTION`].
    pub workloads: u32,
    /// [`Fault`].
    pub fault: u32,
    /// Microseconds between timer interrupts.
    pub tick_us: u32,
    /// Threads of each workload.
    pub threads: u32,
    /// KiB that the area of one allocation may take over all possible CPUs: a bound on how long an
    /// operation lasts where everything is slow.
    pub reach_kib: u32,
    /// Rounds of each row of a benchmark, which runs in place of workloads; 0 = no benchmark.
    pub bench_rounds: u32,
    /// Microseconds that each subject is run at a stretch in a round.
    pub bench_us: u32,
    /// Not 0: the host emulates this ring, and has no instruction that exchanges two words.
    pub emulated: u32,
    /// The smallest batch of counters.
    pub smallest_batch: u32,
    /// [`BenchGroup`] of the benchmark.
    pub bench_group: u32,
    /// CPUs that the benchmark may have do something at the same time; all online at boot.
    pub bench_at_once: u32,
}
// SAFETY: `repr(C)` of integers without padding.
unsafe impl View for BootParams {}

/// A command of the host.
#[repr(C)]
pub struct CommandSlot {
    /// [`CommandKind`].
    pub kind: AtomicU32,
    /// CPU or other argument.
    pub arg0: AtomicU32,
    /// Second argument.
    pub arg1: AtomicU64,
}

/// Commands, host to guest. The host writes a slot, then `head`; the guest reads it, then writes
/// [`SharedHeader::commands_taken`].
#[repr(C)]
pub struct CommandRing {
    /// Commands ever written.
    pub head: AtomicU64,
    /// Slots; command n lies in slot n mod length.
    pub slots: [CommandSlot; COMMAND_RING_LEN],
}

/// Bytes of the head's first part, which the host alone writes: the guest's page tables map it
/// read-only, so a stray store there is a page fault at the instruction that did it.
pub const HOST_PART: usize = 4096;

/// The head of the shared region: the host's part, then the guest's.
#[repr(C)]
pub struct SharedHeader {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`ABI_VERSION`] of the host.
    pub version: u32,
    /// `size_of::<SharedHeader>()` on the host.
    pub size: u32,
    /// The host's orders.
    pub boot: BootParams,
    /// Not 0: workload threads stop at their next operation boundary.
    pub quiesce: AtomicU32,
    /// Not 0: workload threads end at their next boundary.
    pub stopping: AtomicU32,
    /// What the host asks for.
    pub commands: CommandRing,
    pad: [u64; (HOST_PART - 32 - size_of::<BootParams>() - size_of::<CommandRing>() + 8) / 8],
    /// [`ABI_VERSION`] of the guest; 0 before it looked. From here on the guest writes.
    pub guest_version: AtomicU32,
    /// `size_of::<SharedHeader>()` on the guest.
    pub guest_size: AtomicU32,
    /// Addresses of the core's structures, valid once [`EventKind::Booted`] is in a ring.
    pub roots: [AtomicU64; size_of::<Roots>() / 8],
    /// Template address of the guest's per-CPU `IRQ_MASKED` flag, for reports.
    pub irq_masked: AtomicU64,
    /// Ticket counter from which events take their sequence number; the first event is 1.
    pub event_seq: AtomicU64,
    /// Commands ever taken.
    pub commands_taken: AtomicU64,
    /// Workload threads (and interrupt handlers) that are between two operation boundaries.
    pub busy: AtomicU32,
    /// Workload threads that exist.
    pub threads: AtomicU32,
    /// What the kernel's balance thread did, and why.
    pub balance: BalanceCounts,
    /// How far the trace's replay has come.
    pub trace: TraceCounts,
    /// What the allocator holds of the kernel's memory.
    pub resources: Resources,
    /// Operations that workload threads have begun to end.
    pub operations_done: AtomicU64,
    /// The clock of a machine that runs CPUs one at a time.
    pub steps: Steps,
    /// Page frames from here to the end of memory were never handed out.
    pub frames_end: AtomicU64,
}

/// Counts about the balance work, since boot.
#[repr(C)]
pub struct BalanceCounts {
    /// Times that the thread balanced the allocator.
    pub done: AtomicU64,
    /// Chunks given back.
    pub freed_chunks: AtomicU64,
    /// Pages of a unit whose memory was given back.
    pub depopulated_pages: AtomicU64,
    /// Pages of a unit that got memory.
    pub populated_pages: AtomicU64,
    /// Times that there was no memory to be had.
    pub out_of_memory: AtomicU64,
    /// Atomic allocations that found no populated room.
    pub atomic_failures: AtomicU64,
}

/// The workload that replays a trace, pass by pass, where an image has one.
pub const TRACE: &str = "trace";

/// Counts of the workload [`TRACE`].
#[repr(C)]
pub struct TraceCounts {
    /// Operations that ended, those at the end of a pass included that free what is left.
    pub ops: AtomicU64,
    /// Times that the whole trace was replayed and everything of it freed.
    pub passes: AtomicU64,
}

/// Memory that the kernel has granted to percpu-core and not had back.
#[repr(C)]
pub struct Resources {
    /// Page frames behind chunks.
    pub frames: AtomicU64,
    /// Bytes of tables.
    pub meta: AtomicU64,
    /// Bytes of address space.
    pub space: AtomicU64,
}

/// What one CPU says about itself, all by the guest.
#[repr(C, align(64))]
pub struct ControlBlock {
    /// [`CpuState`].
    pub state: AtomicU32,
    /// Ledger row of the thread that runs now; `u32::MAX` if it is no workload thread.
    pub thread: AtomicU32,
    /// Grows with every timer interrupt that was handled.
    pub heartbeat: AtomicU64,
    /// Times this CPU came online.
    pub onlines: AtomicU64,
    /// Context switches.
    pub switches: AtomicU64,
    /// Operations of each workload that ended on this CPU.
    pub ops: [AtomicU64; MOST_WORKLOADS],
    /// Where CPUs run one at a time: the moment of the next timer interrupt, 0 if none is due.
    pub timer: AtomicU64,
    /// There likewise: virtual address of the CPU's word of pending interrupts, bit 0 = vector 0x40.
    pub pending: AtomicU64,
    /// What this CPU added in its timer interrupt and when it came up: a ledger row of its own, by
    /// slot, of which each has one writer.
    pub irq_ledger: [AtomicI64; LEDGER_SLOTS],
    /// Times that the guest itself held something against an invariant on this CPU, in the order of
    /// [`Invariant::ALL`].
    pub checks: [AtomicU64; Invariant::ALL.len()],
}

/// Guest-physical address of the [`ControlBlock`] of `cpu`.
pub const fn control_block(cpu: u32) -> u64 {
    SHARED + offset_of!(Shared, control) as u64 + cpu as u64 * size_of::<ControlBlock>() as u64
}

/// One thing that happened.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Event {
    /// Place in the total order of all CPUs' events, from 1, without holes. A thing is announced
    /// after it came to be and before it goes.
    pub seq: u64,
    /// Time stamp counter.
    pub tsc: u64,
    /// [`EventKind`].
    pub kind: u16,
    /// CPU that wrote it.
    pub cpu: u16,
    /// Ledger row of the thread; `u32::MAX` if none.
    pub thread: u32,
    /// Arguments, by kind.
    pub args: [u64; 5],
}
// SAFETY: `repr(C)` of integers without padding.
unsafe impl View for Event {}

/// Events of one CPU, guest to host. The guest writes a slot, then `head`; the host reads it, then
/// writes `tail`. When there is no room the event is not written, its ticket is lost and `dropped`
/// grows.
#[repr(C, align(64))]
pub struct EventRing {
    /// Events ever written.
    pub head: AtomicU64,
    /// Events not written.
    pub dropped: AtomicU64,
    pad: [u64; 6],
    /// Events ever taken, by the host.
    pub tail: AtomicU64,
    pad2: [u64; 7],
    /// Slots, each of the size of an [`Event`]; event n lies in slot n mod length.
    pub slots: [[AtomicU64; 8]; EVENT_RING_LEN],
}

/// Text that one CPU printed; oldest bytes are overwritten.
#[repr(C, align(64))]
pub struct LogRing {
    /// Bytes ever written; byte n lies at n mod length.
    pub head: AtomicU64,
    pad: [u64; 7],
    /// The text.
    pub bytes: [core::sync::atomic::AtomicU8; LOG_RING_LEN],
}

/// What every thread added to every object since its beginning: the host's independent account.
/// Only the row's own thread writes it.
#[repr(C, align(64))]
pub struct LedgerRow {
    /// Amount by slot.
    pub slots: [AtomicI64; LEDGER_SLOTS],
}

/// The shared region from [`SHARED`] on.
#[repr(C)]
pub struct Shared {
    /// Head.
    pub header: SharedHeader,
    /// By CPU.
    pub control: [ControlBlock; MAX_CPUS],
    /// By thread.
    pub ledger: [LedgerRow; LEDGER_THREADS],
    /// What each account's thread added to its object.
    pub accounts: [AtomicI64; ACCOUNTS],
    /// By CPU.
    pub logs: [LogRing; MAX_CPUS],
    /// By CPU.
    pub events: [EventRing; MAX_CPUS],
    /// Results of a benchmark.
    pub bench: BenchTable,
    /// Where CPUs run one at a time: who runs when.
    pub turns: Turns,
}

const _: () = {
    assert!(size_of::<Event>() == 64);
    assert!(size_of::<Roots>().is_multiple_of(8));
    assert!(offset_of!(SharedHeader, magic) == 0);
    assert!(offset_of!(SharedHeader, guest_version) == HOST_PART);
    assert!(SHARED + size_of::<Shared>() as u64 <= IMAGE);
};

/// Registers at an exception, as the ring-0 stub stores them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ExceptionFrame {
    /// rax, rbx, rcx, rdx, rsi, rdi, rbp, r8..r15.
    pub gpr: [u64; 15],
    /// Vector.
    pub vector: u64,
    /// Error code, 0 where the exception has none.
    pub error: u64,
    /// Interrupted instruction.
    pub rip: u64,
    /// Its code segment.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Interrupted stack.
    pub rsp: u64,
    /// Its segment.
    pub ss: u64,
}
// SAFETY: `repr(C)` of integers without padding.
unsafe impl View for ExceptionFrame {}

/// A panic's message and place.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanicRecord {
    /// Frame pointer of the panicking function.
    pub rbp: u64,
    /// Bytes of `message` in use.
    pub len: u64,
    /// UTF-8 text, with file and line.
    pub message: [u8; 496],
}
// SAFETY: `repr(C)` of integers without padding.
unsafe impl View for PanicRecord {}
