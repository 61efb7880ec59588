//! How large units are and which CPU gets which unit: arithmetic only, no memory.

use core::fmt;

use super::{Config, LOCAL_DISTANCE, MAX_UNIT_SIZE, MIN_DYN_SIZE, MIN_UNIT_SIZE, SetupError};
use crate::alloc::Zeroable;
use crate::cpu::NR_CPUS;
use crate::view::{GRANULE, PAGE};

const PAGE_SIZE: usize = PAGE as usize;

/// Units that can be needed, those without a CPU included: no choice of units per allocation may waste
/// more than a third of the possible CPUs.
pub(super) const MAX_UNITS: usize = NR_CPUS + NR_CPUS / 3;

/// Marks a unit slot without a CPU. Linux: `NR_CPUS` in `cpu_map`.
pub const NO_CPU: u16 = u16::MAX;

/// A set of CPU numbers, before the possible mask exists.
#[derive(Clone, PartialEq, Eq)]
pub struct CpuSet {
    words: [u64; NR_CPUS / 64],
}

impl CpuSet {
    /// No CPU.
    pub(super) const EMPTY: Self = Self { words: [0; NR_CPUS / 64] };

    /// The set of the CPUs that `cpus` yields, however often.
    ///
    /// # Errors
    ///
    /// [`SetupError::CpuOutOfRange`] if a number is not below [`NR_CPUS`].
    pub fn new(cpus: impl IntoIterator<Item = u32>) -> Result<Self, SetupError> {
        let mut set = Self::EMPTY;
        set.extend(cpus)?;
        Ok(set)
    }

    /// Adds the CPUs that `cpus` yields.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub(super) fn extend(&mut self, cpus: impl IntoIterator<Item = u32>) -> Result<(), SetupError> {
        for cpu in cpus {
            if cpu as usize >= NR_CPUS {
                return Err(SetupError::CpuOutOfRange(cpu));
            }
            self.insert(cpu);
        }
        Ok(())
    }

    /// Adds a CPU, whose number is below [`NR_CPUS`].
    pub(super) fn insert(&mut self, cpu: u32) {
        self.words[cpu as usize / 64] |= 1 << (cpu % 64);
    }

    /// Removes a CPU, whose number is below [`NR_CPUS`].
    fn remove(&mut self, cpu: u32) {
        self.words[cpu as usize / 64] &= !(1 << (cpu % 64));
    }

    /// Whether `cpu` is in the set.
    pub fn contains(&self, cpu: u32) -> bool {
        self.words.get(cpu as usize / 64).is_some_and(|w| w & (1 << (cpu % 64)) != 0)
    }

    /// The number of CPUs.
    pub fn count(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// The CPUs in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(word, &bits)| {
            let mut rest = bits;
            core::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(word as u32 * u64::BITS + bit)
            })
        })
    }
}

impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The sizes of a unit and of its parts, and the units of each group of CPUs. Linux: `struct
/// pcpu_alloc_info`.
///
/// About 5 KiB, of which [`build`](Self::build) makes copies on the stack: some 22 KiB without
/// optimisation. [Set-up](super::setup_per_cpu_areas) keeps it in metadata memory.
#[derive(Clone)]
pub struct AllocInfo {
    /// Bytes of the template.
    pub static_size: usize,
    /// Bytes for reserved allocations.
    pub reserved_size: usize,
    /// Bytes for dynamic allocations, page rounding included.
    pub dyn_size: usize,
    /// Bytes of a unit.
    pub unit_size: usize,
    /// Alignment of an allocation of memory.
    pub atom_size: usize,
    /// Bytes of an allocation of memory, which holds one or more units.
    pub alloc_size: usize,
    /// Number of groups.
    pub nr_groups: usize,
    /// Units of each group, those without a CPU included: the first `nr_groups` count.
    pub group_units: [u16; NR_CPUS],
    /// The CPU of each unit, group after group, or [`NO_CPU`].
    pub cpu_map: [u16; MAX_UNITS],
}

// SAFETY: integers.
unsafe impl Zeroable for AllocInfo {}

impl AllocInfo {
    /// Lays out units for the CPUs of `possible` and a template of `static_size` bytes. Linux:
    /// `pcpu_build_alloc_info`.
    ///
    /// # Errors
    ///
    /// [`NoCpu`](SetupError::NoCpu), [`TooLarge`](SetupError::TooLarge), and
    /// [`AtomSize`](SetupError::AtomSize) if the atom is not a multiple of the page.
    pub fn build(
        static_size: usize,
        config: &Config,
        possible: &CpuSet,
    ) -> Result<Self, SetupError> {
        let mut info = Self {
            static_size: 0,
            reserved_size: 0,
            dyn_size: 0,
            unit_size: 0,
            atom_size: 0,
            alloc_size: 0,
            nr_groups: 0,
            group_units: [0; NR_CPUS],
            cpu_map: [NO_CPU; MAX_UNITS],
        };
        info.lay_out(static_size, config, possible)?;
        Ok(info)
    }

