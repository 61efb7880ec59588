//! What the tests of areas and of the allocator share: a platform that checks its own contract,
//! and a checker that reads the allocator's structures from outside.

// Each test program uses a part of this.
#![allow(dead_code)]

pub mod checker;
pub mod fake;
pub mod random;
pub mod scale;
pub mod threads;

use std::collections::BTreeMap;

use percpu_core::alloc::{AllocError, AllocFlags, Allocator, FreeError};
use percpu_core::area::{AllocInfo, Config, CpuSet, FirstChunk, Method};
use percpu_core::platform::NoMemory;
use percpu_core::var::PerCpuPtr;

use fake::{Fake, FakeHandle};
use scale::INTERPRETED;

/// An allocator over a fake platform, and the model of what is allocated: intervals only.
pub struct World {
    pub allocator: Allocator<Fake>,
    pub possible: Vec<u32>,
    /// CPUs that have a unit.
    pub cpus: Vec<u32>,
    pub live: BTreeMap<usize, Area>,
    pub fake: FakeHandle,
    seed: u8,
    /// The bytes of the first chunk's units come from here; nobody changes it.
    template: Vec<Page>,
    pub static_size: usize,
}

#[derive(Clone)]
#[repr(align(4096))]
struct Page(#[allow(dead_code, reason = "read through its address")] [u8; 4096]);

/// What the model knows of an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    pub size: usize,
    pub align: usize,
    pub reserved: bool,
    /// What the test has filled it with.
    pub fill: u8,
}

/// The shape of a test's first chunk.
#[derive(Clone, Debug)]
pub struct Shape {
    pub cpus: Vec<u32>,
    pub static_size: usize,
    pub config: Config,
}

impl Default for Shape {
    fn default() -> Self {
        Self { cpus: vec![0, 1, 2], static_size: 100, config: Config::default() }
    }
}

/// Two groups: even and odd CPUs.
pub fn two_groups(a: u32, b: u32) -> u32 {
    if a % 2 == b % 2 { 10 } else { 20 }
}

impl Drop for World {
    /// The allocator gives its memory back to the platform it came from, though the thread may
    /// have got another one since.
    fn drop(&mut self) {
        self.fake.adopt();
    }
}

/// The bytes of a copy of a live area of a test.
fn copy<'a>(offset: usize, ptr: usize, size: usize) -> &'a mut [u8] {
    let start = std::ptr::with_exposed_provenance_mut(ptr.wrapping_add(offset));
    // SAFETY: the area is live and the test's own, and the tests look at one copy at a time.
    unsafe { std::slice::from_raw_parts_mut(start, size) }
}

/// How an allocation fails that finds no room.
pub fn no_room(flags: AllocFlags) -> AllocError {
    if flags.contains(AllocFlags::RESERVED) {
        AllocError::NoReservedRoom
    } else if flags.contains(AllocFlags::ATOMIC) {
        AllocError::NoPopulatedRoom
    } else {
        AllocError::NoMemory
    }
}

impl World {
    pub fn new(shape: &Shape) -> Self {
        Self::on(fake::install(), shape)
    }

    pub fn on(fake: FakeHandle, shape: &Shape) -> Self {
        let template = vec![Page([0x5a; 4096]); shape.static_size.div_ceil(4096).max(1)];
        let possible = CpuSet::new(shape.cpus.iter().copied()).unwrap();
        let by_page = shape.config.method == Method::Page;
        let config = if by_page { shape.config.by_page() } else { shape.config };
        let info = AllocInfo::build(shape.static_size, &config, &possible).unwrap();
        info.verify(&possible).unwrap();
        let start = template.as_ptr().expose_provenance();
        let limit = config.span_limit();
        let with_unit = config.units_at_set_up(&possible).unwrap();
        let first = if by_page {
            // SAFETY: verified above, of possible CPUs and by page; the template outlives the first
            // chunk and is not changed.
            unsafe { FirstChunk::page(&info, start, &with_unit) }
        } else {
            // SAFETY: as above.
            unsafe { FirstChunk::embed(&info, start, limit, &with_unit) }
        };
        let first = first.unwrap();
        let allocator = Allocator::new();
        allocator.init(first).unwrap();
        let live = BTreeMap::new();
        Self {
            allocator,
            possible: possible.iter().collect(),
            cpus: with_unit.iter().collect(),
            live,
            fake,
            seed: 1,
            template,
            static_size: shape.static_size,
        }
    }

