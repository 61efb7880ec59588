//! Per-CPU areas: one unit of memory a CPU, with a copy of every static variable.
//!
//! A kernel calls [`setup_per_cpu_areas`] once, on the boot CPU, before anything per-CPU is used:
//!
//! ```text
//! // SAFETY: the boot CPU is alone and has used no per-CPU variable yet.
//! unsafe { area::setup_per_cpu_areas(0..nr_cpus, &Config::default())? };
//! ```
//!
//! From then on CPU c's copy of the variable at template address a lies at `a + offset(c)`.
//!
//! # Implementation
//!
//! [`AllocInfo`] decides on sizes and on who gets which unit, [`FirstChunk`] gets the memory and
//! copies the template, and the [allocator](crate::alloc) takes over what is left of the units.
//! This file holds what there is one of: the table of offsets, where the single-instruction paths
//! find it, and the view.

mod error;
mod first_chunk;
mod info;

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

pub use error::SetupError;
pub use first_chunk::FirstChunk;
pub(crate) use first_chunk::Unit;
pub use info::{AllocInfo, CpuSet, NO_CPU};

use crate::alloc;
use crate::cpu::{self, CpuId, NR_CPUS};
use crate::platform::{Global, Platform};
use crate::var::{self, PerCpuPtr};
use crate::view::{AreasView, PAGE};

/// Largest distance between CPUs of one group. Linux: `LOCAL_DISTANCE`.
pub const LOCAL_DISTANCE: u32 = 10;
/// Smallest dynamic part, enough for early boot. Linux: `PERCPU_DYNAMIC_EARLY_SIZE`.
pub const MIN_DYN_SIZE: usize = 12 << 10;
/// Smallest unit. Linux: `PCPU_MIN_UNIT_SIZE`.
pub const MIN_UNIT_SIZE: usize = 32 << 10;
/// Largest unit: sizes and positions in a unit are 32-bit numbers.
pub const MAX_UNIT_SIZE: usize = 1 << 30;

/// What a kernel may choose about its per-CPU areas.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bytes of the first chunk for reserved allocations (module variables); a multiple of 4.
    pub reserved_size: usize,
    /// Bytes of the first chunk for dynamic allocations, raised to [`MIN_DYN_SIZE`].
    pub dyn_size: usize,
    /// Size and alignment of the platform's unit of memory: a page, or a large page.
    pub atom_size: usize,
    /// Distance from one CPU to another; up to [`LOCAL_DISTANCE`] they share a group.
    pub distance: fn(u32, u32) -> u32,
    /// Bytes of address space from which chunks are reserved; the units of a chunk may span 75 %
    /// of it. Linux: `VMALLOC_TOTAL`.
    pub mapping_space: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            reserved_size: 0,
            dyn_size: 28 << 10,
            atom_size: PAGE as usize,
            distance: |_, _| LOCAL_DISTANCE,
            mapping_space: 1 << 45,
        }
    }
}

impl Config {
    /// The largest permitted distance from the lowest unit of a chunk to the end of the highest.
    pub fn span_limit(&self) -> usize {
        self.mapping_space / 4 * 3
    }
}

/// What is added to a per-CPU pointer for each CPU; 0 where there is no area (yet). Linux:
/// `__per_cpu_offset`.
static OFFSETS: [AtomicUsize; NR_CPUS] = [const { AtomicUsize::new(0) }; NR_CPUS];

/// The static areas, in the layout of [`AreasView`].
#[repr(C)]
struct Areas {
    template: AtomicUsize,
    static_size: AtomicUsize,
    reserved_size: AtomicUsize,
    dynamic_size: AtomicUsize,
    unit_size: AtomicUsize,
    base: AtomicUsize,
    offset: &'static [AtomicUsize; NR_CPUS],
}

static AREAS: Areas = Areas {
    template: AtomicUsize::new(0),
    static_size: AtomicUsize::new(0),
    reserved_size: AtomicUsize::new(0),
    dynamic_size: AtomicUsize::new(0),
    unit_size: AtomicUsize::new(0),
    base: AtomicUsize::new(0),
    offset: &OFFSETS,
};

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<usize>() == size_of::<u64>());
    assert!(size_of::<Areas>() == size_of::<AreasView>());
    assert!(offset_of!(Areas, template) == offset_of!(AreasView, template));
    assert!(offset_of!(Areas, static_size) == offset_of!(AreasView, static_size));
    assert!(offset_of!(Areas, reserved_size) == offset_of!(AreasView, reserved_size));
    assert!(offset_of!(Areas, dynamic_size) == offset_of!(AreasView, dynamic_size));
    assert!(offset_of!(Areas, unit_size) == offset_of!(AreasView, unit_size));
    assert!(offset_of!(Areas, base) == offset_of!(AreasView, base));
    assert!(offset_of!(Areas, offset) == offset_of!(AreasView, offset));
};

const NOT_SET_UP: u32 = 0;
const BEING_SET_UP: u32 = 1;
const SET_UP: u32 = 2;

