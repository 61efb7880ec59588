//! The memory of the first chunk: where every CPU's unit lies.
//!
//! Address space is reserved for all units, at offsets that hold for every later chunk too. Memory
//! is put only where it is used: behind the units of CPUs that have come up, and there up to the
//! end of static, reserved and dynamic part. So the rest of a unit and unit slots without a CPU,
//! which Linux has first and gives back, never take any.

use core::iter;
use core::ptr::{copy_nonoverlapping, with_exposed_provenance, with_exposed_provenance_mut};

use super::units::{Unit, UnitList};
use super::{AllocInfo, CpuSet, NO_CPU, SetupError};
use crate::alloc::{Table, UnitPages, Zeroable, take_away};
use crate::platform::{NoMemory, Platform};
use crate::var;
use crate::view::{GRANULE, PAGE};

/// Marks a CPU without a unit in the tables of units.
pub(crate) const NO_UNIT: usize = usize::MAX;

/// Address space that was reserved for a group.
#[derive(Clone, Copy)]
struct Reservation {
    addr: usize,
    size: usize,
}

// SAFETY: integers.
unsafe impl Zeroable for Reservation {}

/// What is copied to the start of each unit: the bytes of some sections, and nothing of what lies
/// between them.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    start: usize,
    /// First and last byte's end of each section. One that is empty stands for none.
    sections: Option<[(usize, usize); var::SECTIONS]>,
}

impl From<usize> for Template {
    /// The template that begins there and has no gaps.
    fn from(start: usize) -> Self {
        Self { start, sections: None }
    }
}

impl Template {
    /// The linker's.
    pub(crate) fn linked() -> Self {
        let sections = var::sections().map(|section| (section.start, section.end));
        Self { start: var::template().start, sections: Some(sections) }
    }

    /// Whether variables may be added after set-up, as in the linker's template under Miri.
    fn grows(&self) -> bool {
        cfg!(miri) && self.sections.is_some()
    }

    /// Copies a template of `size` bytes to a unit.
    ///
    /// # Safety
    ///
    /// The sections are readable, and nobody writes them; the unit is writable and is not the
    /// template.
    unsafe fn copy_to(&self, unit: usize, size: usize) {
        let whole = [(self.start, self.start + size)];
        let sections = self.sections.as_ref().map_or(&whole[..], |sections| &sections[..]);
        for &(start, end) in sections {
            // SAFETY: passed on to the caller.
            unsafe {
                copy_nonoverlapping(
                    with_exposed_provenance::<u8>(start),
                    with_exposed_provenance_mut::<u8>(unit + (start - self.start)),
                    end - start,
                );
            }
        }
    }
}

/// The first chunk's memory, with the template copied into every unit that has memory, and the
/// places of units that hold for every later chunk too. Dropping it gives the memory back.
pub struct FirstChunk<P: Platform> {
    pub(crate) base: usize,
    pub(crate) template: usize,
    /// The template as it was at set-up, from which units that are made later are copied: a CPU that
    /// runs without its offset writes to the template itself. Empty if every unit has memory, or if
    /// the template [grows](Template::grows).
    pristine: Table<u8, P>,
    pub(crate) static_size: usize,
    pub(crate) reserved_size: usize,
    pub(crate) unit_size: usize,
    pub(crate) atom_size: usize,
    /// Bytes from the base to the end of the highest unit.
    pub(crate) span: usize,
    /// Pages of a unit that have memory, from its start.
    pub(crate) populated_pages: usize,
    /// Bytes from the base to each CPU's unit, by CPU number; [`NO_UNIT`] if it has none.
    pub(crate) unit_offsets: Table<usize, P>,
    /// Position of each CPU's unit among all units, by CPU number; [`NO_UNIT`] if it has none.
    unit_map: Table<usize, P>,
    /// The units that have memory.
    units: UnitList<P>,
    reservations: Table<Reservation, P>,
    /// Pages that are asked for in one call when a unit gets its memory.
    pages_at_once: usize,
}

