//! Each corruption is found as exactly the invariant that it breaks.

use std::mem::offset_of;

use percpu_core::view::{
    AllocatorView, AreasView, BlockView, CACHED_ZERO, CHUNK_ISOLATED, CacheView, ChunkView,
    CounterView, ListView, Roots,
};
use percpu_guest::abi::{BootParams, ControlBlock, CpuState, EventKind, Invariant, SharedHeader};

use super::guest::{FIRST, Guest};
use super::{broken, look};

type Spoil = fn(&mut Guest);

/// Address of a field of chunk `n`.
fn field(guest: &Guest, n: usize, offset: usize) -> u64 {
    guest.chunks[n].address + offset as u64
}

fn add(guest: &Guest, at: u64, by: u32) {
    guest.change(at, |value: u32| value.wrapping_add(by));
}

/// Address of a field of block `block` of chunk `n`.
fn block(guest: &Guest, n: usize, block: u64, offset: usize) -> u64 {
    guest.chunks[n].view.blocks + block * size_of::<BlockView>() as u64 + offset as u64
}

/// Makes cached areas live ones, so that the caches can go.
fn empty_caches(guest: &mut Guest) {
    for (chunk, at, len) in [(0, 500, 4), (2, 1100, 4), (2, 1200, 20), (0, 508, 4)] {
        let ptr = guest.chunks[chunk].ptr(at);
        guest.flip(guest.chunks[chunk].view.live_map, at);
        guest.emit(0, EventKind::Alloc, [ptr, 4 * len, 4, 2, 0]);
    }
    for cache in &guest.caches {
        guest.change(*cache, |mut cache: CacheView| {
            cache.held = 0;
            cache.shelves.iter_mut().for_each(|shelf| shelf.count = 0);
            cache
        });
    }
}

