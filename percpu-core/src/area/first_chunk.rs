//! The memory of the first chunk: where every CPU's unit lies.

use core::marker::PhantomData;
use core::ptr::{copy_nonoverlapping, with_exposed_provenance, with_exposed_provenance_mut};

use super::{AllocInfo, NO_CPU, SetupError};
use crate::alloc::{Table, Zeroable};
use crate::platform::{NoMemory, Platform};
use crate::view::{GRANULE, PAGE};

/// Marks a CPU without a unit in the tables of units.
pub(crate) const NO_UNIT: usize = usize::MAX;

/// A possible CPU's unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit {
    /// Bytes from a chunk's base to the unit.
    pub(crate) offset: usize,
    /// The CPU.
    pub(crate) cpu: u32,
}

// SAFETY: integers.
unsafe impl Zeroable for Unit {}

/// Address space that was reserved for a group.
#[derive(Clone, Copy)]
struct Reservation {
    addr: usize,
    size: usize,
}

// SAFETY: integers.
unsafe impl Zeroable for Reservation {}

/// The first chunk's memory, with the template copied into every unit, and the places of units
/// that hold for every later chunk too. Dropping it gives the memory back.
pub struct FirstChunk<P: Platform> {
    pub(crate) base: usize,
    pub(crate) template: usize,
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
    /// The possible CPUs' units in ascending order of CPUs.
    pub(crate) units: Table<Unit, P>,
    reservations: Table<Reservation, P>,
    /// Units, counted from the first, that have got their memory.
    populated_units: usize,
    platform: PhantomData<fn() -> P>,
}

impl From<NoMemory> for SetupError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl<P: Platform> FirstChunk<P> {
    /// Reserves each group's memory, puts pages behind the units that have a CPU, and copies the
    /// template there. Linux: `pcpu_embed_first_chunk`.
    ///
    /// `info` has been verified. `span_limit` is the largest permitted distance from the lowest
    /// unit to the end of the highest.
    ///
    /// # Errors
    ///
    /// [`NoMemory`](SetupError::NoMemory) and [`SpanTooWide`](SetupError::SpanTooWide); all memory
    /// has been given back then.
    ///
    /// # Safety
    ///
    /// `info.static_size` bytes from `template` on are readable, have exposed provenance, and
    /// nobody writes them meanwhile.
    pub unsafe fn embed(
        info: &AllocInfo,
        template: usize,
        span_limit: usize,
    ) -> Result<Self, SetupError> {
        let mut first = Self::reserve(info, template)?;
        if first.span > span_limit {
            return Err(SetupError::SpanTooWide { span: first.span, limit: span_limit });
        }
        for i in 0..first.units.len() {
            let Unit { cpu, .. } = first.units[i];
            let addr = first.unit_address(&first.units[i]);
            // SAFETY: the unit lies in its group's reservation, and this loop is the first to put
            // anything behind it.
            unsafe { P::populate(addr, first.populated_pages, cpu)? };
            first.populated_units += 1;
            // SAFETY: the caller vouches for the template; the unit's pages, at least size_sum
            // bytes and so at least the template's, are memory since the line above, and new, so
            // they are not the template's own.
            unsafe {
                copy_nonoverlapping(
                    with_exposed_provenance::<u8>(template),
                    with_exposed_provenance_mut::<u8>(addr),
                    first.static_size,
                );
            }
        }
        Ok(first)
    }

    /// Reserves the address space and computes where the units lie in it.
    fn reserve(info: &AllocInfo, template: usize) -> Result<Self, SetupError> {
        let cpus = || info.groups().flatten().filter(|&&cpu| cpu != NO_CPU);
        let nr_cpu_ids = cpus().max().map_or(0, |&cpu| cpu as usize + 1);
        let mut first = Self {
            base: usize::MAX,
            template,
            static_size: info.static_size,
            reserved_size: info.reserved_size,
            unit_size: info.unit_size,
            atom_size: info.atom_size,
            span: 0,
            populated_pages: info.size_sum() / PAGE as usize,
            unit_offsets: Table::zeroed(nr_cpu_ids)?,
            unit_map: Table::zeroed(nr_cpu_ids)?,
            units: Table::zeroed(cpus().count())?,
            reservations: Table::zeroed(info.nr_groups)?,
            populated_units: 0,
            platform: PhantomData,
        };
        let mut end = 0;
        for (group, reservation) in info.groups().zip(first.reservations.iter_mut()) {
            let size = group.len() * info.unit_size;
            let addr = P::reserve(size, info.atom_size).ok_or(NoMemory)?;
            *reservation = Reservation { addr, size };
            first.base = first.base.min(addr);
            end = end.max(addr + size);
        }
        first.span = end - first.base;

        first.unit_offsets.fill(NO_UNIT);
        first.unit_map.fill(NO_UNIT);
        let mut unit = 0;
        for (group, reservation) in info.groups().zip(first.reservations.iter()) {
            for (i, &cpu) in group.iter().enumerate() {
                if cpu != NO_CPU {
                    let offset = reservation.addr - first.base + i * info.unit_size;
                    first.unit_offsets[cpu as usize] = offset;
                    first.unit_map[cpu as usize] = unit;
                }
                unit += 1;
            }
        }
        let in_use =
            first.unit_offsets.iter().enumerate().filter(|&(_, &offset)| offset != NO_UNIT);
        for (unit, (cpu, &offset)) in first.units.iter_mut().zip(in_use) {
            *unit = Unit { offset, cpu: cpu as u32 };
        }
        Ok(first)
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

    /// What is added to a per-CPU pointer to make the address of `cpu`'s copy; `None` if the CPU
    /// has no unit. Linux: `per_cpu_offset`.
    pub fn offset(&self, cpu: u32) -> Option<usize> {
        let offset = *self.unit_offsets.get(cpu as usize)?;
        (offset != NO_UNIT).then(|| self.delta().wrapping_add(offset))
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
        self.units.iter().find_map(|unit| {
            let offset = addr.wrapping_sub(self.unit_address(unit));
            (offset < self.static_size).then_some((unit.cpu, offset))
        })
    }

    fn unit_address(&self, unit: &Unit) -> usize {
        self.base + unit.offset
    }
}

impl<P: Platform> Drop for FirstChunk<P> {
    fn drop(&mut self) {
        let (pages, size) = (self.populated_pages, self.populated_pages * PAGE as usize);
        let populated = || self.units[..self.populated_units].iter().map(|u| self.unit_address(u));
        for addr in populated() {
            // SAFETY: `embed` populated these pages, and whoever drops the first chunk has no use
            // of them left.
            unsafe { P::unmap(addr, pages) };
        }
        for addr in populated() {
            P::flush_tlb(addr, size);
        }
        for addr in populated() {
            // SAFETY: the loops above unmapped the pages and flushed them.
            unsafe { P::free_pages(addr, pages) };
        }
        for &Reservation { addr, size } in self.reservations.iter().filter(|r| r.size != 0) {
            // SAFETY: the range is of one `reserve`; its populated pages went just above.
            unsafe { P::release(addr, size) };
        }
    }
}
