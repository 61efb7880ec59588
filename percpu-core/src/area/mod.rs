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
//! Every possible CPU has its unit from then on, as in Linux; or, with
//! [`Config::units_on_demand`], the boot CPU alone, and each other one from when it is first
//! [brought up](add_unit). [`cpu::booted_once`] names the CPUs that have a unit: code that goes
//! over all copies goes over those.
//!
//! # Implementation
//!
//! [`AllocInfo`] decides on sizes and on who gets which unit, [`FirstChunk`] gets the memory and
//! copies the template, and the [allocator](crate::alloc) takes over what is left of the units.
//! `bring_up` does it for one CPU, later.
//! This file holds what there is one of: the table of offsets, where the single-instruction paths
//! find it, and the view.

mod bring_up;
mod error;
mod first_chunk;
mod info;
mod units;

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

pub use bring_up::add_unit;
pub use error::SetupError;
pub use first_chunk::{FirstChunk, Template};
use info::MAX_UNITS;
pub use info::{AllocInfo, CpuSet, NO_CPU};
pub(crate) use units::Unit;

use crate::alloc::{self, Table};
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
/// What may lie between the sections of per-CPU variables: every unit has a copy of it, too.
const MAX_FOREIGN_BYTES: usize = 64 << 10;

/// How the first chunk gets its memory. Linux: `percpu_alloc=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// [`Embed`](Self::Embed); if that fails, [`Page`](Self::Page), and a line in the log.
    #[default]
    Auto,
    /// A piece of memory for each group of CPUs.
    Embed,
    /// Page by page, in one range of addresses.
    Page,
}

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
    /// How the first chunk gets its memory.
    pub method: Method,
    /// Whether a CPU gets its unit when it is first brought up, instead of all at set-up. Linux has
    /// them all from the start.
    pub units_on_demand: bool,
    /// The CPU that runs set-up: the first possible one unless told otherwise. With units on demand
    /// it is the one that gets a unit at set-up.
    pub boot_cpu: Option<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            reserved_size: 0,
            dyn_size: 28 << 10,
            atom_size: PAGE as usize,
            distance: |_, _| LOCAL_DISTANCE,
            mapping_space: 1 << 45,
            method: Method::Auto,
            units_on_demand: false,
            boot_cpu: None,
        }
    }
}

impl Config {
    /// The largest permitted distance from the lowest unit of a chunk to the end of the highest.
    pub fn span_limit(&self) -> usize {
        self.mapping_space / 4 * 3
    }

    /// The same for [`FirstChunk::page`]: the atom is a page, and all CPUs are one group.
    pub fn by_page(&self) -> Self {
        Self { atom_size: PAGE as usize, distance: |_, _| LOCAL_DISTANCE, ..*self }
    }

    /// The CPU that runs set-up, one of the possible ones.
    fn boot_cpu_of(&self, possible: &CpuSet) -> Result<u32, SetupError> {
        let boot = self.boot_cpu.or(possible.iter().next()).ok_or(SetupError::NoCpu)?;
        if possible.contains(boot) { Ok(boot) } else { Err(SetupError::BootCpu(boot)) }
    }

    /// Which of the possible CPUs get their unit at set-up.
    ///
    /// # Errors
    ///
    /// [`NoCpu`](SetupError::NoCpu), or [`BootCpu`](SetupError::BootCpu) if that is not possible.
    pub fn units_at_set_up(&self, possible: &CpuSet) -> Result<CpuSet, SetupError> {
        let boot = self.boot_cpu_of(possible)?;
        if self.units_on_demand { CpuSet::new([boot]) } else { Ok(possible.clone()) }
    }
}

/// What is added to a per-CPU pointer for each CPU; 0 where there is no unit (yet). Never changes
/// again once it is something else. Linux: `__per_cpu_offset`.
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

/// What is added to a per-CPU pointer to make the address of `cpu`'s copy. A load and a comparison.
/// Linux: `per_cpu_offset`.
///
/// # Panics
///
/// If the CPU has no unit yet: it was never brought up. [`cpu::booted_once`] names those that have
/// one, [`try_offset`] asks.
#[inline]
pub fn offset(cpu: CpuId) -> usize {
    match try_offset(cpu) {
        Some(offset) => offset,
        None => no_unit(cpu),
    }
}

/// As [`offset`]; `None` if the CPU has no unit yet.
#[inline]
pub fn try_offset(cpu: CpuId) -> Option<usize> {
    // Who finds the unit finds what it began with, and makes others that it passes an area on to
    // find it too: so says `memory::zero`.
    match OFFSETS[cpu.index()].load(Ordering::Acquire) {
        0 if cfg!(feature = "up") && cpu::booted_once().contains(cpu) => Some(0),
        0 => None,
        offset => Some(offset),
    }
}

