//! The CPUs' caches of freed areas: what waits where, how much, and when it goes back.

mod common;

use common::checker::{CachedArea, picture};
use common::fake::use_cache_of;
use common::{Shape, World};
use percpu_core::alloc::{AllocError, AllocFlags, FreeError};

const NONE: AllocFlags = AllocFlags::NONE;

fn cached(world: &World) -> Vec<CachedArea> {
    picture(world.allocator.view_address()).cached
}

#[test]
fn the_cpu_that_frees_an_area_is_the_next_to_get_it() {
    let mut world = World::new(&Shape::default());
    use_cache_of(0);
    let areas: Vec<usize> = (0..3).map(|_| world.alloc(200, 8, NONE).unwrap()).collect();
    world.free(areas[1]);
    world.check();
    assert!(matches!(cached(&world)[..], [CachedArea { cpu: 0, granules: 50, zero: false, .. }]));

    use_cache_of(1);
    let other = world.alloc(200, 8, NONE).unwrap();
    assert!(!areas.contains(&other));
    use_cache_of(0);
    assert_eq!(world.alloc(200, 8, NONE), Ok(areas[1]));
    world.check();
}

#[test]
fn a_refill_brings_neighbours_that_are_zero() {
    let mut world = World::new(&Shape::default());
    use_cache_of(2);
    let first = world.alloc(16, 16, NONE).unwrap();
    let waiting = cached(&world);
    assert!(waiting.len() > 1 && waiting.iter().all(|area| area.zero && area.cpu == 2));
    world.check();
    for n in 1..=waiting.len() {
        assert_eq!(world.alloc(16, 16, NONE), Ok(first + n * 16));
    }
    assert!(cached(&world).is_empty());
    world.check();
}

#[test]
fn with_many_units_areas_are_made_zero_together() {
    let mut world = World::new(&Shape { cpus: (0..12).collect(), ..Shape::default() });
    use_cache_of(3);
    let areas: Vec<usize> = (0..30).map(|_| world.alloc(24, 8, NONE).unwrap()).collect();
    world.allocator.drain_caches();
    let (few, many) = areas.split_at(4);
    few.iter().for_each(|&ptr| world.free(ptr));
    // Few are left alone, as long as others can be had.
    let other = world.alloc(24, 8, NONE).unwrap();
    assert!(!areas.contains(&other));
    let waiting = cached(&world);
    assert_eq!(waiting.iter().filter(|area| !area.zero).count(), 4);
    world.check();

    while cached(&world).iter().any(|area| area.zero) {
        world.alloc(24, 8, NONE).unwrap();
    }
    many.iter().take(8).for_each(|&ptr| world.free(ptr));
    let one = world.alloc(24, 8, NONE).unwrap();
    assert!(areas.contains(&one));
    let waiting = cached(&world);
    assert!(waiting.len() == 11 && waiting.iter().all(|area| area.zero), "{waiting:?}");
    world.check();
    (0..11).for_each(|_| assert!(areas.contains(&world.alloc(24, 8, NONE).unwrap())));
    world.check();
}

#[test]
fn an_area_that_waits_is_nobodys() {
    let mut world = World::new(&Shape::default());
    use_cache_of(0);
    let ptr = world.alloc(64, 64, NONE).unwrap();
    world.free(ptr);
    let before = picture(world.allocator.view_address());
    for cpu in [0, 1] {
        use_cache_of(cpu);
        assert_eq!(world.free_raw(ptr), Err(FreeError::NotLive(ptr)));
        assert_eq!(world.free_raw(ptr + 4), Err(FreeError::Interior(ptr + 4)));
    }
    assert_eq!(picture(world.allocator.view_address()), before);
}

