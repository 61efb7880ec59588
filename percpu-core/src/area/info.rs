//! How large units are and which CPU gets which unit: arithmetic only, no memory.

use core::fmt;

use super::{Config, LOCAL_DISTANCE, MAX_UNIT_SIZE, MIN_DYN_SIZE, MIN_UNIT_SIZE, SetupError};
use crate::cpu::NR_CPUS;
use crate::view::{GRANULE, PAGE};

const PAGE_SIZE: usize = PAGE as usize;

/// Unit slots that can be needed: no choice of units per allocation may waste more than a third of
/// the possible CPUs.
const MAX_UNITS: usize = NR_CPUS + NR_CPUS / 3;

/// Marks a unit slot without a CPU. Linux: `NR_CPUS` in `cpu_map`.
pub const NO_CPU: u16 = u16::MAX;

/// A set of CPU numbers, before the possible mask exists.
#[derive(Clone, PartialEq, Eq)]
pub struct CpuSet {
    words: [u64; NR_CPUS / 64],
}

impl CpuSet {
    /// The set of the CPUs that `cpus` yields, however often.
    ///
    /// # Errors
    ///
    /// [`SetupError::CpuOutOfRange`] if a number is not below [`NR_CPUS`].
    pub fn new(cpus: impl IntoIterator<Item = u32>) -> Result<Self, SetupError> {
        let mut words = [0; NR_CPUS / 64];
        for cpu in cpus {
            if cpu as usize >= NR_CPUS {
                return Err(SetupError::CpuOutOfRange(cpu));
            }
            words[cpu as usize / 64] |= 1 << (cpu % 64);
        }
        Ok(Self { words })
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
/// About 5 KiB; [`build`](Self::build) needs 12 KiB of stack.
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

        let groups = Groups::new(possible, config.distance);
        let upa = groups.best_units_per_alloc(alloc_size, min_unit_size, possible.count());
        let unit_size = alloc_size / upa;
        if unit_size > MAX_UNIT_SIZE {
            return Err(SetupError::TooLarge);
        }

        let mut info = Self {
            static_size,
            reserved_size: config.reserved_size,
            dyn_size: size_sum - static_size - config.reserved_size,
            unit_size,
            atom_size,
            alloc_size,
            nr_groups: groups.count,
            group_units: [0; NR_CPUS],
            cpu_map: [NO_CPU; MAX_UNITS],
        };
        let mut first_unit = 0;
        for group in 0..groups.count {
            let members = possible.iter().filter(|&cpu| groups.of[cpu as usize] == group as u16);
            for (unit, cpu) in members.enumerate() {
                info.cpu_map[first_unit + unit] = cpu as u16;
            }
            let units = (groups.members[group] as usize).next_multiple_of(upa);
            info.group_units[group] = units as u16;
            first_unit += units;
        }
        Ok(info)
    }

    /// Bytes of static, reserved and dynamic part together, up to a page boundary.
    pub fn size_sum(&self) -> usize {
        self.static_size
            .saturating_add(self.reserved_size)
            .saturating_add(self.dyn_size)
            .checked_next_multiple_of(PAGE_SIZE)
            .unwrap_or(usize::MAX)
    }

    /// Units in one allocation of memory. Linux: `upa`.
    pub fn units_per_alloc(&self) -> usize {
        self.alloc_size / self.unit_size
    }

    /// The CPUs of each group's units; [`NO_CPU`] where a unit has none.
    pub fn groups(&self) -> impl Iterator<Item = &[u16]> {
        let mut rest = &self.cpu_map[..];
        self.group_units[..self.nr_groups].iter().map(move |&units| {
            let (group, tail) = rest.split_at(units as usize);
            rest = tail;
            group
        })
    }

    /// Checks the rules that a first chunk depends on, whoever made this description.
    ///
    /// # Errors
    ///
    /// The rule that is broken.
    pub fn verify(&self, possible: &CpuSet) -> Result<(), SetupError> {
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
        let mut seen = CpuSet { words: [0; NR_CPUS / 64] };
        for cpu in self.groups().flatten().copied().filter(|&cpu| cpu != NO_CPU) {
            let cpu = u32::from(cpu);
            if !possible.contains(cpu) {
                return Err(SetupError::UnitOfImpossibleCpu(cpu));
            }
            if seen.contains(cpu) {
                return Err(SetupError::CpuWithTwoUnits(cpu));
            }
            seen.words[cpu as usize / 64] |= 1 << (cpu % 64);
        }
        match possible.iter().find(|&cpu| !seen.contains(cpu)) {
            Some(cpu) => Err(SetupError::CpuWithoutUnit(cpu)),
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
            .field("group_units", &&self.group_units[..self.nr_groups])
            .finish()
    }
}

/// Possible CPUs, grouped by distance.
struct Groups {
    count: usize,
    /// The group of each CPU; of no meaning where the CPU is not possible.
    of: [u16; NR_CPUS],
    /// The number of CPUs in each group.
    members: [u16; NR_CPUS],
}

impl Groups {
    /// Puts each CPU into the first group whose every member is local to it both ways.
    fn new(possible: &CpuSet, distance: fn(u32, u32) -> u32) -> Self {
        let mut groups = Self { count: 0, of: [0; NR_CPUS], members: [0; NR_CPUS] };
        let local = |a, b| distance(a, b) <= LOCAL_DISTANCE && distance(b, a) <= LOCAL_DISTANCE;
        for cpu in possible.iter() {
            let admits = |group: usize| {
                possible
                    .iter()
                    .take_while(|&other| other < cpu)
                    .filter(|&other| groups.of[other as usize] as usize == group)
                    .all(|other| local(cpu, other))
            };
            let group = (0..groups.count).find(|&group| admits(group)).unwrap_or(groups.count);
            groups.count = groups.count.max(group + 1);
            groups.of[cpu as usize] = group as u16;
            groups.members[group] += 1;
        }
        groups
    }

    /// The number of units to put into an allocation of `alloc_size` bytes: few allocations first,
    /// then few wasted units, and never waste of more than a third.
    fn best_units_per_alloc(&self, alloc_size: usize, min_unit_size: usize, cpus: usize) -> usize {
        let divides = |upa: usize| {
            alloc_size.is_multiple_of(upa) && (alloc_size / upa).is_multiple_of(PAGE_SIZE)
        };
        let mut best = 1;
        let mut fewest_allocs = usize::MAX;
        for upa in (1..=alloc_size / min_unit_size).rev().filter(|&upa| divides(upa)) {
            let members = self.members[..self.count].iter().map(|&n| n as usize);
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
}