    /// Makes the description that [`build`](Self::build) returns of `self`, whatever that was.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub(super) fn lay_out(
        &mut self,
        static_size: usize,
        config: &Config,
        possible: &CpuSet,
    ) -> Result<(), SetupError> {
        let atom_size = config.atom_size;
        if atom_size == 0 || !atom_size.is_multiple_of(PAGE_SIZE) {
            return Err(SetupError::AtomSize(atom_size));
        }
        if possible.count() == 0 {
            return Err(SetupError::NoCpu);
        }
        let size_sum = static_size
            .checked_add(config.reserved_size)
            .and_then(|sum| sum.checked_add(config.dyn_size.max(MIN_DYN_SIZE)))
            .and_then(|sum| sum.checked_next_multiple_of(PAGE_SIZE))
            .ok_or(SetupError::TooLarge)?;
        let min_unit_size = size_sum.max(MIN_UNIT_SIZE);
        let alloc_size =
            min_unit_size.checked_next_multiple_of(atom_size).ok_or(SetupError::TooLarge)?;

        self.group(possible, config.distance);
        let upa = self.best_units_per_alloc(alloc_size, min_unit_size, possible.count());
        let unit_size = alloc_size / upa;
        if unit_size > MAX_UNIT_SIZE {
            return Err(SetupError::TooLarge);
        }
        self.pad_groups(upa);
        self.static_size = static_size;
        self.reserved_size = config.reserved_size;
        self.dyn_size = size_sum - static_size - config.reserved_size;
        self.unit_size = unit_size;
        self.atom_size = atom_size;
        self.alloc_size = alloc_size;
        Ok(())
    }

    /// Makes groups of units, a unit a CPU and none without. A group is the first CPU that is in no
    /// group yet, and each further one that is local, both ways, to all that the group has so far.
    fn group(&mut self, possible: &CpuSet, distance: fn(u32, u32) -> u32) {
        let local = |a, b| distance(a, b) <= LOCAL_DISTANCE && distance(b, a) <= LOCAL_DISTANCE;
        let mut rest = possible.clone();
        let mut start = 0;
        self.nr_groups = 0;
        self.cpu_map.fill(NO_CPU);
        while rest.count() != 0 {
            let mut end = start;
            for cpu in possible.iter() {
                let group = &self.cpu_map[start..end];
                if rest.contains(cpu) && group.iter().all(|&other| local(cpu, other.into())) {
                    self.cpu_map[end] = cpu as u16;
                    rest.remove(cpu);
                    end += 1;
                }
            }
            self.group_units[self.nr_groups] = (end - start) as u16;
            self.nr_groups += 1;
            start = end;
        }
    }

    /// Adds units without a CPU at each group's end, so that the number of units is a multiple of
    /// `upa`.
    fn pad_groups(&mut self, upa: usize) {
        let padded = |units: u16| (units as usize).next_multiple_of(upa);
        let groups = &mut self.group_units[..self.nr_groups];
        let mut from: usize = groups.iter().map(|&units| units as usize).sum();
        let mut to: usize = groups.iter().map(|&units| padded(units)).sum();
        // The last group first: a group moves to where only groups behind it were.
        for units in groups.iter_mut().rev() {
            let (count, room) = (*units as usize, padded(*units));
            from -= count;
            to -= room;
            self.cpu_map.copy_within(from..from + count, to);
            self.cpu_map[to + count..to + room].fill(NO_CPU);
            *units = room as u16;
        }
    }

    /// Returns the number of units to put into an allocation of `alloc_size` bytes, for the groups
    /// that [`group`](Self::group) made: few allocations first, then few wasted units, and never waste
    /// of more than a third.
    fn best_units_per_alloc(&self, alloc_size: usize, min_unit_size: usize, cpus: usize) -> usize {
        let divides = |upa: usize| {
            alloc_size.is_multiple_of(upa) && (alloc_size / upa).is_multiple_of(PAGE_SIZE)
        };
        let mut best = 1;
        let mut fewest_allocs = usize::MAX;
        // More units than that would be wasted already in the first allocation.
        let most = (alloc_size / min_unit_size).min(cpus + cpus / 3);
        for upa in (1..=most).rev().filter(|&upa| divides(upa)) {
            let members = self.group_units[..self.nr_groups].iter().map(|&n| n as usize);
            let allocs: usize = members.map(|n| n.div_ceil(upa)).sum();
            let wasted = allocs * upa - cpus;
            if wasted > cpus / 3 {
                continue;
            }
            if allocs > fewest_allocs {
                break;
            }
            fewest_allocs = allocs;
            best = upa;
        }
        best
    }

    /// Returns the bytes of static, reserved and dynamic part together, up to a page boundary;
    /// `usize::MAX` if that is no number.
    pub fn size_sum(&self) -> usize {
        self.static_size
            .saturating_add(self.reserved_size)
            .saturating_add(self.dyn_size)
            .checked_next_multiple_of(PAGE_SIZE)
            .unwrap_or(usize::MAX)
    }

    /// Returns the number of units in one allocation of memory, 0 if a unit has no bytes. Linux:
    /// `upa`.
    pub fn units_per_alloc(&self) -> usize {
        self.alloc_size.checked_div(self.unit_size).unwrap_or(0)
    }

    /// Yields the CPUs of each group's units; [`NO_CPU`] where a unit has none. What the fields name
    /// beyond their tables' ends is left out.
    pub fn groups(&self) -> impl Iterator<Item = &[u16]> {
        let mut rest = &self.cpu_map[..];
        self.units_of_groups().iter().map(move |&units| {
            let (group, tail) = rest.split_at(rest.len().min(units as usize));
            rest = tail;
            group
        })
    }

    /// The number of units of each group.
    fn units_of_groups(&self) -> &[u16] {
        &self.group_units[..self.nr_groups.min(NR_CPUS)]
    }

    /// Checks the rules that a first chunk depends on, whatever made this description.
    ///
    /// # Errors
    ///
    /// The rule that is broken.
    pub fn verify(&self, possible: &CpuSet) -> Result<(), SetupError> {
        self.verify_sizes()?;
        self.verify_groups()?;
        let mut seen = CpuSet::EMPTY;
        for cpu in self.groups().flatten().copied().filter(|&cpu| cpu != NO_CPU) {
            let cpu = u32::from(cpu);
            if !possible.contains(cpu) {
                return Err(SetupError::UnitOfImpossibleCpu(cpu));
            }
            if seen.contains(cpu) {
                return Err(SetupError::CpuWithTwoUnits(cpu));
            }
            seen.insert(cpu);
        }
        match possible.iter().find(|&cpu| !seen.contains(cpu)) {
            Some(cpu) => Err(SetupError::CpuWithoutUnit(cpu)),
            None => Ok(()),
        }
    }

    /// Checks the sizes. Those that pass are at most [`MAX_UNIT_SIZE`], but for the atom and the
    /// allocation, which are at most that times [`MAX_UNITS`].
    fn verify_sizes(&self) -> Result<(), SetupError> {
        let (unit_size, size_sum) = (self.unit_size, self.size_sum());
        if !self.atom_size.is_power_of_two() || self.atom_size < PAGE_SIZE {
            return Err(SetupError::AtomSize(self.atom_size));
        }
        if !unit_size.is_multiple_of(PAGE_SIZE) {
            return Err(SetupError::UnitUnaligned(unit_size));
        }
        if unit_size < MIN_UNIT_SIZE {
            return Err(SetupError::UnitTooSmall(unit_size));
        }
        if unit_size < size_sum {
            return Err(SetupError::UnitBelowSum { unit_size, size_sum });
        }
        if unit_size > MAX_UNIT_SIZE {
            return Err(SetupError::TooLarge);
        }
        if self.dyn_size < MIN_DYN_SIZE {
            return Err(SetupError::DynamicTooSmall(self.dyn_size));
        }
        if !self.reserved_size.is_multiple_of(GRANULE as usize) {
            return Err(SetupError::ReservedUnaligned(self.reserved_size));
        }
        let units = self.units_per_alloc();
        if !(1..=MAX_UNITS).contains(&units)
            || !self.alloc_size.is_multiple_of(unit_size)
            || !self.alloc_size.is_multiple_of(self.atom_size)
        {
            return Err(SetupError::AllocSize(self.alloc_size));
        }
        Ok(())
    }

    /// Checks that the groups lie within the tables and that each has a unit.
    fn verify_groups(&self) -> Result<(), SetupError> {
        if self.nr_groups > NR_CPUS {
            return Err(SetupError::TooManyGroups(self.nr_groups));
        }
        let units = self.units_of_groups().iter().map(|&units| units as usize).sum();
        if units > MAX_UNITS {
            return Err(SetupError::TooManyUnits(units));
        }
        match self.units_of_groups().iter().position(|&units| units == 0) {
            Some(group) => Err(SetupError::GroupWithoutUnit(group)),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for AllocInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllocInfo")
            .field("static_size", &self.static_size)
            .field("reserved_size", &self.reserved_size)
            .field("dyn_size", &self.dyn_size)
            .field("unit_size", &self.unit_size)
            .field("atom_size", &self.atom_size)
            .field("alloc_size", &self.alloc_size)
            .field("nr_groups", &self.nr_groups)
            .field("group_units", &self.units_of_groups())
            .finish()
    }
}