const CORRUPTIONS: &[(&str, &str, Spoil)] = &[
    ("a pattern's byte changes on CPU 2", "I1", |g| {
        let at = g.copy(g.chunks[0].ptr(400), 2);
        g.change(at + 5, |byte: u8| byte ^ 1);
    }),
    ("an area is handed out twice", "I1", |g| {
        let ptr = g.chunks[2].ptr(1030);
        g.emit(1, EventKind::Alloc, [ptr, 128, 8, 2, 0]);
    }),
    ("an area is not aligned as asked", "I1", |g| {
        let ptr = g.chunks[0].ptr(300);
        g.emit(0, EventKind::Free, [ptr, 0, 0, 0, 0]);
        g.emit(1, EventKind::Alloc, [ptr, 96, 64, 2, 0]);
    }),
    ("a granule of an area is free in the map", "I2", |g| {
        // Every count and hint agrees with the map; only the owner does not.
        let ptr = g.chunks[2].ptr(3 * 1024 + 1);
        g.emit(0, EventKind::Alloc, [ptr, 4, 4, 2, 0]);
        // The boundary bits of that area.
        g.flip(g.chunks[2].view.bound_map, 3 * 1024 + 2);
    }),
    ("an area was freed but its granules are taken", "I2", |g| {
        let ptr = g.chunks[1].ptr(20);
        g.emit(0, EventKind::Free, [ptr, 0, 0, 0, 0]);
    }),
    ("a live bit is clear though somebody holds the area", "I2", |g| {
        g.flip(g.chunks[0].view.live_map, 300);
    }),
    ("a free has left the live bit of an area in a cache", "I2", |g| {
        g.flip(g.chunks[0].view.live_map, 500);
    }),
    ("a live bit is set where no area begins", "I2", |g| {
        g.flip(g.chunks[0].view.live_map, 301);
    }),
    ("an area is lost from its shelf", "I2", |g| {
        g.change(g.caches[1], |mut cache: CacheView| {
            cache.shelves[3].count = 0;
            cache.held = 0;
            cache
        });
    }),
    ("an area is in two caches", "I2", |g| {
        let first: CacheView = g.mem.read_virt(g.caches[0]).unwrap();
        g.change(g.caches[1], |mut cache: CacheView| {
            cache.shelves[3].areas[1] = first.shelves[3].areas[0];
            cache.shelves[3].count = 2;
            cache.held += 4;
            cache
        });
    }),
    ("an area is on a shelf of another size", "I2", |g| {
        g.change(g.caches[0], |mut cache: CacheView| {
            cache.shelves[16].len = 16;
            cache.held -= 4;
            cache
        });
    }),
    ("a cached area names another chunk's ledger", "I2", |g| {
        let ledger = g.chunks[2].view.ledger;
        g.change(g.caches[1], |mut cache: CacheView| {
            cache.shelves[3].areas[0].ledger = ledger;
            cache
        });
    }),
    ("a cached area lies nowhere", "I2", |g| {
        g.change(g.caches[1], |mut cache: CacheView| {
            cache.shelves[3].areas[0].address = 0xdead_beef_0000;
            cache
        });
    }),
    ("an area in a cache is said to be zero and is not on CPU 1", "I14", |g| {
        g.change(g.caches[0], |mut cache: CacheView| {
            cache.shelves[3].areas[0].address |= CACHED_ZERO;
            cache
        });
        let at = g.copy(g.chunks[0].ptr(503), 1);
        g.poke(at, 0x40u8);
    }),
    ("a cache counts its granules wrong", "I2", |g| {
        g.change(g.caches[0], |cache: CacheView| CacheView { held: cache.held + 1, ..cache });
    }),
    ("a boundary bit is missing at the start", "I3", |g| {
        g.flip(g.chunks[0].view.bound_map, 300);
    }),
    ("a boundary bit is missing at the end", "I3", |g| {
        g.flip(g.chunks[0].view.bound_map, 403);
    }),
    ("free bytes are off by a granule", "I4", |g| {
        add(g, field(g, 0, offset_of!(ChunkView, free_bytes)), 4);
    }),
    ("the chunk's first_free lies too far", "I5", |g| {
        let md = offset_of!(ChunkView, md) + offset_of!(BlockView, first_free);
        add(g, field(g, 0, md), 1);
    }),
    ("a block's first_free lies before the first", "I5", |g| {
        add(g, block(g, 2, 1, offset_of!(BlockView, first_free)), u32::MAX);
    }),
    ("left_free is off", "I6", |g| add(g, block(g, 2, 1, offset_of!(BlockView, left_free)), 1)),
    ("right_free is off", "I6", |g| {
        add(g, block(g, 0, 0, offset_of!(BlockView, right_free)), 1);
    }),
    ("a block's contig hint is lost", "I7", |g| {
        add(g, block(g, 2, 1, offset_of!(BlockView, contig_hint)), u32::MAX);
    }),
    ("the chunk's contig hint is too small", "I7", |g| {
        // By one granule: the slot stays the same.
        let md = offset_of!(ChunkView, md) + offset_of!(BlockView, contig_hint);
        add(g, field(g, 2, md), u32::MAX);
    }),
    ("a contig hint names a place that is not free", "I7", |g| {
        add(g, block(g, 2, 1, offset_of!(BlockView, contig_hint_start)), u32::MAX);
    }),
    ("a scan hint names granules that are taken", "I8", |g| {
        add(g, block(g, 0, 0, offset_of!(BlockView, scan_hint)), 1);
    }),
    ("a scan hint does not precede the contig run", "I8", |g| {
        let start = block(g, 0, 0, offset_of!(BlockView, scan_hint_start));
        let contig: u32 =
            g.mem.read_virt(block(g, 0, 0, offset_of!(BlockView, contig_hint_start))).unwrap();
        g.poke(start, contig);
    }),
    ("a scan hint is no smaller than the contig run", "I8", |g| {
        g.poke(block(g, 1, 0, offset_of!(BlockView, contig_hint_start)), 30u32);
        g.poke(block(g, 1, 0, offset_of!(BlockView, scan_hint)), [4u32, 16]);
    }),
    ("a chunk says another slot than the list it is on", "I9", |g| {
        add(g, field(g, 2, offset_of!(ChunkView, slot)), 1);
    }),
    ("a chunk is on the list of a slot that its hint does not demand", "I9", |g| {
        // Both chunks' lists change their heads.
        let [a, b] = [0, 2].map(|n| g.slots + u64::from(g.chunks[n].view.slot) * 16);
        for (head, n) in [(a, 2), (b, 0)] {
            let chunk = g.chunks[n].address;
            g.poke(head, ListView { next: chunk, prev: chunk });
            g.poke(chunk, ListView { next: head, prev: head });
            let other = g.chunks[2 - n].view.slot;
            g.poke(field(g, n, offset_of!(ChunkView, slot)), other);
        }
    }),
    ("an isolated chunk is on an ordinary list", "I9", |g| {
        let flags = field(g, 2, offset_of!(ChunkView, flags));
        g.change(flags, |flags: u32| flags | CHUNK_ISOLATED);
        // Its pages are no longer counted.
        let pages = g.chunks[2].view.nr_empty_pop_pages;
        let total = g.allocator + offset_of!(AllocatorView, nr_empty_pop_pages) as u64;
        g.change(total, |n: u32| n - pages);
    }),
    ("a chunk is missing from the lists", "I9", |g| {
        let count = g.allocator + offset_of!(AllocatorView, nr_chunks) as u64;
        add(g, count, 1);
    }),
    ("populated pages are counted wrong", "I10", |g| {
        add(g, field(g, 2, offset_of!(ChunkView, nr_populated)), 1);
    }),
    ("empty populated pages are counted wrong", "I11", |g| {
        add(g, field(g, 2, offset_of!(ChunkView, nr_empty_pop_pages)), 1);
        let total = g.allocator + offset_of!(AllocatorView, nr_empty_pop_pages) as u64;
        add(g, total, 1);
    }),
    ("the allocator's count of empty pages is off", "I12", |g| {
        let total = g.allocator + offset_of!(AllocatorView, nr_empty_pop_pages) as u64;
        add(g, total, 1);
    }),
    ("the page under an area is not marked populated", "I13", |g| {
        g.flip(g.chunks[2].view.populated, 3);
        add(g, field(g, 2, offset_of!(ChunkView, nr_populated)), u32::MAX);
    }),
    ("two CPUs share the frame of a page", "I13", |g| {
        let page = |cpu: u32| g.copy(g.chunks[2].ptr(3 * 1024), cpu);
        let frame = g.mem.translate(page(1)).unwrap();
        let other = page(2);
        g.map(other, frame, false);
    }),
    ("memory handed out is not zero on CPU 3", "I14", |g| {
        let at = g.copy(g.chunks[0].ptr(300), 3);
        g.poke(at + 12, 0x51u8);
    }),
    ("a page of the first chunk was depopulated", "I15", |g| {
        // An empty one, with all counts right.
        g.flip(g.chunks[0].view.populated, 4);
        add(g, field(g, 0, offset_of!(ChunkView, nr_populated)), u32::MAX);
        add(g, field(g, 0, offset_of!(ChunkView, nr_empty_pop_pages)), u32::MAX);
        let total = g.allocator + offset_of!(AllocatorView, nr_empty_pop_pages) as u64;
        add(g, total, u32::MAX);
    }),
    ("an offset changes after boot", "I18", |g| {
        g.change(g.offsets + 8 * 3, |offset: u64| offset + 4096);
    }),
    ("the template's address is not what the offsets say", "I18", |g| {
        let at = g.areas + offset_of!(AreasView, base) as u64;
        g.poke(at, FIRST + 4096);
    }),
    ("an add is lost", "K1", |g| {
        let at = g.counters[0] + offset_of!(CounterView, count) as u64;
        g.change(at, |count: i64| count - 1);
    }),
    ("a fold counts a CPU twice", "K1", |g| {
        let at = g.copy(g.chunks[2].ptr(1028), 1);
        g.poke(at, 30i32);
    }),
    ("a local reaches the batch", "K2", |g| {
        let at = g.copy(g.chunks[2].ptr(1028), 1);
        g.poke(at, -32i32);
        let count = g.counters[1] + offset_of!(CounterView, count) as u64;
        g.change(count, |count: i64| count + 31 + 32);
    }),
    ("a fold was begun and not ended", "K3", |g| {
        g.poke(g.counters[1] + offset_of!(CounterView, sequence) as u64, 7u64);
    }),
    ("a live counter says that it was destroyed", "K3", |g| {
        g.poke(g.counters[0] + offset_of!(CounterView, magic) as u64, 0xdead_c047u32);
    }),
    ("the batch is not that of the online CPUs", "K2", |g| g.poke(g.batch, 33i32)),
    ("a CPU went down and was not folded", "K5", |g| {
        let at = g.copy(g.chunks[0].ptr(280), 3);
        g.poke(at, 17i32);
        let count = g.counters[0] + offset_of!(CounterView, count) as u64;
        g.change(count, |count: i64| count - 17);
    }),
    ("a live counter is not on the list", "K5", |g| {
        let ptr: u64 =
            g.mem.read_virt(g.counters[0] + offset_of!(CounterView, locals) as u64).unwrap();
        g.poke(g.counter_head, g.counters[1]);
        g.poke(g.counters[1] + 8, g.counter_head);
        // Its locals have an owner nevertheless.
        g.emit(0, EventKind::Alloc, [ptr, 4, 4, 2, 0]);
    }),
    ("a destroyed counter stays on the list", "K5", |g| {
        let address = g.counters[1];
        g.emit(0, EventKind::CounterDestroy, [address, 0, 0, 0, 0]);
    }),
    ("a static's sum loses an add", "S1", |g| {
        let ptr = FIRST - g.chunks[0].ptr(0);
        let at = g.copy(FIRST + 8 - ptr, 0);
        g.change(at, |word: u64| word - 1);
    }),
    ("a dynamic sum gains something", "S1", |g| {
        let at = g.copy(g.chunks[0].ptr(292), 2);
        g.poke(at, 1u64);
    }),
    ("the guest saw a counter broken", "K1", |g| {
        g.emit(1, EventKind::Violation, [Invariant::K1 as u64, 1, 0x1000, 2, 3]);
    }),
    ("the guest saw a comparison be wrong", "K7", |g| {
        g.emit(1, EventKind::Violation, [Invariant::K7 as u64, 1, 0x1000, 1, 0]);
    }),
    ("the guest saw an object go under a reader", "P7", |g| {
        g.emit(1, EventKind::Violation, [Invariant::P7 as u64, 1, 0x1000, 1, 0]);
    }),
    ("the guest saw a page go back too early", "T1", |g| {
        g.emit(1, EventKind::Violation, [Invariant::T1 as u64, 1, 0x1000, 0x5201, 0x5000]);
    }),
    ("the guest saw memory put twice behind an address", "T2", |g| {
        g.emit(1, EventKind::Violation, [Invariant::T2 as u64, 1, 0x1000, 0x5007, 0]);
    }),
    ("the guest saw an operation end with preemption off", "G1", |g| {
        g.emit(1, EventKind::Violation, [Invariant::G1 as u64, 1, 0, 1, 0]);
    }),
    ("the seed in the header is overwritten", "header", |g| {
        let seed = offset_of!(SharedHeader, boot) + offset_of!(BootParams, seed);
        g.poke(g.header(seed), 99u64);
    }),
    ("the roots are overwritten", "header", |g| {
        let roots = offset_of!(SharedHeader, roots) + offset_of!(Roots, counter_batch);
        g.poke(g.header(roots), 8u64);
    }),
    ("an event of unknown kind", "events", |g| g.write_event(0, 1000, 99, 0, [0; 5])),
    ("a free of what was never handed out", "events", |g| {
        g.emit(0, EventKind::Free, [0x1234, 0, 0, 0, 0]);
    }),
    ("an alloc of a size that no allocator grants", "events", |g| {
        g.emit(0, EventKind::Alloc, [0x1234, 1 << 20, 8, 0, 0]);
    }),
    ("the live map lies nowhere", "memory", |g| {
        g.poke(field(g, 2, offset_of!(ChunkView, live_map)), u64::MAX - 100);
    }),
    ("a shelf says it has a million areas", "memory", |g| {
        // Nothing of that shelf is believed, so its area is nowhere.
        let ptr = g.chunks[0].ptr(508);
        g.flip(g.chunks[0].view.live_map, 508);
        g.emit(0, EventKind::Alloc, [ptr, 16, 4, 2, 0]);
        g.change(g.caches[1], |mut cache: CacheView| {
            cache.shelves[3].count = 1_000_000;
            cache.held = 0;
            cache
        });
    }),
    ("the table of caches lies nowhere", "memory", |g| {
        empty_caches(g);
        g.poke(g.allocator + offset_of!(AllocatorView, caches) as u64, 1u64 << 45);
    }),
    ("a cache lies nowhere", "memory", |g| {
        empty_caches(g);
        g.poke(g.cache_table + 8, u64::MAX - 7);
    }),
    ("the allocator says it has a million caches", "memory", |g| {
        empty_caches(g);
        g.poke(g.allocator + offset_of!(AllocatorView, nr_caches) as u64, 1_000_000u32);
    }),
    ("a chunk's map lies nowhere", "memory", |g| {
        g.poke(field(g, 2, offset_of!(ChunkView, alloc_map)), 0xdead_beef_0000u64);
    }),
    ("a list's link lies nowhere", "memory", |g| {
        g.poke(g.chunks[2].address, u64::MAX - 3);
    }),
    ("a chunk's list runs in a circle", "memory", |g| {
        let chunk = g.chunks[2].address;
        g.poke(chunk, ListView { next: chunk, prev: chunk });
    }),
    ("a chunk is on two lists", "memory", |g| {
        g.poke(g.chunks[2].address, g.chunks[0].address);
    }),
    ("a chunk's back link is wrong", "memory", |g| {
        g.poke(g.chunks[2].address + 8, g.chunks[0].address);
    }),
    ("a chunk says it has a million pages", "memory", |g| {
        g.poke(field(g, 2, offset_of!(ChunkView, nr_pages)), 1_000_000u32);
    }),
    ("the allocator says it has a million slots", "memory", |g| {
        g.poke(g.allocator + offset_of!(AllocatorView, nr_slots) as u64, 1_000_000u32);
    }),
    ("the list of counters runs in a circle", "memory", |g| {
        g.poke(g.counters[1], g.counters[0]);
        g.poke(g.counters[0] + 8, g.counters[1]);
    }),
];