static STATE: AtomicU32 = AtomicU32::new(NOT_SET_UP);

/// What is added to a per-CPU pointer to make the address of `cpu`'s copy. Linux:
/// `per_cpu_offset`.
#[inline]
pub fn offset(cpu: CpuId) -> usize {
    OFFSETS[cpu.index()].load(Ordering::Relaxed)
}

/// Whether the areas are set up.
#[inline]
pub fn is_set_up() -> bool {
    STATE.load(Ordering::Acquire) == SET_UP
}

/// Address of the [`AreasView`].
pub fn view_address() -> usize {
    // Who walks the view comes to the table by number.
    (&raw const OFFSETS).expose_provenance();
    (&raw const AREAS).expose_provenance()
}

/// The CPU in whose copy of the static variables `addr` lies, and the variable's offset in the
/// template. Costs a comparison a CPU. Linux: `is_kernel_percpu_address`.
pub fn is_static_percpu_address(addr: usize) -> Option<(CpuId, usize)> {
    let (cpu, offset) = alloc::global().first_chunk()?.static_variable_at(addr)?;
    Some((CpuId::new(cpu as usize)?, offset))
}

/// The physical address of `cpu`'s copy of the variable at `ptr`, static or dynamic, say for a
/// device. `None` before set-up, if no memory is behind it, or if the platform does not
/// [tell](Platform::phys_of). Costs a walk of the page tables. Linux: `per_cpu_ptr_to_phys`.
///
/// It holds as long as the variable exists. Pages that are neighbours in a CPU's area need not be
/// neighbours in memory: what spans several is asked for page by page.
pub fn phys_addr<T>(ptr: PerCpuPtr<T>, cpu: CpuId) -> Option<usize> {
    let offset = alloc::global().first_chunk()?.offset(cpu.index() as u32)?;
    Global::phys_of(ptr.raw().wrapping_add(offset))
}

/// Makes every possible CPU's area: freezes the possible mask, copies the template, and starts the
/// allocator. Linux: `setup_per_cpu_areas`.
///
/// # Errors
///
/// The rule that would have been broken; [`AlreadySetUp`](SetupError::AlreadySetUp) on a second
/// call. An error changes nothing.
///
/// # Safety
///
/// No other CPU runs, and nobody holds a reference into the template or has used a per-CPU
/// variable: what was written there before is copied to every CPU, what is written there later is
/// lost.
pub unsafe fn setup_per_cpu_areas(
    possible: impl Iterator<Item = u32>,
    config: &Config,
) -> Result<(), SetupError> {
    let begin =
        STATE.compare_exchange(NOT_SET_UP, BEING_SET_UP, Ordering::Acquire, Ordering::Relaxed);
    if begin.is_err() {
        return Err(SetupError::AlreadySetUp);
    }
    // SAFETY: passed on to the caller.
    let result = unsafe { set_up(possible, config) };
    STATE.store(if result.is_ok() { SET_UP } else { NOT_SET_UP }, Ordering::Release);
    result
}

/// As [`setup_per_cpu_areas`]; to be called once.
///
/// # Safety
///
/// As there.
unsafe fn set_up(possible: impl Iterator<Item = u32>, config: &Config) -> Result<(), SetupError> {
    let possible = CpuSet::new(possible)?;
    let template = var::template();
    let info = AllocInfo::build(template.len(), config, &possible)?;
    info.verify(&possible)?;
    // SAFETY: the linker made the template, its provenance is exposed, and the caller vouches for
    // there being no writer.
    let first = unsafe { FirstChunk::embed(&info, template.start, config.span_limit())? };
    let allocator = alloc::global();
    let first = allocator.init(first)?;

    for unit in first.units.iter() {
        let offset = first.delta().wrapping_add(unit.offset);
        // SAFETY: `embed` has just copied the template there, and no CPU knows of it yet.
        unsafe { cpu::init_unit(unit.cpu, offset) };
        OFFSETS[unit.cpu as usize].store(offset, Ordering::Relaxed);
        cpu::MASKS.possible.set_index(unit.cpu as usize, true);
    }
    cpu::set_nr_cpu_ids(first.unit_offsets.len());
    AREAS.template.store(template.start, Ordering::Relaxed);
    AREAS.static_size.store(info.static_size, Ordering::Relaxed);
    AREAS.reserved_size.store(info.reserved_size, Ordering::Relaxed);
    AREAS.dynamic_size.store(info.dyn_size, Ordering::Relaxed);
    AREAS.unit_size.store(info.unit_size, Ordering::Relaxed);
    AREAS.base.store(first.base, Ordering::Relaxed);
    Global::log(format_args!(
        "percpu: embedded {} pages a CPU (static {} + reserved {} + dynamic {} bytes), units of {} \
         bytes, {} in an allocation, {} CPUs in {} groups from {:#x}",
        first.populated_pages,
        info.static_size,
        info.reserved_size,
        info.dyn_size,
        info.unit_size,
        info.units_per_alloc(),
        first.units.len(),
        info.nr_groups,
        first.base,
    ));
    Ok(())
}
