//! The invariants I1 to I13, I15 and I18, evaluated from the views alone: what a debugger or a host
//! could see, and the model's intervals.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::ptr::with_exposed_provenance;

use percpu_core::alloc::slot_of;
use percpu_core::view::{
    AllocatorView, BLOCK_GRANULES, BlockView, CHUNK_DEMOTED, CHUNK_IMMUTABLE, CHUNK_ISOLATED,
    CHUNK_RESERVED, CacheView, ChunkView, GRANULE, ListView, PAGE, View,
};

use super::World;
use super::scale::INTERPRETED;

/// A chunk as it lies in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub view: ChunkView,
    pub blocks: Vec<BlockView>,
    alloc: Bits,
    bound: Bits,
    live: Bits,
    populated: Bits,
}

/// Everything the views show, by address of chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub view: AllocatorView,
    pub chunks: BTreeMap<u64, Chunk>,
    /// Areas that wait in CPUs' caches.
    pub cached: Vec<CachedArea>,
}

/// A freed area on a shelf of a CPU's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedArea {
    pub cpu: u32,
    /// In unit space.
    pub address: u64,
    pub zero: bool,
    pub granules: u32,
}

fn read<T: View>(addr: u64) -> T {
    // SAFETY: the address is a view's; nobody changes the structures while a test looks.
    unsafe { with_exposed_provenance::<T>(addr as usize).read() }
}

/// Reads the view of an allocator, in which two fields are not initialised.
fn read_allocator(addr: usize) -> AllocatorView {
    let at = with_exposed_provenance::<MaybeUninit<AllocatorView>>(addr);
    // SAFETY: as in `read`; any bytes will do.
    let mut view = unsafe { at.read() };
    // SAFETY: the fields lie in `view`, and with them all are initialised.
    unsafe {
        (&raw mut (*view.as_mut_ptr()).reserved).write(0);
        (&raw mut (*view.as_mut_ptr()).reserved2).write(0);
        view.assume_init()
    }
}

/// A bitmap as it lies in memory; comparing two is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bits {
    words: Vec<u64>,
    count: u32,
}

impl Bits {
    fn read(addr: u64, count: u32) -> Self {
        let word = |n: u32| read(addr + u64::from(n) * 8);
        Self { words: (0..count.div_ceil(64)).map(word).collect(), count }
    }

    fn get(&self, at: u32) -> bool {
        self.words[at as usize / 64] >> (at % 64) & 1 != 0
    }

    fn to_vec(&self) -> Vec<bool> {
        (0..self.count).map(|at| self.get(at)).collect()
    }
}

fn read_chunk(addr: u64) -> Chunk {
    let view: ChunkView = read(addr);
    let granules = view.nr_pages * BLOCK_GRANULES;
    Chunk {
        blocks: (0..u64::from(view.nr_pages)).map(|i| read(view.blocks + i * 32)).collect(),
        alloc: Bits::read(view.alloc_map, granules),
        bound: Bits::read(view.bound_map, granules + 1),
        live: Bits::read(view.live_map, granules),
        populated: Bits::read(view.populated, view.nr_pages),
        view,
    }
}

fn read_caches(view: &AllocatorView) -> Vec<CachedArea> {
    let mut areas = Vec::new();
    for cpu in 0..view.nr_caches {
        let address: u64 = read(view.caches + u64::from(cpu) * 8);
        if address == 0 {
            continue;
        }
        let cache: CacheView = read(address);
        assert_eq!(cache.lock, 0);
        let before = areas.len();
        for shelf in &cache.shelves {
            let on_shelf = &shelf.areas[..shelf.count as usize];
            areas.extend(on_shelf.iter().map(|area| CachedArea {
                cpu,
                address: area.area(),
                zero: area.is_zero(),
                granules: shelf.len,
            }));
        }
        let held: u32 = areas[before..].iter().map(|area| area.granules).sum();
        assert_eq!(cache.held, held, "the cache of CPU {cpu} counts wrong");
    }
    areas
}

/// Walks all lists; checks that they are lists and that chunks know where they are (I9).
pub fn picture(view_address: usize) -> Picture {
    let view = read_allocator(view_address);
    assert_eq!(view.lock, 0);
    let mut chunks = BTreeMap::new();
    for slot in 0..view.nr_slots {
        let head = view.slots + u64::from(slot) * 16;
        let mut node = head;
        loop {
            let link: ListView = read(node);
            let next: ListView = read(link.next);
            assert_eq!(next.prev, node, "slot {slot}: the list is broken");
            node = link.next;
            if node == head {
                break;
            }
            let chunk = read_chunk(node);
            let ChunkView { flags, md, .. } = chunk.view;
            assert_eq!(chunk.view.slot, slot, "I9: a chunk is on another list than it says");
            if flags & CHUNK_ISOLATED != 0 {
                assert_eq!(slot, view.sidelined_slot, "I9: isolated at quiescence");
            } else if flags & CHUNK_DEMOTED != 0 {
                assert_eq!(slot, 0, "I9: demoted");
            } else {
                let contig = (md.contig_hint * GRANULE) as usize;
                assert_eq!(slot, slot_of(contig, view.unit_size as usize), "I9: {chunk:?}");
            }
            assert_eq!(flags & CHUNK_RESERVED, 0, "the reserved chunk is listed");
            assert!(chunks.insert(node, chunk).is_none(), "a chunk is on two lists");
        }
    }
    assert_eq!(chunks.len(), view.nr_chunks as usize);
    assert!(chunks.contains_key(&view.first_chunk));
    if view.reserved_chunk != 0 {
        chunks.insert(view.reserved_chunk, read_chunk(view.reserved_chunk));
    }
    Picture { view, chunks, cached: read_caches(&view) }
}