    /// The per-CPU pointer to the first static variable.
    pub fn first_static(&self) -> usize {
        self.template.as_ptr().addr()
    }

    /// Gives `cpu` a unit.
    pub fn add_unit(&mut self, cpu: u32) -> Result<(), NoMemory> {
        self.allocator.add_unit(cpu)?;
        if !self.cpus.contains(&cpu) {
            self.cpus.push(cpu);
            // In the new unit every area is zero (H3); from here on it has its owner's bytes too.
            for (&ptr, area) in &self.live {
                let first = self.allocator.first_chunk().unwrap();
                let copy = copy(first.offset(cpu).unwrap(), ptr, area.size);
                assert!(*copy == *vec![0; area.size], "H3: {ptr:#x} is not zero on CPU {cpu}");
                copy.fill(area.fill ^ cpu as u8);
            }
        }
        Ok(())
    }

    /// Shows `f` the bytes of each CPU's copy of the area at `ptr`.
    pub fn for_each_copy(&self, ptr: usize, size: usize, mut f: impl FnMut(u32, &mut [u8])) {
        for &cpu in &self.cpus {
            let first = self.allocator.first_chunk().unwrap();
            f(cpu, copy(first.offset(cpu).unwrap(), ptr, size));
        }
    }

    /// Allocates; checks that it is zero everywhere (I14), fills it and enters it into the model.
    pub fn alloc(
        &mut self,
        size: usize,
        align: usize,
        flags: AllocFlags,
    ) -> Result<usize, AllocError> {
        let ptr = self.allocator.alloc(size, align, flags)?.raw();
        let fill = self.seed;
        self.seed = self.seed % 250 + 1;
        self.for_each_copy(ptr, size.next_multiple_of(4), |cpu, bytes| {
            assert!(*bytes == *vec![0; bytes.len()], "I14: not zero on CPU {cpu}");
            bytes.fill(fill ^ cpu as u8);
        });
        let reserved = flags.contains(AllocFlags::RESERVED);
        let area = Area { size: size.next_multiple_of(4), align: align.max(4), reserved, fill };
        let end = ptr + area.size;
        if let Some((&other, below)) = self.live.range(..end).next_back() {
            assert!(other + below.size <= ptr, "I1: {ptr:#x}..{end:#x} overlaps {other:#x}");
        }
        self.live.insert(ptr, area);
        Ok(ptr)
    }

    /// Frees an area of the model after a look at whether its bytes are still there.
    pub fn free(&mut self, ptr: usize) {
        let area = self.live.remove(&ptr).expect("a live area");
        self.for_each_copy(ptr, area.size, |cpu, bytes| {
            let expected = vec![area.fill ^ cpu as u8; area.size];
            assert!(*bytes == *expected, "area {ptr:#x} was overwritten");
        });
        // SAFETY: the model has forgotten it, so nobody uses it.
        unsafe { self.allocator.free(PerCpuPtr::from_raw(ptr)) }.unwrap();
    }

    /// Frees whatever `ptr` is.
    pub fn free_raw(&self, ptr: usize) -> Result<(), FreeError> {
        // SAFETY: the callers pass pointers that are to be refused, or do not use them again.
        unsafe { self.allocator.free(PerCpuPtr::from_raw(ptr)) }
    }

    pub fn free_all(&mut self) {
        while let Some((&ptr, _)) = self.live.first_key_value() {
            self.free(ptr);
        }
    }

    /// Evaluates the invariants; not under Miri, which looks for something else and would take hours.
    pub fn check(&self) {
        if !INTERPRETED {
            checker::check(self);
        }
    }

    /// Areas of all sizes until no populated granule is left.
    pub fn fill_up(&mut self) {
        for size in [4096, 256, 16, 4] {
            self.fill(size);
        }
    }

    /// Areas of `size` until there is no room on populated pages.
    pub fn fill(&mut self, size: usize) -> Vec<usize> {
        let mut areas = Vec::new();
        while let Ok(ptr) = self.alloc(size, 4, AllocFlags::ATOMIC) {
            areas.push(ptr);
        }
        areas
    }
}
