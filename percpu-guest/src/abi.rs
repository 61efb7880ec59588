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

/// First field of [`SharedHeader`] and [`ImageHeader`].
pub const MAGIC: u64 = u64::from_le_bytes(*b"percpuVM");
/// Changes whenever anything in this file changes its layout or meaning.
pub const ABI_VERSION: u32 = 3;

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
pub const LEDGER_SLOTS: usize = 64;

/// Events an [`EventRing`] holds.
pub const EVENT_RING_LEN: usize = 2048;
/// Bytes a [`LogRing`] holds.
pub const LOG_RING_LEN: usize = 8192;
/// Commands a [`CommandRing`] holds.
pub const COMMAND_RING_LEN: usize = 64;

macro_rules! codes {
    ($($(#[$m:meta])* pub enum $name:ident: $repr:ident { $($(#[$vm:meta])* $variant:ident = $value:expr,)* })*) => {$(
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($repr)]
        pub enum $name { $($(#[$vm])* $variant = $value,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The one with this code, if there is one.
            pub const fn from_code(code: $repr) -> Option<Self> {
                match code { $($value => Some(Self::$variant),)* _ => None }
            }
        }
    )*};
}

codes! {
    /// What a store to the doorbell page says.
    pub enum Doorbell: u8 {
        /// The guest has executed its first instructions.
        Hello = 1,
        /// There is an event the host waits for (a plug is complete, a test is over).
        Event = 2,
        /// This CPU waits for one that may not be running: let others have the host's CPU.
        Yield = 3,
        /// Start the AP whose number is the argument (`direct` boot).
        StartCpu = 4,
        /// This CPU is dead and executes nothing more: its vCPU may be parked.
        Dead = 5,
        /// An exception nobody expected: the argument is the address of an [`ExceptionFrame`].
        Exception = 6,
        /// The kernel panicked: the argument is the address of a [`PanicRecord`].
        Panic = 7,
        /// The guest has nothing more to do.
        Exit = 8,
    }

    /// What a CPU is doing, as it says itself.
    pub enum CpuState: u32 {
        /// Never started, or dead and parked.
        Offline = 0,
        /// Between the start signal and the online mask.
        Starting = 1,
        /// Runs threads.
        Online = 2,
        /// On its way down.
        Dying = 3,
        /// Has left every mask; waits to be parked.
        Dead = 4,
        /// Stopped by a panic or an exception.
        Crashed = 5,
    }

    /// How CPUs after the first are started.
    pub enum BootMode: u32 {
        /// The guest sends INIT and SIPI.
        Sipi = 0,
        /// The host sets the vCPU's registers.
        Direct = 1,
    }

    /// What the host asks of the guest.
    pub enum CommandKind: u32 {
        /// Bring CPU `arg0` up.
        Plug = 1,
        /// Take CPU `arg0` down.
        Unplug = 2,
        /// From now on the hotplug step numbered `arg1` fails, once, for CPU `arg0`.
        FailStep = 3,
        /// Carry out [`Trial`] `arg0` with argument `arg1`, while all workloads rest.
        Trial = 4,
    }

    /// What the control thread does on purpose at a quiescent point, for the host to judge by what
    /// it finds before and after.
    pub enum Trial: u32 {
        /// Allocate a few areas and free some of them again.
        PrepareFrees = 1,
        /// Free what is no live area: what `PrepareFrees` freed, the inside of what it kept, statics,
        /// addresses that lead nowhere, and null. Changes nothing (I16).
        RefusedFrees = 2,
        /// Balance the allocator (I15).
        Balance = 3,
        /// Allocate until the next area needs more memory. Argument: a [`TrialSize`].
        FillUp = 4,
        /// Allocate one more area while the kernel grants only so many requests for memory. A
        /// failure changes nothing (I17). Argument: requests granted, and a [`TrialSize`] << 32.
        FailedGrowth = 5,
        /// Free all that the trials hold.
        Release = 6,
    }

    /// Sizes of areas of [`Trial::FillUp`] and [`Trial::FailedGrowth`].
    pub enum TrialSize: u32 {
        /// A page: more memory means a page of a chunk that is there.
        Page = 0,
        /// The largest there is: more memory means another chunk.
        Largest = 1,
    }

    /// What the guest tells the host.
    pub enum EventKind: u16 {
        /// Set-up is done, roots are valid.
        Booted = 1,
        /// A plug command is done. a0 = CPU, a1 = 0 or an error code ([`PlugError`]), a2 = command's sequence number.
        PlugDone = 2,
        /// An unplug command is done. As `PlugDone`.
        UnplugDone = 3,
        /// CPU a0 changed to [`CpuState`] a1.
        CpuChanged = 4,
        /// An area was handed out. a0 = per-CPU pointer, a1 = size as asked, a2 = alignment,
        /// a3 = what fills it (see [`AreaContent`]), a4 = fill seed.
        Alloc = 5,
        /// An area is about to be freed. a0 = per-CPU pointer.
        Free = 6,
        /// The content of area a0 is now a3, with seed a4.
        Filled = 7,
        /// A counter was made. a0 = address, a1 = initial amount, a2 = ledger slot, a3 = ledger row or u64::MAX for "sum of all rows".
        CounterInit = 8,
        /// A counter is about to be destroyed. a0 = address.
        CounterDestroy = 9,
        /// A conserved sum that is no `percpu_counter`: a0 = [`SumKind`], a1 = per-CPU pointer, a2 = ledger slot,
        /// a3 = initial sum.
        SumInit = 10,
        /// The guest itself saw an invariant broken. a0 = invariant ([`Invariant`]), a1 = CPU it concerns, a2 = object,
        /// a3 = seen, a4 = expected.
        Violation = 11,
        /// A guest test ended. a0 = 1 passed, 0 failed.
        TestDone = 12,
        /// An allocation was refused for want of memory. a0 = size, a1 = alignment.
        AllocFailed = 13,
        /// A trial is over. a0 = [`Trial`], a1 = operations tried, a2 = those that ended as specified
        /// (`RefusedFrees`), were refused (`FailedGrowth`, `FillUp`), a3 = command's sequence number.
        TrialDone = 14,
    }

    /// Bytes the host can expect in an area, on every possible CPU.
    pub enum AreaContent: u32 {
        /// Nobody has written: zero everywhere (I14).
        Zero = 0,
        /// Every 32-bit word of CPU c's copy equals `seed ^ (c * 0x9e37_79b9)`.
        Pattern = 1,
        /// Anything.
        Any = 2,
    }

    /// Kinds of conserved sums.
    pub enum SumKind: u32 {
        /// A `u64` for each possible CPU, wrapping.
        Word = 0,
    }

    /// Why a plug or an unplug failed.
    pub enum PlugError: u32 {
        /// The CPU is not possible.
        NoSuchCpu = 1,
        /// The CPU is already in the state asked for.
        AlreadyThere = 2,
        /// The last online CPU, or the boot CPU, cannot go down.
        Busy = 3,
        /// The CPU never arrived.
        TimedOut = 4,
        /// A step's callback failed and the steps before it were rolled back.
        StepFailed = 5,
        /// There is no memory for the CPU's per-CPU data.
        NoMemory = 6,
    }

    /// Invariants the guest can see broken by itself, by their number in the specification.
    pub enum Invariant: u32 {
        /// Memory handed out is zero on every possible CPU.
        I14 = 14,
        /// A quiescent sum equals the initial amount and all adds.
        K1 = 101,
        /// |local| < batch.
        K2 = 102,
        /// A conserved per-CPU sum lost or gained something.
        S1 = 201,
        /// A mount's counts are wrong.
        M1 = 202,
    }

    /// The workloads.
    pub enum Workload: u32 {
        /// `this_cpu` operations on static variables, from threads and from interrupts.
        Statics = 0,
        /// Counters: many writers, tiny batches, creation and destruction.
        Counter = 1,
        /// Allocator churn.
        Alloc = 2,
        /// Mounts with per-CPU reference counts.
        Mount = 3,
        /// A recorded trace of allocations, replayed by all threads together.
        Trace = 4,
    }

    /// Deliberate misbehaviour, for tests of the host.
    pub enum Fault: u32 {
        /// None.
        None = 0,
        /// A Rust panic on a CPU under load.
        Panic = 1,
        /// A triple fault.
        TripleFault = 2,
        /// An endless loop with interrupts masked.
        SpinMasked = 3,
        /// Stray stores over the shared header.
        ScribbleHeader = 4,
        /// A read of an address that is not mapped.
        PageFault = 5,
    }
}

impl Workload {
    /// The name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Statics => "statics",
            Self::Counter => "counter",
            Self::Alloc => "alloc",
            Self::Mount => "mount",
            Self::Trace => "trace",
        }
    }

    /// The bit in [`BootParams::workloads`].
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl Fault {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Panic => "panic",
            Self::TripleFault => "triple-fault",
            Self::SpinMasked => "spin-masked",
            Self::ScribbleHeader => "scribble-header",
            Self::PageFault => "page-fault",
        }
    }
}

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
    /// Bits of [`Workload`].
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