#[test]
fn an_area_that_is_not_aligned_enough_stays_where_it_is() {
    let mut world = World::new(&Shape::default());
    use_cache_of(0);
    let odd: Vec<usize> = (0..40)
        .map(|_| world.alloc(12, 4, NONE).unwrap())
        .filter(|ptr| !ptr.is_multiple_of(64))
        .collect();
    odd.iter().take(3).for_each(|&ptr| world.free(ptr));
    let aligned = world.alloc(12, 64, NONE).unwrap();
    assert!(aligned.is_multiple_of(64) && !odd.contains(&aligned));
    world.check();
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_cache_has_bounds() {
    let mut world = World::new(&Shape::default());
    use_cache_of(0);
    let sizes = [4, 8, 60, 64, 100, 128, 256, 500, 1000, 2000, 3000, 4096, 4100];
    let areas: Vec<usize> =
        (0..400).map(|i| world.alloc(sizes[i % sizes.len()], 4, NONE).unwrap()).collect();
    let more: Vec<usize> = (0..30).map(|i| world.alloc(68 + 4 * i, 4, NONE).unwrap()).collect();
    for ptr in areas.into_iter().chain(more) {
        world.free(ptr);
        let waiting = cached(&world);
        assert!(waiting.iter().map(|area| area.granules).sum::<u32>() <= 4096, "{waiting:?}");
        assert!(waiting.iter().all(|area| area.granules <= 1024));
    }
    world.check();
    assert!(!cached(&world).is_empty());
    world.allocator.drain_caches();
    assert!(cached(&world).is_empty());
    world.check();
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn memory_that_waits_is_found_before_more_is_asked_for() {
    let mut world = World::new(&Shape::default());
    // Everything but one page is gone; the page's pieces wait on another CPU.
    use_cache_of(1);
    let mut areas = Vec::new();
    let room = picture(world.allocator.view_address());
    let room = room.chunks.values().next().unwrap().view.md.contig_hint * 4;
    for _ in 0..room / 64 {
        areas.push(world.alloc(64, 64, NONE).unwrap());
    }
    world.allocator.drain_caches();
    areas.drain(..15).for_each(|ptr| world.free(ptr));
    let waiting = cached(&world).len();
    assert!(waiting > 4);
    let usage = world.fake.usage();

    use_cache_of(0);
    world.alloc(256, 64, NONE).unwrap();
    assert_eq!(world.fake.usage(), usage, "no memory was asked for");
    assert!(cached(&world).iter().all(|area| area.cpu == 0));
    world.check();
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn an_atomic_allocation_gets_what_its_own_cpu_keeps() {
    let mut world = World::new(&Shape::default());
    use_cache_of(0);
    let mut areas = Vec::new();
    while let Ok(ptr) = world.alloc(128, 64, AllocFlags::ATOMIC) {
        areas.push(ptr);
    }
    for ptr in areas.drain(..8) {
        world.free(ptr);
    }
    assert_eq!(cached(&world).len(), 8);
    world.alloc(512, 64, AllocFlags::ATOMIC).unwrap();
    assert_eq!(world.alloc(1024, 4, AllocFlags::ATOMIC), Err(AllocError::NoPopulatedRoom));
    world.check();
}

#[test]
fn a_large_atomic_allocation_gets_what_its_own_cpu_keeps() {
    let mut world = World::new(&Shape::default());
    use_cache_of(0);
    let mut areas = Vec::new();
    while let Ok(ptr) = world.alloc(2048, 4, AllocFlags::ATOMIC) {
        areas.push(ptr);
    }
    for ptr in areas.drain(..2) {
        world.free(ptr);
    }
    let taken = |world: &mut World| world.alloc(4100, 4, AllocFlags::ATOMIC);
    assert_eq!(taken(&mut world), Err(AllocError::NoPopulatedRoom));
    for ptr in areas.drain(..1) {
        world.free(ptr);
    }
    // The two halves before it went back with the first attempt; this one is on the shelf.
    assert_eq!(cached(&world).len(), 1);
    taken(&mut world).unwrap();
    world.check();
}

#[test]
fn what_waits_in_caches_serves_when_memory_cannot_be_had() {
    let mut world = World::new(&Shape::default());
    use_cache_of(1);
    let areas: Vec<usize> = (0..64).map(|_| world.alloc(256, 4, NONE).unwrap()).collect();
    // The rest of the populated pages.
    while world.alloc(4, 4, AllocFlags::ATOMIC).is_ok() {}
    areas.iter().take(8).for_each(|&ptr| world.free(ptr));
    use_cache_of(0);
    world.fake.lock().fail_from_then_on = true;
    world.fake.fail_nth(0);
    assert_eq!(world.alloc(1024, 4, NONE), Ok(areas[0]));
    assert_eq!(world.alloc(4096, 4, NONE), Err(AllocError::NoMemory));
    world.fake.stop_failing();
    world.check();
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_chunk_that_only_caches_use_goes_back_with_the_next_balance() {
    let mut world = World::new(&Shape::default());
    use_cache_of(0);
    let areas: Vec<usize> = (0..4000).map(|_| world.alloc(64, 4, NONE).unwrap()).collect();
    let chunks = world.allocator.statistics().chunks;
    assert!(chunks > 2);
    areas.into_iter().for_each(|ptr| world.free(ptr));
    world.allocator.balance();
    assert!(cached(&world).is_empty());
    assert!(world.allocator.statistics().chunks <= 2);
    world.check();
    let statistics = world.allocator.statistics();
    assert_eq!((statistics.allocs, statistics.frees, statistics.live), (4000, 4000, 0));
}