#[test]
fn each_corruption_is_found_as_the_invariant_it_breaks() {
    let mut wrong = Vec::new();
    for (what, invariant, spoil) in CORRUPTIONS {
        let mut guest = Guest::new();
        let mut judge = guest.judge();
        judge.drain();
        spoil(&mut guest);
        judge.drain();
        judge.check_quiescent();
        if broken(&judge) != [*invariant] {
            let found: Vec<_> = judge.violations().iter().map(ToString::to_string).collect();
            wrong.push(format!("{what}: {invariant} expected, found {found:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_page_that_is_not_mapped_in_one_unit_is_found() {
    let mut guest = Guest::new();
    let page = guest.copy(guest.chunks[2].ptr(3 * 1024), 2);
    guest.unmap(page);
    let judge = look(&guest);
    // The copy cannot be read either.
    assert_eq!(broken(&judge), ["I13", "memory"]);
    assert!(judge.violations().iter().any(|v| v.invariant == "I13" && v.cpu == Some(2)));
}

#[test]
fn a_boundary_bit_inside_an_area_is_found() {
    let guest = Guest::new();
    guest.flip(guest.chunks[2].view.bound_map, 500);
    // The second half is an area that nobody holds.
    assert_eq!(broken(&look(&guest)), ["I2", "I3"]);
}

#[test]
fn locals_that_lie_nowhere_are_found() {
    let guest = Guest::new();
    guest.poke(guest.counters[0] + offset_of!(CounterView, locals) as u64, 1u64 << 46);
    let judge = look(&guest);
    // No chunk has them, nobody has the area they had, and they cannot be read.
    assert_eq!(broken(&judge), ["I1", "I2", "memory"]);
}

#[test]
fn a_violation_names_cpu_object_and_values() {
    let guest = Guest::new();
    let ptr = guest.chunks[0].ptr(300);
    guest.poke(guest.copy(ptr, 3) + 12, 0x51u8);
    let judge = look(&guest);
    assert_eq!(
        judge.violations()[0].to_string(),
        format!(
            "I14 broken: CPU 3's copy of area {ptr:#x} (96 bytes, allocated on CPU 0 by thread 7) holds \
             0x51 at byte 12, expected zero"
        )
    );
    assert_eq!(judge.violations()[0].cpu, Some(3));
}

#[test]
fn the_same_violation_is_listed_once_and_counted() {
    let guest = Guest::new();
    guest.poke(guest.copy(guest.chunks[0].ptr(300), 3) + 12, 0x51u8);
    let mut judge = look(&guest);
    judge.check_quiescent();
    assert_eq!(judge.violations().len(), 1);
    assert_eq!(judge.violations()[0].times, 2);
}

#[test]
fn a_local_of_an_offline_cpu_is_found_while_the_guest_runs() {
    let guest = Guest::new();
    guest.poke(guest.copy(guest.chunks[0].ptr(280), 2), 17i32);
    let mut judge = guest.judge();
    judge.drain();
    judge.check_instant();
    assert_eq!(broken(&judge), ["K5"]);
    let address = guest.counters[0];
    assert_eq!(
        judge.violations()[0].detail,
        format!("CPU 2 is offline but its local of counter {address:#x} is 17")
    );
}

#[test]
fn a_cpu_that_is_dying_or_not_yet_offline_may_have_locals() {
    for state in [CpuState::Dying, CpuState::Dead, CpuState::Starting] {
        let guest = Guest::new();
        guest.poke(guest.copy(guest.chunks[0].ptr(280), 2), 17i32);
        guest.poke(guest.control(2, offset_of!(ControlBlock, state)), state as u32);
        let mut judge = guest.judge();
        judge.drain();
        judge.check_instant();
        assert_eq!(judge.violations(), [], "{state:?}");
    }
    // Offline, but still to be folded.
    let guest = Guest::new();
    guest.poke(guest.copy(guest.chunks[0].ptr(280), 2), 17i32);
    guest.poke(guest.masks + 4 * 128, 0b100u64);
    let mut judge = guest.judge();
    judge.drain();
    judge.check_instant();
    assert_eq!(judge.violations(), []);
}

#[test]
fn a_counter_that_is_destroyed_during_the_look_is_no_finding() {
    let mut guest = Guest::new();
    guest.poke(guest.copy(guest.chunks[0].ptr(280), 2), 17i32);
    let mut judge = guest.judge();
    judge.drain();
    let address = guest.counters[0];
    guest.emit(0, EventKind::CounterDestroy, [address, 0, 0, 0, 0]);
    judge.check_instant();
    assert_eq!(judge.violations(), []);
}

#[test]
fn a_larger_batch_of_add_batch_allows_larger_locals() {
    let guest = Guest::new();
    let at = guest.copy(guest.chunks[2].ptr(1028), 1);
    guest.poke(at, 131i32);
    let counter = guest.counters[1];
    guest.change(counter + offset_of!(CounterView, count) as u64, |count: i64| count - 100);
    assert_eq!(broken(&look(&guest)), ["K2"]);
    guest.poke(counter + offset_of!(CounterView, local_bound) as u64, 132u32);
    assert_eq!(broken(&look(&guest)), [""; 0]);
}

#[test]
fn a_local_that_reaches_the_batch_is_found_while_the_guest_runs() {
    let guest = Guest::new();
    guest.poke(guest.copy(guest.chunks[0].ptr(280), 1), -32i32);
    // A counter of one thread may be gone by now: only those of all threads are looked at.
    guest.poke(guest.copy(guest.chunks[2].ptr(1028), 1), -32i32);
    let mut judge = guest.judge();
    judge.drain();
    judge.check_instant();
    let found: Vec<_> =
        judge.violations().iter().map(|v| (v.invariant, v.cpu, &*v.object)).collect();
    let counter = format!("counter {:#x}", guest.counters[0]);
    assert_eq!(found, [("K2", Some(1), &*counter)]);
}

#[test]
fn the_batch_is_held_against_the_smallest_that_the_host_ordered() {
    let guest = Guest::new();
    let smallest = offset_of!(SharedHeader, boot) + offset_of!(BootParams, smallest_batch);
    guest.poke(guest.header(smallest), 40u32);
    assert_eq!(broken(&look(&guest)), ["K2"]);
    guest.poke(guest.batch, 40i32);
    assert_eq!(broken(&look(&guest)), [""; 0]);
    let local = guest.copy(guest.chunks[0].ptr(280), 1);
    guest.poke(local, -39i32);
    assert_eq!(broken(&look(&guest)), ["K1"]);
    guest.poke(local, -40i32);
    assert_eq!(broken(&look(&guest)), ["K1", "K2"]);
}

#[test]
fn k1_lists_the_locals_of_the_cpus_that_wrote() {
    let guest = Guest::new();
    let at = guest.copy(guest.chunks[0].ptr(280), 1);
    guest.change(at, |local: i32| local + 1);
    let judge = look(&guest);
    let text = judge.violations()[0].to_string();
    assert!(text.contains("locals: CPU 0 3, CPU 1 -4"), "{text}");
    assert_eq!(judge.violations()[0].seen, "6");
    assert_eq!(judge.violations()[0].expected, "5");
}