/// Counts of the workload [`Workload::Trace`].
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
    pub ops: [AtomicU64; 8],
    /// What this CPU's timer interrupt added: a ledger row of its own, by slot.
    pub irq_ledger: [AtomicI64; LEDGER_SLOTS],
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
    /// By CPU.
    pub logs: [LogRing; MAX_CPUS],
    /// By CPU.
    pub events: [EventRing; MAX_CPUS],
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

/// What the host must know of an image before it can start it: found by the symbol
/// [`IMAGE_HEADER_SYMBOL`] in the ELF file.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`ABI_VERSION`] of the image.
    pub version: u32,
    /// `size_of::<SharedHeader>()` in the image.
    pub header_size: u32,
    /// 64-bit entry of the boot CPU.
    pub entry: u64,
    /// 64-bit entry of CPUs started by the host (`direct`): rdi = CPU number.
    pub ap_entry: u64,
    /// Address of an array of [`MAX_CPUS`] [`CpuTables`].
    pub tables: u64,
    /// Stack top of the boot CPU; AP c starts on the stack of [`CpuTables::start_rsp`].
    pub boot_stack: u64,
    /// Interrupt descriptor table, 256 gates, shared by all CPUs.
    pub idt: u64,
    /// Not 0: built for a target with a red zone, can run in ring 3 only.
    pub ring3_only: u64,
}
// SAFETY: `repr(C)` of integers without padding.
unsafe impl View for ImageHeader {}