#[cold]
#[inline(never)]
fn no_unit(cpu: CpuId) -> ! {
    panic!("{cpu:?} has no per-CPU area: it was never brought up");
}

/// Makes the unit at `offset` known as `cpu`'s.
///
/// # Safety
///
/// The unit has memory behind all that is populated in other units. Its static part holds the
/// template with `cpu`'s number and offset, its dynamic areas hold what their owners have been
/// promised.
unsafe fn publish(cpu: CpuId, offset: usize) {
    OFFSETS[cpu.index()].store(offset, Ordering::Release);
    cpu::MASKS.booted_once.set(cpu, true);
    // From before its first instruction: whether the kernel starts it through hotplug is not known.
    cpu::MASKS.counted.set(cpu, true);
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
/// device. `None` before set-up, if no memory is behind it, as with a CPU that has no unit, or if the platform does not
/// [tell](Platform::phys_of). Costs a walk of the page tables. Linux: `per_cpu_ptr_to_phys`.
///
/// It holds as long as the variable exists. Pages that are neighbours in a CPU's area need not be
/// neighbours in memory: what spans several is asked for page by page.
pub fn phys_addr<T>(ptr: PerCpuPtr<T>, cpu: CpuId) -> Option<usize> {
    let (first, cpu) = (alloc::global().first_chunk()?, cpu.index() as u32);
    let offset = first.offset(cpu).filter(|_| first.has_memory(cpu))?;
    Global::phys_of(ptr.raw().wrapping_add(offset))
}

/// Makes every possible CPU's area, or with [`Config::units_on_demand`] the boot CPU's: freezes the
/// possible mask, copies the template, and starts the allocator. Linux: `setup_per_cpu_areas`.
///
/// Needs 8 KiB of stack at most, in builds without optimisation too, and in that the platform's own
/// calls if 2 KiB suffice for them.
///
/// # Errors
///
/// The rule that would have been broken; [`AlreadySetUp`](SetupError::AlreadySetUp) on a second
/// call, or on one from within `possible` or [`Config::distance`]. An error changes nothing.
///
/// # Panics
///
/// If `possible` or [`Config::distance`] does. Nothing has changed then.
///
/// # Safety
///
/// No other CPU runs, and nobody holds a reference into the template or has used a per-CPU
/// variable: what was written there before is copied to every CPU. From here on nobody writes to
/// the template: the boot CPU installs its [`offset`] before it uses a per-CPU variable again.
pub unsafe fn setup_per_cpu_areas(
    possible: impl Iterator<Item = u32>,
    config: &Config,
) -> Result<(), SetupError> {
    let begin =
        STATE.compare_exchange(NOT_SET_UP, BEING_SET_UP, Ordering::Acquire, Ordering::Relaxed);
    if begin.is_err() {
        return Err(SetupError::AlreadySetUp);
    }
    let mut outcome = Outcome(NOT_SET_UP);
    let mut cpus = CpuSet::EMPTY;
    cpus.extend(possible)?;
    // SAFETY: passed on to the caller.
    unsafe { set_up(&cpus, config)? };
    outcome.0 = SET_UP;
    Ok(())
}

/// What [`STATE`] becomes when a set-up ends, also by a panic in [`Config::distance`] or in the
/// iterator of possible CPUs.
struct Outcome(u32);

impl Drop for Outcome {
    fn drop(&mut self) {
        STATE.store(self.0, Ordering::Release);
    }
}

/// As [`setup_per_cpu_areas`]; to be called once.
///
/// It runs on a boot stack. What is large lies in metadata memory, and what is needed for one step only
/// is in a function of its own: frames that are not optimised have room for all values of all branches.
///
/// # Safety
///
/// As there.
unsafe fn set_up(possible: &CpuSet, config: &Config) -> Result<(), SetupError> {
    if cfg!(feature = "up") && possible.count() != 1 {
        return Err(SetupError::OneCpu(possible.count()));
    }
    #[cfg(feature = "host")]
    if crate::host::is_in_rust_dylib() {
        return Err(SetupError::RustDylib);
    }
    // What the linker adds for alignment is less than that.
    let foreign = var::foreign_bytes();
    if foreign > MAX_FOREIGN_BYTES {
        return Err(SetupError::Scattered(foreign));
    }
    let boot = config.boot_cpu_of(possible)?;
    let mut only_boot = CpuSet::EMPTY;
    only_boot.insert(boot);
    let with_unit = if config.units_on_demand { &only_boot } else { possible };
    // In metadata memory.
    let mut info = Table::<AllocInfo, Global>::zeroed(1)?;
    let info = &mut info[0];
    // SAFETY: passed on to the caller.
    let (first, method) = unsafe { start_allocator(info, possible, with_unit, config)? };
    publish_areas(info, first, possible, boot);
    log_areas(info, first, method);
    Ok(())
}

type StaticFirstChunk = &'static FirstChunk<Global>;

/// Makes the first chunk, by the method that was asked for or that works, and gives it to the
/// allocator. Returns it and the method's name, and leaves its description in `info`.
///
/// # Safety
///
/// As [`setup_per_cpu_areas`].
unsafe fn start_allocator(
    info: &mut AllocInfo,
    possible: &CpuSet,
    with_unit: &CpuSet,
    config: &Config,
) -> Result<(StaticFirstChunk, &'static str), SetupError> {
    if config.method != Method::Page {
        describe(info, possible, config)?;
        // SAFETY: `describe` has verified it, and units are for possible CPUs; the rest is passed on
        // to the caller.
        match unsafe { start_with(info, Some(config.span_limit()), with_unit) } {
            Ok(first) => return Ok((first, "embedded")),
            Err(error) if config.method == Method::Embed => return Err(error),
            Err(error) => log_fallback(error),
        }
    }
    describe(info, possible, &config.by_page())?;
    // SAFETY: as above, and the description is one by page.
    let first = unsafe { start_with(info, None, with_unit)? };
    Ok((first, "page by page"))
}

/// Describes the first chunk and verifies the description.
fn describe(info: &mut AllocInfo, possible: &CpuSet, config: &Config) -> Result<(), SetupError> {
    info.lay_out(var::template().len(), config, possible)?;
    info.verify(possible)
}

/// Makes the first chunk as `info` says, embedded if there is a limit of its span, and gives it to the
/// allocator.
///
/// # Safety
///
/// `info` describes the linker's template and has passed [`AllocInfo::verify`] with a set of CPUs
/// that has all of `with_unit`. Without a limit it is by page. And as [`setup_per_cpu_areas`].
unsafe fn start_with(
    info: &AllocInfo,
    span_limit: Option<usize>,
    with_unit: &CpuSet,
) -> Result<StaticFirstChunk, SetupError> {
    let template = Template::linked();
    let mut first = FirstChunk::new(info, &template);
    // SAFETY: the linker made the template, its provenance is exposed, and the caller vouches for
    // there being no writer. The rest is passed on to the caller.
    unsafe { first.get_memory(info, &template, span_limit, with_unit)? };
    if cfg!(feature = "up") {
        // The template is empty, and the one unit is its own: per-CPU pointers are addresses.
        first.template = first.base;
    }
    alloc::global().init(first)
}

/// Fills the masks, the tables and the units' own numbers.
fn publish_areas(info: &AllocInfo, first: &FirstChunk<Global>, possible: &CpuSet, boot: u32) {
    for cpu in possible.iter() {
        cpu::MASKS.possible.set_index(cpu as usize, true);
    }
    cpu::set_nr_cpu_ids(first.unit_offsets.len());
    for unit in first.units() {
        let offset = first.delta().wrapping_add(unit.offset);
        // SAFETY: a unit's CPU is possible. The first chunk has just copied the template there, no
        // CPU knows of the unit yet, and there is no dynamic area.
        unsafe {
            cpu::init_unit(unit.cpu, offset);
            publish(CpuId::new_unchecked(unit.cpu as usize), offset);
        }
    }
    // It runs, and counts. That it is present and takes threads is for `hotplug::init` to say.
    cpu::MASKS.online.set_index(boot as usize, true);
    AREAS.template.store(first.template, Ordering::Relaxed);
    AREAS.static_size.store(info.static_size, Ordering::Relaxed);
    AREAS.reserved_size.store(info.reserved_size, Ordering::Relaxed);
    AREAS.dynamic_size.store(info.dyn_size, Ordering::Relaxed);
    AREAS.unit_size.store(info.unit_size, Ordering::Relaxed);
    AREAS.base.store(first.base, Ordering::Relaxed);
}

fn log_areas(info: &AllocInfo, first: &FirstChunk<Global>, method: &str) {
    Global::log(format_args!(
        "percpu: {method} {} pages a CPU (static {} + reserved {} + dynamic {} bytes), units of {} \
         bytes, {} in an allocation, {} CPUs in {} groups from {:#x}, {} with memory",
        first.populated_pages,
        info.static_size,
        info.reserved_size,
        info.dyn_size,
        info.unit_size,
        info.units_per_alloc(),
        first.possible_units(),
        info.nr_groups,
        first.base,
        first.units().len(),
    ));
}

fn log_fallback(error: SetupError) {
    Global::log(format_args!(
        "percpu: cannot embed the first chunk ({error}), falling back to pages"
    ));
}
