//! Set-up: the header by which the host finds its way in the image, and the boot CPU's first function.
//!
//! The boot CPU sets up memory and per-CPU areas and becomes an idle loop with a control thread beside
//! it. That thread brings the other CPUs up and then takes plug and unplug commands from the host, while
//! workload threads (or one guest test) run on whatever CPUs there are.

use percpu_core::cpu::CpuId;
use percpu_core::{alloc, area, counter, hotplug, view};

use crate::abi::{ABI_VERSION, BootMode, ImageHeader, MAGIC, SharedHeader};
#[cfg(percpu_steps)]
use crate::kernel::arch;
use crate::kernel::arch::{entry, irq, tables};
use crate::kernel::control;
use crate::kernel::cpus::CONTROL_CPU;
use crate::kernel::{cpus, ipi, mem, sched, shared};

/// What the host must know before the first instruction.
#[repr(transparent)]
struct Header(ImageHeaderPointers);

/// [`ImageHeader`] with pointers, which the linker fills in, in place of addresses.
#[repr(C)]
struct ImageHeaderPointers {
    magic: u64,
    version: u32,
    header_size: u32,
    entry: unsafe extern "C" fn() -> !,
    ap_entry: unsafe extern "C" fn() -> !,
    tables: *const u8,
    boot_stack: *const u8,
    idt: *const u8,
    ring3_only: u64,
    restore: Option<unsafe extern "C" fn() -> !>,
    irq_masked: *const u8,
    irq_pending: *const u8,
    irq_continue: unsafe extern "C" fn() -> !,
}
// SAFETY: never written; the pointers are for the host to read.
unsafe impl Sync for Header {}

const _: () = assert!(size_of::<Header>() == size_of::<ImageHeader>());

#[unsafe(no_mangle)]
#[used]
static PERCPU_GUEST_IMAGE: Header = Header(ImageHeaderPointers {
    magic: MAGIC,
    version: ABI_VERSION,
    header_size: size_of::<SharedHeader>() as u32,
    entry: entry::_start,
    ap_entry: entry::ap_start,
    tables: tables::first(),
    boot_stack: entry::boot_stack_top(),
    idt: tables::idt(),
    ring3_only: cfg!(not(target_os = "none")) as u64,
    #[cfg(percpu_steps)]
    restore: Some(arch::steps::restore_pages),
    #[cfg(not(percpu_steps))]
    restore: None,
    irq_masked: (&raw const irq::IRQ_MASKED).cast(),
    irq_pending: (&raw const irq::IRQ_PENDING).cast(),
    irq_continue: entry::irq_continue,
});

/// Areas of which a short run uses up the first chunk, and sees others come and go. Two units to a piece
/// of memory: an odd number of CPUs leaves the last unit of a chunk without one.
fn for_short_runs(usual: area::Config) -> area::Config {
    area::Config {
        reserved_size: 4 << 10,
        dyn_size: area::MIN_DYN_SIZE,
        atom_size: 128 << 10,
        ..usual
    }
}

/// The first Rust function of the boot CPU: interrupts masked, its own stack, GS base 0, which
/// makes the template its per-CPU area until there are real ones.
pub(super) extern "C" fn boot_main() -> ! {
    // SAFETY: the first thing the boot CPU does.
    unsafe { tables::init() };
    shared::handshake();
    mem::frames::init();

    let possible = shared::boot().possible;
    let usual = area::Config {
        reserved_size: 8 << 10,
        units_on_demand: true,
        boot_cpu: Some(CONTROL_CPU),
        ..area::Config::default()
    };
    let config = if cfg!(percpu_steps) { for_short_runs(usual) } else { usual };
    // SAFETY: the boot CPU is alone and has made no use of per-CPU data that would not survive the
    // copying. It uses none again before it has its offset.
    let areas = unsafe { area::setup_per_cpu_areas(0..possible, &config) };
    areas.expect("per-CPU areas");
    let boot = CpuId::new(CONTROL_CPU as usize).expect("the boot CPU is possible");
    // SAFETY: the offset is this CPU's; no reference into the template is alive.
    unsafe { percpu_core::arch::set_offset(area::offset(boot)) };
    ipi::enter(CONTROL_CPU);

    if shared::boot().boot_mode == BootMode::Sipi as u32 {
        entry::install_trampoline();
    }
    hotplug::init(&cpus::Machine, boot);
    for cpu in (0..possible as usize).filter_map(CpuId::new) {
        hotplug::set_present(cpu);
    }
    counter::set_smallest_batch(shared::boot().smallest_batch as i32);
    counter::register_hotplug_steps().expect("a place for the counters' hotplug steps");
    cpus::register_hotplug_steps();
    alloc::register_hotplug_steps().expect("a place for the allocator's hotplug step");
    shared::publish_roots(view::roots(), irq::IRQ_MASKED.ptr().raw() as u64);

    sched::spawn_bound(control::run, CONTROL_CPU);
    // SAFETY: on the boot CPU, once, and it goes on as its idle thread.
    unsafe { cpus::adopt_boot_cpu(CONTROL_CPU) };
    // SAFETY: a CPU begins masked once.
    unsafe { irq::unmask() };
    sched::idle()
}
