//! Where the guest keeps what the judge reads: the roots and what never changes after boot.

use std::mem::offset_of;

use percpu_core::view::{AllocatorView, AreasView, Roots, VIEW_VERSION};
use percpu_guest::abi::{BootParams, SHARED, Shared, SharedHeader};

use super::finding::{Violation, kind};
use crate::memory::{AddressSpace, Following, Wild};

/// The guest's address space as set up at boot.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) roots: Roots,
    pub(crate) areas: AreasView,
    /// `per_cpu_offset` of each possible CPU; 0 while it has no unit.
    pub(crate) offsets: Vec<u64>,
    /// Where each possible CPU's unit lies in a chunk, or will lie.
    pub(crate) unit_offsets: Vec<u64>,
    /// What the host ordered the counters' batch not to fall below.
    smallest_batch: u32,
    /// CPUs that had a unit when the guest had booted, a bit each.
    at_boot: u64,
}

/// The CPU masks that the host looks at, the first 64 CPUs of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Masks {
    pub(crate) online: u64,
    pub(crate) dying: u64,
    /// CPUs over which the guest sums.
    pub(crate) counted: u64,
}

impl Masks {
    /// Whether a sum of the guest's has the local of `cpu`.
    pub(crate) fn is_counted(&self, cpu: u32) -> bool {
        self.counted >> cpu & 1 != 0
    }

    /// Whether `cpu` is up, or was not torn down yet. Not asked of the mask over which the guest sums:
    /// a CPU that is not folded stays in that, and would never be looked at.
    pub(crate) fn is_in_service(&self, cpu: u32) -> bool {
        (self.online | self.dying) >> cpu & 1 != 0
    }
}

impl Layout {
    /// Address of the roots in the shared region.
    pub(crate) fn roots_address() -> u64 {
        SHARED + (offset_of!(Shared, header) + offset_of!(SharedHeader, roots)) as u64
    }

    /// Reads the roots and the tables that stay as they are.
    pub(crate) fn read(space: &AddressSpace<'_>, possible: u32) -> Result<Self, Box<Violation>> {
        let roots: Roots = space.mem().read(Self::roots_address()).following(|| "the roots")?;
        if roots.version != VIEW_VERSION {
            let detail = format!(
                "the roots have version {}, this host reads version {VIEW_VERSION}",
                roots.version
            );
            return Err(Violation::new(kind::MEMORY, "the roots", detail)
                .values(roots.version, VIEW_VERSION)
                .into());
        }
        let enough = roots.nr_cpu_ids >= possible && (8..=128).contains(&roots.mask_size);
        if !enough {
            let detail = format!(
                "the roots speak of {} CPUs in masks of {} bytes, {possible} CPUs are possible",
                roots.nr_cpu_ids, roots.mask_size
            );
            return Err(Violation::new(kind::MEMORY, "the roots", detail)
                .values(roots.nr_cpu_ids, possible)
                .into());
        }
        let areas: AreasView = space.read(roots.areas).following(|| "the root of the areas")?;
        let allocator = read_allocator(space, &roots)?;
        let offsets =
            space.words(areas.offset, possible as usize).following(|| "the per-CPU offsets")?;
        let unit_offsets = space
            .words(allocator.unit_offset, possible as usize)
            .following(|| "the unit offsets")?;
        let at_boot = (0..possible).filter(|&cpu| offsets[cpu as usize] != 0);
        let at_boot = at_boot.fold(0, |set, cpu| set | 1 << cpu);
        let smallest = SHARED
            + (offset_of!(SharedHeader, boot) + offset_of!(BootParams, smallest_batch)) as u64;
        let smallest_batch = space.mem().load_u32(smallest).following(|| "the shared header")?;
        Ok(Self { roots, areas, offsets, unit_offsets, smallest_batch, at_boot })
    }

    /// Learns of units that CPUs have got since. What is known of others stays: that it does so in
    /// the guest is I18's business, as is an offset that is none.
    pub(crate) fn learn_units(&mut self, space: &AddressSpace<'_>) {
        let now = space.words(self.areas.offset, self.offsets.len());
        let (Ok(now), Ok(allocator)) = (now, self.allocator(space)) else { return };
        for (cpu, offset) in now.into_iter().enumerate() {
            let place = allocator.delta.wrapping_add(self.unit_offsets[cpu]);
            if self.offsets[cpu] == 0 && offset == place {
                self.offsets[cpu] = offset;
            }
        }
    }

    /// Whether a CPU has a unit.
    pub(crate) fn has_unit(&self, cpu: u32) -> bool {
        self.offsets[cpu as usize] != 0
    }

    /// Whether it had one from the guest's boot on.
    pub(crate) fn had_unit_at_boot(&self, cpu: u32) -> bool {
        self.at_boot >> cpu & 1 != 0
    }

    /// The CPUs that have a unit.
    pub(crate) fn units(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.possible()).filter(|&cpu| self.has_unit(cpu))
    }

    /// Address of `ptr` in a CPU, if that has a unit.
    pub(crate) fn address(&self, ptr: u64, cpu: u32) -> Option<u64> {
        self.has_unit(cpu).then(|| ptr.wrapping_add(self.offsets[cpu as usize]))
    }

    /// Whether a per-CPU pointer is a static variable's.
    pub(crate) fn is_static(&self, ptr: u64) -> bool {
        ptr.wrapping_sub(self.areas.template) < self.areas.static_size
    }

    /// Number of possible CPUs.
    pub(crate) fn possible(&self) -> u32 {
        self.offsets.len() as u32
    }

    /// The allocator's root as it is now.
    pub(crate) fn allocator(&self, space: &AddressSpace<'_>) -> Result<AllocatorView, Wild> {
        read_allocator(space, &self.roots)
    }

    /// The masks as they are now.
    pub(crate) fn masks(&self, space: &AddressSpace<'_>) -> Result<Masks, Wild> {
        let mask = |n: u64| {
            let address = self.roots.masks.wrapping_add(n * self.roots.mask_size);
            space.read::<u64>(address).following(|| "the CPU masks")
        };
        Ok(Masks { online: mask(2)?, dying: mask(4)?, counted: mask(7)? })
    }

    /// The batch that belongs to a number of online CPUs.
    pub(crate) fn batch_for(&self, online: u32) -> i64 {
        i64::from(online).saturating_mul(2).max(self.smallest_batch.into())
    }

    /// The counters' batch as it is now.
    pub(crate) fn batch(&self, space: &AddressSpace<'_>) -> Result<i32, Wild> {
        space.read(self.roots.counter_batch).following(|| "the root of the counters' batch")
    }
}

fn read_allocator(space: &AddressSpace<'_>, roots: &Roots) -> Result<AllocatorView, Wild> {
    space.read(roots.allocator).following(|| "the root of the allocator")
}
