//! The locks' protocol of the allocator under loom: all interleavings of a few calls with at most
//! so many preemptions, and all values that weakly ordered loads may read.
//!
//! `cargo xtask loom` runs it. Each model sets a small world up unexplored, explores what a few
//! threads do, and then looks at everything as the other tests do. Memory that was freed stays, and
//! an atomic there that is touched later fails the model.

#![cfg(loom)]

mod common;
#[path = "common/explore.rs"]
mod explore;

use std::sync::Arc;

use common::fake::{NO_CACHE, use_cache_of};
use common::{Area, Shape, World};
use explore::{explore, spawn};
use percpu_core::alloc::{AllocError, AllocFlags, FreeError, MAX_ALLOC_SIZE};
use percpu_core::area::Config;
use percpu_core::model;

const PAGE: usize = 4096;

/// What a thread does on a CPU's cache, or on none.
type Work<R> = (u32, Box<dyn FnOnce(&World) -> R + Send>);

/// Does all of `work` at once.
fn at_once<R: Send + 'static>(world: World, work: Vec<Work<R>>) -> (World, Vec<R>) {
    let world = Arc::new(world);
    model::start();
    let start = |(cache, work): Work<R>| {
        let world = world.clone();
        spawn(move || {
            use_cache_of(cache);
            work(&world)
        })
    };
    let threads: Vec<_> = work.into_iter().map(start).collect();
    let results = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    model::stop();
    (Arc::into_inner(world).expect("all threads are done"), results)
}

fn work<R>(cache: u32, work: impl FnOnce(&World) -> R + Send + 'static) -> Work<R> {
    (cache, Box::new(work))
}

/// Two CPUs, units of eight pages of which nothing is hidden.
fn new_world() -> World {
    use_cache_of(NO_CACHE);
    let config = Config { dyn_size: 32 << 10, ..Config::default() };
    World::new(&Shape { cpus: vec![0, 1], static_size: 0, config })
}

fn alloc(world: &World, size: usize, flags: AllocFlags) -> Result<usize, AllocError> {
    let ptr = world.allocator.alloc(size, 4, flags)?.raw();
    let first = world.allocator.first_chunk().unwrap();
    for page in (ptr / PAGE..=(ptr + size - 1) / PAGE).map(|page| page * PAGE) {
        for &cpu in &world.cpus {
            let page = page.wrapping_add(first.offset(cpu).unwrap()) & !(PAGE - 1);
            assert!(world.fake.is_populated(page), "an area without memory");
        }
    }
    Ok(ptr)
}

/// Tells the model of an area that a thread got, and that nobody has written.
fn enter(world: &mut World, ptr: usize, size: usize) {
    let area = Area { size, align: 4, reserved: false, fill: 0 };
    assert_eq!(world.live.insert(ptr, area), None, "handed out twice");
}

/// The first chunk is full, and `count` more have one area each that fills it.
fn full_chunks(world: &mut World, count: usize) -> Vec<usize> {
    world.fill_up();
    (0..count).map(|_| world.alloc(MAX_ALLOC_SIZE, 4, AllocFlags::NONE).unwrap()).collect()
}

fn one_of_two_frees_wins(caches: [u32; 2]) {
    let mut world = new_world();
    let ptr = world.alloc(32, 4, AllocFlags::NONE).unwrap();
    world.live.clear();
    let frees = caches.map(|cache| work(cache, move |world| world.free_raw(ptr)));
    let (world, results) = at_once(world, frees.into());
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    assert!(results.contains(&Err(FreeError::NotLive(ptr))));
    world.check();
}

#[test]
fn of_two_frees_on_two_cpus_exactly_one_wins() {
    explore(3, || one_of_two_frees_wins([0, 1]));
}

#[test]
fn of_two_frees_with_and_without_a_cache_exactly_one_wins() {
    explore(3, || one_of_two_frees_wins([0, NO_CACHE]));
}