impl From<NoMemory> for SetupError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl<P: Platform> FirstChunk<P> {
    /// Reserves each group's memory, puts pages behind the units of `cpus`, a unit at a time, and
    /// copies the template there. Linux: `pcpu_embed_first_chunk`.
    ///
    /// `span_limit` is the largest permitted distance from the lowest unit to the end of the highest.
    ///
    /// # Errors
    ///
    /// [`NoMemory`](SetupError::NoMemory) and [`SpanTooWide`](SetupError::SpanTooWide); all memory
    /// has been given back then.
    ///
    /// # Safety
    ///
    /// `info` passed [`verify`](AllocInfo::verify) with a set of possible CPUs that has all of `cpus`.
    /// During this call the template's `info.static_size` bytes are readable and have exposed
    /// provenance, and nothing writes them.
    pub unsafe fn embed(
        info: &AllocInfo,
        template: impl Into<Template>,
        span_limit: usize,
        cpus: &CpuSet,
    ) -> Result<Self, SetupError> {
        let template = template.into();
        let mut first = Self::new(info, &template);
        // SAFETY: passed on to the caller.
        unsafe { first.get_memory(info, &template, Some(span_limit), cpus)? };
        Ok(first)
    }

    /// As [`embed`](Self::embed), but asks for memory page by page: what is left when large pieces
    /// are not to be had, or lie too far apart. Linux: `pcpu_page_first_chunk`.
    ///
    /// # Errors
    ///
    /// [`NoMemory`](SetupError::NoMemory); all memory has been given back then.
    ///
    /// # Safety
    ///
    /// As [`embed`](Self::embed); and `info` was made with [`Config::by_page`](super::Config::by_page),
    /// so that one range holds all units.
    pub unsafe fn page(
        info: &AllocInfo,
        template: impl Into<Template>,
        cpus: &CpuSet,
    ) -> Result<Self, SetupError> {
        let template = template.into();
        let mut first = Self::new(info, &template);
        // SAFETY: passed on to the caller.
        unsafe { first.get_memory(info, &template, None, cpus)? };
        Ok(first)
    }

    /// Reserves address space, if there is a limit within it and else page by page, and gives the
    /// units of `cpus` their memory. `self` is [new](Self::new), made of the same `info`.
    ///
    /// # Safety
    ///
    /// As [`embed`](Self::embed); without a limit as [`page`](Self::page).
    pub(super) unsafe fn get_memory(
        &mut self,
        info: &AllocInfo,
        template: &Template,
        span_limit: Option<usize>,
        cpus: &CpuSet,
    ) -> Result<(), SetupError> {
        self.make_tables(info)?;
        self.reserve(info)?;
        if let Some(limit) = span_limit {
            if self.span > limit {
                return Err(SetupError::SpanTooWide { span: self.span, limit });
            }
            self.pages_at_once = self.populated_pages;
        }
        // SAFETY: passed on to the caller.
        unsafe { self.populate_units(template, cpus)? };
        Ok(())
    }

    /// Gives the units of `cpus` their memory, and keeps the template for the other ones.
    ///
    /// # Safety
    ///
    /// As [`embed`](Self::embed); nobody else has the first chunk yet.
    unsafe fn populate_units(
        &mut self,
        template: &Template,
        cpus: &CpuSet,
    ) -> Result<(), NoMemory> {
        if cpus.count() < self.possible_units() && !template.grows() {
            self.pristine = Table::zeroed(self.static_size)?;
            let copy = self.pristine.as_ptr().expose_provenance();
            // SAFETY: the template is readable, says the caller; the table is as large and new.
            unsafe { template.copy_to(copy, self.static_size) };
        }
        for cpu in cpus.iter() {
            let unit = self.place(cpu).expect("a possible CPU has a unit");
            // SAFETY: the unit has no memory yet, a set names it once, and nobody else is here. The
            // template is readable, says the caller.
            unsafe {
                self.populate_from(template, unit)?;
                self.publish_unit(unit);
            }
        }
        Ok(())
    }