impl Picture {
    /// The picture without what a search may change: the chunks' places on lists.
    pub fn without_order(mut self) -> Self {
        for chunk in self.chunks.values_mut() {
            chunk.view.link = ListView { next: 0, prev: 0 };
            chunk.view.slot = 0;
            chunk.view.flags &= !CHUNK_DEMOTED;
        }
        self
    }

    /// Wholly free chunks.
    pub fn free_chunks(&self) -> usize {
        self.chunks.values().filter(|c| c.view.md.contig_hint == c.view.md.nr_bits).count()
    }
}

/// Free runs, `(start, length)`.
fn runs(taken: &[bool]) -> Vec<(u32, u32)> {
    let mut start = 0;
    let mut runs = Vec::new();
    for piece in taken.chunk_by(|a, b| a == b) {
        if !piece[0] {
            runs.push((start, piece.len() as u32));
        }
        start += piece.len() as u32;
    }
    runs
}

fn check_hints(md: &BlockView, taken: &[bool], what: &str) {
    let runs = runs(taken);
    let bits = taken.len() as u32;
    assert_eq!(md.nr_bits, bits);
    let first = runs.first().copied();
    assert_eq!(md.first_free, first.map_or(bits, |(start, _)| start), "I5: {what}");
    let left = first.filter(|&(start, _)| start == 0).map_or(0, |(_, len)| len);
    assert_eq!(md.left_free, left, "I6: {what}");
    let last = runs.last().filter(|&&(start, len)| start + len == bits);
    assert_eq!(md.right_free, last.map_or(0, |&(_, len)| len), "I6: {what}");
    let longest = runs.iter().map(|&(_, len)| len).max().unwrap_or(0);
    assert_eq!(md.contig_hint, longest, "I7: {what}");
    let contig = (md.contig_hint_start, md.contig_hint);
    assert!(longest == 0 || runs.contains(&contig), "I7: {what}: {md:?}");
    if md.scan_hint != 0 {
        assert!(runs.contains(&(md.scan_hint_start, md.scan_hint)), "I8: {what}: {md:?}");
        assert!(md.scan_hint < md.contig_hint, "I8: {what}: {md:?}");
        // What searches rely on: no run before the contig run is longer.
        let before = runs.iter().take_while(|&&(start, _)| start < md.contig_hint_start);
        let before = before.map(|&(_, len)| len).max();
        assert_eq!(before, Some(md.scan_hint), "I8: {what}: {md:?}");
    }
}

pub fn check(world: &World) {
    let picture = picture(world.allocator.view_address());
    let view = &picture.view;
    let first = world.allocator.first_chunk().unwrap();
    let unit_offset = |cpu: u32| read::<u64>(view.unit_offset + u64::from(cpu) * 8) as usize;

    // I18, by the offsets that everybody uses against the table of the view.
    for &cpu in &world.possible {
        let by_view = unit_offset(cpu).wrapping_add(view.delta as usize);
        assert_eq!(first.offset(cpu), Some(by_view), "I18: CPU {cpu}");
    }

    // Which areas each chunk has: by the model, and those that wait in caches.
    let mut areas: BTreeMap<u64, Vec<Area>> = BTreeMap::new();
    let mut enter = |addr: u64, granules: u32, reserved: bool, live: bool| {
        let size = u64::from(granules * GRANULE);
        let (&at, chunk) = picture
            .chunks
            .iter()
            .find(|(_, chunk)| {
                let ChunkView { base, start_offset, end_offset, .. } = chunk.view;
                let managed =
                    base + u64::from(start_offset)..base + view.unit_size - u64::from(end_offset);
                managed.contains(&addr) && managed.contains(&(addr + size - 1))
            })
            .expect("I1: every area lies in the managed part of a chunk");
        assert_eq!(chunk.view.flags & CHUNK_RESERVED != 0, reserved);
        let start = (addr - chunk.view.base) as u32 / GRANULE;
        areas.entry(at).or_default().push(Area { start, end: start + granules, live });
    };
    let mut end_before = 0;
    for (&ptr, area) in &world.live {
        assert!(ptr >= end_before, "I1: areas overlap");
        end_before = ptr + area.size;
        assert_eq!(ptr.wrapping_add(view.delta as usize) % area.align, 0, "I1: alignment");
        let addr = (ptr as u64).wrapping_add(view.delta);
        enter(addr, area.size as u32 / GRANULE, area.reserved, true);
    }
    for area in &picture.cached {
        enter(area.address, area.granules, false, false);
        let bytes = (area.granules * GRANULE) as usize;
        for &cpu in world.cpus.iter().filter(|_| area.zero) {
            let copy = area.address as usize + unit_offset(cpu);
            // SAFETY: the area is taken, so it has memory, and nobody uses it.
            let copy =
                unsafe { std::slice::from_raw_parts(with_exposed_provenance::<u8>(copy), bytes) };
            assert!(
                copy.iter().all(|&byte| byte == 0),
                "I14: a cached area is not zero on CPU {cpu}"
            );
        }
    }

    let mut empty_pages = 0;
    for (at, chunk) in &picture.chunks {
        let areas = areas.remove(at).unwrap_or_default();
        check_chunk(world, chunk, &areas, unit_offset);
        if chunk.view.flags & (CHUNK_RESERVED | CHUNK_ISOLATED) == 0 {
            empty_pages += chunk.view.nr_empty_pop_pages;
        }
    }
    assert_eq!(view.nr_empty_pop_pages, empty_pages, "I12");
}