#[test]
fn a_free_races_a_drain_and_a_refill() {
    explore(2, || {
        let mut world = new_world();
        let ptr = world.alloc(32, 4, AllocFlags::NONE).unwrap();
        world.live.clear();
        let free_and_alloc = work(0, move |world: &World| {
            world.free_raw(ptr).unwrap();
            alloc(world, 32, AllocFlags::ATOMIC).unwrap()
        });
        let drain_and_alloc = work(1, |world: &World| {
            world.allocator.drain_caches();
            alloc(world, 32, AllocFlags::ATOMIC).unwrap()
        });
        let (mut world, areas) = at_once(world, vec![free_and_alloc, drain_and_alloc]);
        areas.into_iter().for_each(|ptr| enter(&mut world, ptr, 32));
        world.check();
        world.allocator.balance();
        world.check();
    });
}

#[test]
fn an_atomic_allocation_never_gets_a_page_that_balance_takes_away() {
    explore(2, || {
        let mut world = new_world();
        world.fill_up();
        // Two chunks with an area on one page each, and seven empty populated pages.
        let pages: Vec<usize> =
            (0..16).map(|_| world.alloc(PAGE, PAGE, AllocFlags::NONE).unwrap()).collect();
        for (n, ptr) in pages.into_iter().enumerate() {
            if n % 8 != 3 {
                world.free(ptr);
            }
        }
        let take = work(0, |world: &World| alloc(world, PAGE, AllocFlags::ATOMIC).ok());
        let balance = work(1, |world: &World| {
            let balanced = world.allocator.balance();
            assert!(balanced.depopulated_pages > 0, "the model shows nothing");
            None
        });
        let (mut world, areas) = at_once(world, vec![take, balance]);
        areas.into_iter().flatten().for_each(|ptr| enter(&mut world, ptr, PAGE));
        world.check();
    });
}

#[test]
fn a_free_never_looks_at_a_chunk_that_is_gone() {
    explore(2, || {
        let mut world = new_world();
        let chunks = full_chunks(&mut world, 3);
        world.free(chunks[0]);
        world.free(chunks[1]);
        let (free, live) = (chunks[0], chunks[2]);
        let frees = work(0, move |world: &World| {
            // Of an area in a chunk that may just be given back, and of a live one in another.
            let refused = world.free_raw(free).unwrap_err();
            assert!([FreeError::NotLive(free), FreeError::Wild(free)].contains(&refused));
            world.free_raw(live).unwrap();
        });
        let balance = work(1, |world: &World| {
            assert!(world.allocator.balance().freed_chunks > 0, "the model shows nothing");
        });
        let (mut world, _) = at_once(world, vec![frees, balance]);
        world.live.remove(&live);
        world.check();
    });
}

#[test]
fn a_wish_for_balance_is_not_lost() {
    explore(3, || {
        let mut world = new_world();
        world.fill_up();
        // A chunk with four populated pages, of which three are taken: there is a wish already,
        // for four empty pages again.
        world.allocator.balance();
        world.alloc(3 * PAGE, 4, AllocFlags::ATOMIC).unwrap();
        assert!(world.allocator.balance_wanted());
        // Five it takes a failure to get.
        let fail = work(NO_CACHE, |world: &World| alloc(world, 5 * PAGE, AllocFlags::ATOMIC).err());
        let balance = work(1, |world: &World| {
            world.allocator.balance();
            None
        });
        let (mut world, results) = at_once(world, vec![fail, balance]);
        assert_eq!(results[0], Some(AllocError::NoPopulatedRoom));
        if !world.allocator.balance_wanted() {
            world.alloc(5 * PAGE, 4, AllocFlags::ATOMIC).expect("what balance was wanted for");
        }
        world.check();
    });
}