    /// Puts memory behind a unit and copies the template there; the reserved and the dynamic part
    /// have arbitrary contents. A failure leaves nothing behind.
    ///
    /// # Safety
    ///
    /// The unit has no memory, and nobody else gives it any meanwhile.
    pub(crate) unsafe fn populate_unit(&self, unit: Unit) -> Result<(), NoMemory> {
        let template = if self.pristine.is_empty() {
            Template::from(self.template)
        } else {
            Template::from(self.pristine.as_ptr().addr())
        };
        // SAFETY: `populate_units` has exposed the copy, which lives as long as the first chunk and is
        // never written again. Without one the template has no bytes, or it grows: then it lives as
        // long as the program, and variables are not added while a CPU gets its unit. The rest is
        // passed on to the caller.
        unsafe { self.populate_from(&template, unit) }
    }

    /// # Safety
    ///
    /// As [`populate_unit`](Self::populate_unit); the template is readable and not being written.
    unsafe fn populate_from(&self, template: &Template, unit: Unit) -> Result<(), NoMemory> {
        let all = self.pages_of(unit);
        let mut done = 0;
        while done < all.count {
            let count = self.pages_at_once.min(all.count - done);
            let addr = all.addr + done * PAGE as usize;
            // SAFETY: the pages lie in the group's reservation and have nothing behind them, says
            // the caller; this loop comes to each once.
            if let Err(error) = unsafe { P::populate(addr, count, unit.cpu) } {
                let done = UnitPages { count: done, ..all };
                // SAFETY: what this loop has populated, which nobody else knows of.
                unsafe { take_away::<P>(iter::once(done).filter(|done| done.count != 0)) };
                return Err(error);
            }
            done += count;
        }
        // SAFETY: the template is readable and not being written, says the caller; the unit's pages,
        // at least size_sum bytes and so at least the template's, are memory since the loop above,
        // and new, so not the template's own.
        unsafe { template.copy_to(all.addr, self.static_size) };
        Ok(())
    }

    /// Writes zero to the reserved and the dynamic part of a unit that has just got its memory.
    ///
    /// # Safety
    ///
    /// [`populate_unit`](Self::populate_unit) was called, and nobody else knows of the memory.
    pub(crate) unsafe fn zero_unit(&self, unit: Unit) {
        let UnitPages { addr, count, .. } = self.pages_of(unit);
        let rest = with_exposed_provenance_mut::<u8>(addr + self.static_size);
        // SAFETY: the static part ends inside the unit's populated pages.
        unsafe { rest.write_bytes(0, count * PAGE as usize - self.static_size) };
    }

    /// Lists a unit among those that have memory, for good.
    ///
    /// # Safety
    ///
    /// The unit has memory behind everything that is populated, here and in later chunks; it is not
    /// listed; and no other unit is being listed.
    pub(crate) unsafe fn publish_unit(&self, unit: Unit) {
        // SAFETY: the list has room for every possible CPU's unit, and each comes once.
        unsafe { self.units.push(unit) };
    }

    /// A first chunk without tables and address space.
    pub(super) fn new(info: &AllocInfo, template: &Template) -> Self {
        Self {
            base: usize::MAX,
            template: template.start,
            pristine: Table::empty(),
            static_size: info.static_size,
            reserved_size: info.reserved_size,
            unit_size: info.unit_size,
            atom_size: info.atom_size,
            span: 0,
            populated_pages: info.size_sum() / PAGE as usize,
            unit_offsets: Table::empty(),
            unit_map: Table::empty(),
            units: UnitList::empty(),
            reservations: Table::empty(),
            pages_at_once: 1,
        }
    }

    /// Makes the tables, in place: the first chunk is set up on a small stack.
    fn make_tables(&mut self, info: &AllocInfo) -> Result<(), NoMemory> {
        let cpus = || info.groups().flatten().filter(|&&cpu| cpu != NO_CPU);
        let nr_cpu_ids = cpus().max().map_or(0, |&cpu| cpu as usize + 1);
        self.unit_offsets = Table::zeroed(nr_cpu_ids)?;
        self.unit_map = Table::zeroed(nr_cpu_ids)?;
        self.units = UnitList::with_room(cpus().count())?;
        self.reservations = Table::zeroed(info.nr_groups)?;
        Ok(())
    }