/// An area by the granules of its chunk.
#[derive(Clone, Copy)]
struct Area {
    start: u32,
    end: u32,
    /// Somebody holds it; else it waits in a cache.
    live: bool,
}

fn check_chunk(world: &World, chunk: &Chunk, areas: &[Area], unit_offset: impl Fn(u32) -> usize) {
    let view = &chunk.view;
    let granules = view.nr_pages * BLOCK_GRANULES;
    let managed_end = granules - view.end_offset / GRANULE;
    let hidden = [(0, view.start_offset / GRANULE), (managed_end, granules)];
    let hidden = hidden.into_iter().filter(|(start, end)| start != end);
    let hidden = hidden.map(|(start, end)| Area { start, end, live: false });

    let bound = chunk.bound.to_vec();
    let mut taken = vec![false; granules as usize];
    let mut live = vec![false; granules as usize];
    for Area { start, end, live: is_live } in areas.iter().copied().chain(hidden) {
        let area = &mut taken[start as usize..end as usize];
        assert!(!area.contains(&true), "I1: areas overlap");
        area.fill(true);
        live[start as usize] = is_live;
        assert!(bound[start as usize] && bound[end as usize], "I3: {start}..{end}");
        let inside = &bound[start as usize + 1..end as usize];
        assert!(inside.iter().all(|&b| !b), "I3: {start}..{end}");
    }
    assert!(chunk.alloc.to_vec() == taken, "I2");
    assert!(chunk.live.to_vec() == live, "the live map is not of the live areas' first granules");
    let free = taken.iter().filter(|&&t| !t).count() as u32;
    assert_eq!(view.free_bytes, free * GRANULE, "I4");

    let mut empty = 0;
    for (page, block) in chunk.blocks.iter().enumerate() {
        let range = page * BLOCK_GRANULES as usize..(page + 1) * BLOCK_GRANULES as usize;
        let taken = &taken[range];
        check_hints(block, taken, &format!("block {page} of {:#x}", view.base));
        let is_free = taken.iter().all(|&t| !t);
        let populated = chunk.populated.get(page as u32);
        empty += u32::from(populated && is_free);
        for &cpu in &world.possible {
            let addr = view.base as usize + unit_offset(cpu) + page * PAGE as usize;
            let expected = populated && world.cpus.contains(&cpu);
            assert_eq!(expected, world.fake.is_populated(addr), "page {page} on CPU {cpu}");
        }
    }
    check_hints(&view.md, &taken, &format!("chunk {:#x}", view.base));
    for &Area { start, end, .. } in areas {
        let pages = start / BLOCK_GRANULES..end.div_ceil(BLOCK_GRANULES);
        assert!(pages.into_iter().all(|page| chunk.populated.get(page)), "I13");
    }
    let populated = chunk.populated.to_vec().into_iter().filter(|&p| p).count() as u32;
    assert_eq!(view.nr_populated, populated, "I10");
    assert_eq!(view.nr_empty_pop_pages, empty, "I11");
}

/// Asserts what holds after balance work (I15); not under Miri.
pub fn check_balanced(world: &World) {
    if INTERPRETED {
        return;
    }
    let picture = picture(world.allocator.view_address());
    assert_eq!(picture.cached, [], "areas wait in caches after balance work");
    assert!(picture.free_chunks() <= 1, "I15: {} wholly free chunks", picture.free_chunks());
    let first = world.allocator.first_chunk().unwrap();
    for chunk in picture.chunks.values().filter(|c| c.view.flags & CHUNK_IMMUTABLE != 0) {
        assert_eq!(chunk.view.base as usize, first.base());
        let end = chunk.view.nr_pages * PAGE - chunk.view.end_offset;
        let managed = chunk.view.start_offset / PAGE..end.div_ceil(PAGE);
        let mut pages = managed.into_iter();
        assert!(pages.all(|page| chunk.populated.get(page)), "I15: first chunk depopulated");
    }
}