/// Symbol of the [`ImageHeader`].
pub const IMAGE_HEADER_SYMBOL: &str = "PERCPU_GUEST_IMAGE";
/// Section of the array of [`TestEntry`].
pub const TEST_SECTION: &str = "guest_tests";

/// Selector of ring-0 code in every CPU's GDT.
pub const CODE0: u16 = 0x08;
/// Selector of ring-0 data.
pub const DATA0: u16 = 0x10;
/// Selector of ring-3 data.
pub const DATA3: u16 = 0x20 | 3;
/// Selector of ring-3 code.
pub const CODE3: u16 = 0x28 | 3;
/// Selector of the CPU's TSS.
pub const TSS: u16 = 0x38;

/// A CPU's descriptor tables, where the host (`direct`, boot CPU) and the trampoline (`sipi`) find
/// them. The guest fills a CPU's tables before it is started, the boot CPU's as its first act: an
/// exception before that is a triple fault.
#[repr(C, align(4096))]
pub struct CpuTables {
    /// Global descriptor table.
    pub gdt: [u64; 16],
    /// 64-bit task state segment: RSP0 and IST1 used.
    pub tss: [u32; 26],
    pad: [u32; 6],
    /// Stack on which the CPU starts.
    pub start_rsp: AtomicU64,
    /// GS base with which it starts.
    pub gs_base: AtomicU64,
    pad2: [u64; 14],
    /// Stack of double faults, IST1 = its end.
    pub ist1: [u8; 1024],
    /// Ring-0 stack of stubs, RSP0 = its end.
    pub stack0: [u8; 2688],
}

/// Limit of the TSS: its size less one.
pub const TSS_LIMIT: u32 = 103;

const _: () = assert!(size_of::<CpuTables>() == 4096);

/// A guest test, in the section [`TEST_SECTION`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestEntry {
    /// Address of the name.
    pub name: u64,
    /// Bytes of the name.
    pub name_len: u64,
    /// Address of the function.
    pub function: u64,
    /// CPUs online when it starts (low 16 bits), CPUs possible (next 16).
    pub cpus: u64,
}
// SAFETY: `repr(C)` of integers without padding.
unsafe impl View for TestEntry {}