/// A free that comes so late that the place has a new area takes that one in, as long as it is: the
/// area behind it stays its owner's.
#[test]
fn a_late_free_takes_one_area_in_and_no_neighbour() {
    explore(2, || {
        let mut world = new_world();
        let ptr = world.alloc(32, 4, AllocFlags::NONE).unwrap();
        world.live.clear();
        let split = work(NO_CACHE, move |world: &World| {
            if world.free_raw(ptr).is_err() {
                return vec![];
            }
            let half = || alloc(world, 16, AllocFlags::ATOMIC).unwrap();
            vec![half(), half()]
        });
        let late = work(0, move |world: &World| world.free_raw(ptr).map_or(vec![], |()| vec![ptr]));
        let (mut world, results) = at_once(world, vec![split, late]);
        let halves = &results[0];
        // What is left is whole, whichever of the two was late.
        let first = usize::from(!results[1].is_empty());
        halves.iter().skip(first).for_each(|&half| enter(&mut world, half, 16));
        world.check();
    });
}

/// What the tracker knows, and what is live.
fn tracked(world: &World) -> (u64, u64, u64) {
    let known = world.allocator.leak_tracker().statistics();
    (known.areas, known.missed, world.allocator.statistics().live)
}

fn start(world: &World) -> usize {
    world.allocator.leak_tracker().start().unwrap();
    0
}

fn an_area_comes_while_tracking_starts<const CACHE: u32>() {
    let new = work(CACHE, |world| alloc(world, 32, AllocFlags::ATOMIC).unwrap());
    let (mut world, areas) = at_once(new_world(), vec![new, work(1, start)]);
    let (known, missed, live) = tracked(&world);
    assert_eq!((known + missed, live), (1, 1), "{known} tracked, {missed} missed");
    enter(&mut world, areas[0], 32);
    world.free_raw(areas[0]).unwrap();
    world.live.clear();
    assert_eq!(tracked(&world).0, 0);
    world.check();
}

#[test]
fn an_area_that_comes_while_tracking_starts_is_either_tracked_or_missed() {
    explore(2, an_area_comes_while_tracking_starts::<0>);
    explore(2, an_area_comes_while_tracking_starts::<NO_CACHE>);
}

fn an_area_comes_and_goes_while_tracking_starts<const FROM: u32, const TO: u32>() {
    let mut world = new_world();
    let kept = world.alloc(64, 4, AllocFlags::NONE).unwrap();
    let come_and_go = work(FROM, |world: &World| {
        let ptr = alloc(world, 32, AllocFlags::ATOMIC).unwrap();
        use_cache_of(TO);
        world.free_raw(ptr).unwrap();
        ptr
    });
    let (mut world, _) = at_once(world, vec![come_and_go, work(1, start)]);
    let (known, missed, live) = tracked(&world);
    // Missed are the one that stays, and the other one if it was live when its lock's turn came.
    assert!((known, live) == (0, 1) && [1, 2].contains(&missed), "{known}, {missed} missed");
    world.free(kept);
    world.check();
}

/// The caches' flags are set in the order of the CPUs, and the short lock's last: the area may be handed
/// out to be tracked, and taken in under a lock whose counts are looked at later.
#[test]
fn an_area_that_goes_while_tracking_starts_takes_no_other_ones_place() {
    explore(2, an_area_comes_and_goes_while_tracking_starts::<0, 1>);
    explore(2, an_area_comes_and_goes_while_tracking_starts::<1, 0>);
    explore(2, an_area_comes_and_goes_while_tracking_starts::<0, NO_CACHE>);
}

#[test]
fn a_stop_and_a_start_leave_no_record_of_what_came_in_between() {
    explore(2, || {
        let world = new_world();
        world.allocator.leak_tracker().start().unwrap();
        let new = work(0, |world: &World| alloc(world, 32, AllocFlags::ATOMIC).unwrap());
        let again = work(1, |world: &World| {
            world.allocator.leak_tracker().stop();
            start(world)
        });
        let (mut world, areas) = at_once(world, vec![new, again]);
        let (known, missed, live) = tracked(&world);
        assert_eq!((known + missed, live), (1, 1), "{known} tracked, {missed} missed");
        enter(&mut world, areas[0], 32);
        world.free_raw(areas[0]).unwrap();
        world.live.clear();
        assert_eq!(tracked(&world).0, 0);
        world.check();
    });
}
