//! What an image holds for the host to find before it runs: the header, descriptor tables, tests,
//! workloads.

use core::mem::size_of;
use core::sync::atomic::AtomicU64;

use percpu_core::view::View;

/// What the host must know of an image before it can start it: found by the symbol
/// [`IMAGE_HEADER_SYMBOL`] in the ELF file.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// [`MAGIC`](super::MAGIC).
    pub magic: u64,
    /// [`ABI_VERSION`](super::ABI_VERSION) of the image.
    pub version: u32,
    /// `size_of::<SharedHeader>()` in the image.
    pub header_size: u32,
    /// 64-bit entry of the boot CPU.
    pub entry: u64,
    /// 64-bit entry of CPUs started by the host (`direct`): rdi = CPU number.
    pub ap_entry: u64,
    /// Address of an array of [`MAX_CPUS`](super::MAX_CPUS) [`CpuTables`].
    pub tables: u64,
    /// Stack top of the boot CPU; AP c starts on the stack of [`CpuTables::start_rsp`].
    pub boot_stack: u64,
    /// Interrupt descriptor table, 256 gates, shared by all CPUs.
    pub idt: u64,
    /// Not 0: built for a target with a red zone, can run in ring 3 only.
    pub ring3_only: u64,
    /// 64-bit code that copies pages for the host: rbx = address of pairs of addresses (to, from), r12 =
    /// their number; then it rings [`Doorbell::Restored`](super::Doorbell::Restored). 0 = not built
    /// for a host that runs CPUs one at a time.
    pub restore: u64,
    /// Template address of the CPU's count of masked interrupts, 32 bits: what a host must look at that
    /// interrupts a CPU without the guest's own ring-0 stubs. In every CPU's copy it counts from there.
    pub irq_masked: u64,
    /// There likewise the word in which interrupts are noted while they are masked, bit 0 = vector 0x40.
    pub irq_pending: u64,
    /// Where the interrupted thread goes on if they are not masked, with a frame as the stub makes it.
    pub irq_continue: u64,
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
    /// CPUs online when it starts (low 16 bits), CPUs possible (next 16); bit 32: it runs only when
    /// asked for.
    pub cpus: u64,
}
// SAFETY: `repr(C)` of integers without padding.
unsafe impl View for TestEntry {}

/// Section of the array of [`WorkloadEntry`].
pub const WORKLOAD_SECTION: &str = "guest_workloads";
/// Workloads that an image can have.
pub const MOST_WORKLOADS: usize = 16;

/// A workload, in the section [`WORKLOAD_SECTION`]; its place there is its bit in
/// [`BootParams::workloads`](super::BootParams::workloads).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// Address of the name.
    pub name: u64,
    /// Bytes of the name.
    pub name_len: u64,
    /// Addresses of its functions, for the guest itself.
    pub functions: [u64; 4],
    /// [`NOT_FOR_SEEDS`].
    pub flags: u64,
}
// SAFETY: `repr(C)` of integers without padding.
unsafe impl View for WorkloadEntry {}

/// In [`WorkloadEntry::flags`]: scenarios made out of seeds leave it out.
pub const NOT_FOR_SEEDS: u64 = 1;