    /// Reserves the address space and computes where the units lie in it.
    fn reserve(&mut self, info: &AllocInfo) -> Result<(), NoMemory> {
        let mut end = 0;
        for (group, reservation) in info.groups().zip(self.reservations.iter_mut()) {
            let size = group.len() * info.unit_size;
            let addr = P::reserve(size, info.atom_size).ok_or(NoMemory)?;
            *reservation = Reservation { addr, size };
            self.base = self.base.min(addr);
            end = end.max(addr + size);
        }
        self.span = end - self.base;

        self.unit_offsets.fill(NO_UNIT);
        self.unit_map.fill(NO_UNIT);
        let mut unit = 0;
        for (group, reservation) in info.groups().zip(self.reservations.iter()) {
            for (i, &cpu) in group.iter().enumerate() {
                if cpu != NO_CPU {
                    let offset = reservation.addr - self.base + i * info.unit_size;
                    self.unit_offsets[cpu as usize] = offset;
                    self.unit_map[cpu as usize] = unit;
                }
                unit += 1;
            }
        }
        Ok(())
    }

    /// What is subtracted from an address in unit space (a unit's address less its offset) to make
    /// a per-CPU pointer.
    pub(crate) fn delta(&self) -> usize {
        self.base.wrapping_sub(self.template)
    }

    /// Granules of a unit.
    pub(crate) fn nr_granules(&self) -> u32 {
        (self.unit_size / GRANULE as usize) as u32
    }

    /// Address of the lowest unit.
    pub fn base(&self) -> usize {
        self.base
    }

    /// The units that have memory, in the order in which they got it.
    #[inline]
    pub(crate) fn units(&self) -> &[Unit] {
        self.units.as_slice()
    }

    /// The number of possible CPUs, each of which has a unit or may get one.
    pub(crate) fn possible_units(&self) -> usize {
        self.units.capacity()
    }

    /// Whether `cpu`'s unit has memory. Costs a comparison a unit.
    pub fn has_memory(&self, cpu: u32) -> bool {
        self.units().iter().any(|unit| unit.cpu == cpu)
    }

    /// Where `cpu`'s unit lies, with memory or without; `None` if the CPU is not possible.
    pub(crate) fn place(&self, cpu: u32) -> Option<Unit> {
        let offset = *self.unit_offsets.get(cpu as usize)?;
        (offset != NO_UNIT).then_some(Unit { offset, cpu })
    }

    /// What is added to a per-CPU pointer to make the address of `cpu`'s copy, whether or not there
    /// is memory yet; `None` if the CPU is not possible. Linux: `per_cpu_offset`.
    pub fn offset(&self, cpu: u32) -> Option<usize> {
        Some(self.delta().wrapping_add(self.place(cpu)?.offset))
    }

    /// The number of `cpu`'s unit among all units, those without a CPU included; `None` if it has
    /// none. Linux: `pcpu_unit_map`.
    pub fn unit(&self, cpu: u32) -> Option<usize> {
        let unit = *self.unit_map.get(cpu as usize)?;
        (unit != NO_UNIT).then_some(unit)
    }

    /// The CPU in whose copy of the static variables `addr` lies, and the variable's offset in the
    /// template. Costs a comparison a CPU. Linux: `__is_kernel_percpu_address`.
    pub fn static_variable_at(&self, addr: usize) -> Option<(u32, usize)> {
        self.units().iter().find_map(|unit| {
            let offset = addr.wrapping_sub(self.base + unit.offset);
            (offset < self.static_size).then_some((unit.cpu, offset))
        })
    }

    /// The pages of the first chunk's unit that have memory when the unit has.
    pub(crate) fn pages_of(&self, unit: Unit) -> UnitPages {
        UnitPages { addr: self.base + unit.offset, count: self.populated_pages, cpu: unit.cpu }
    }
}

impl<P: Platform> Drop for FirstChunk<P> {
    fn drop(&mut self) {
        let pages = self.units().iter().map(|&unit| self.pages_of(unit));
        // SAFETY: listed units have this memory, and whoever drops the first chunk has no use of it
        // left.
        unsafe { take_away::<P>(pages) };
        for &Reservation { addr, size } in self.reservations.iter().filter(|r| r.size != 0) {
            // SAFETY: the range is of one `reserve`; its pages went just above.
            unsafe { P::release(addr, size) };
        }
    }
}
