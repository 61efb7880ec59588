//! Balance work: what is given back, what is kept ready, and in which order.

mod common;

use common::{Shape, World, checker};
use percpu_core::alloc::{AllocError, AllocFlags, MAX_ALLOC_SIZE};
use percpu_core::view::CHUNK_ISOLATED;

const PAGE: usize = 4096;

fn new_world() -> World {
    World::new(&Shape::default())
}

fn balance(world: &World) -> percpu_core::alloc::Balanced {
    let balanced = world.allocator.balance();
    world.check();
    checker::check_balanced(world);
    balanced
}

#[test]
fn one_wholly_free_chunk_is_kept() {
    let mut world = new_world();
    let before = world.fake.usage();
    world.fill_up();
    let areas: Vec<usize> =
        (0..5).map(|_| world.alloc(MAX_ALLOC_SIZE, 4, AllocFlags::NONE).unwrap()).collect();
    assert_eq!(world.allocator.statistics().chunks, 6);
    assert_eq!(balance(&world).populated_pages, 4);
    world.free(areas[0]);
    world.free(areas[1]);
    assert!(world.allocator.balance_wanted(), "two wholly free chunks");
    areas[2..].iter().for_each(|&ptr| world.free(ptr));
    let balanced = balance(&world);
    // The five, and the one that the first balance work prepared, but one.
    assert_eq!(balanced.freed_chunks, 5);
    assert_eq!(world.allocator.statistics().chunks, 2);
    assert!(!world.allocator.balance_wanted());
    assert_eq!(balance(&world), Default::default(), "nothing is left to be done");
    assert_eq!(world.fake.usage().reserved.len(), before.reserved.len() + 1);
}

#[test]
fn a_first_chunk_that_is_wholly_free_is_the_one_that_is_kept() {
    // Without static and reserved part, and with a unit of just the dynamic part, the first chunk
    // hides nothing and can be wholly free.
    let config = percpu_core::area::Config { dyn_size: 32 << 10, ..Default::default() };
    let mut world = World::new(&Shape { static_size: 0, config, ..Shape::default() });
    let areas: Vec<usize> =
        (0..3).map(|_| world.alloc(MAX_ALLOC_SIZE, 4, AllocFlags::NONE).unwrap()).collect();
    areas.iter().for_each(|&ptr| world.free(ptr));
    assert_eq!(balance(&world).freed_chunks, 2);
    assert_eq!(world.allocator.statistics().chunks, 1);
    world.alloc(MAX_ALLOC_SIZE, 4, AllocFlags::ATOMIC).unwrap();
}

#[test]
fn atomic_allocations_find_four_pages_after_balance() {
    let mut world = new_world();
    world.fill_up();
    assert_eq!(world.alloc(PAGE, PAGE, AllocFlags::ATOMIC), Err(AllocError::NoPopulatedRoom));
    assert!(world.allocator.balance_wanted());
    assert_eq!(balance(&world).populated_pages, 4);
    assert_eq!(world.allocator.statistics().empty_populated_pages, 4);
    for _ in 0..4 {
        world.alloc(PAGE, PAGE, AllocFlags::ATOMIC).unwrap();
    }
    assert_eq!(world.alloc(PAGE, PAGE, AllocFlags::ATOMIC), Err(AllocError::NoPopulatedRoom));
    world.check();
}

#[test]
fn a_large_atomic_allocation_succeeds_after_enough_balance() {
    let mut world = new_world();
    world.fill_up();
    let mut tries = 0;
    while world.alloc(MAX_ALLOC_SIZE, 4, AllocFlags::ATOMIC).is_err() {
        balance(&world);
        tries += 1;
        assert!(tries < 4, "each failure prepares four more pages");
    }
}

#[test]
fn balance_without_memory_says_so_and_keeps_every_invariant() {
    for n in 0..5 {
        let mut world = new_world();
        world.fill_up();
        let before = world.fake.usage();
        world.fake.fail_nth(n);
        let balanced = world.allocator.balance();
        world.fake.stop_failing();
        world.check();
        assert!(balanced.out_of_memory);
        assert_eq!(world.fake.usage(), before);
    }
}

/// Fills three chunks with page-sized areas and frees all but one of each.
fn mostly_empty_chunks(world: &mut World) -> Vec<usize> {
    world.fill_up();
    balance(world);
    let areas: Vec<usize> =
        (0..24).map(|_| world.alloc(PAGE, PAGE, AllocFlags::NONE).unwrap()).collect();
    let mut kept = Vec::new();
    for (n, ptr) in areas.into_iter().enumerate() {
        if n % 8 == 3 { kept.push(ptr) } else { world.free(ptr) }
    }
    kept
}

#[test]
fn empty_pages_of_mostly_empty_chunks_lose_their_memory() {
    let mut world = new_world();
    let kept = mostly_empty_chunks(&mut world);
    assert!(world.allocator.balance_wanted());
    assert_eq!(world.allocator.statistics().empty_populated_pages, 21);
    let balanced = balance(&world);
    // Two chunks lose their seven pages; the third's are needed for the four that are kept.
    assert_eq!(balanced.depopulated_pages, 14);
    assert_eq!(world.allocator.statistics().empty_populated_pages, 7);
    let isolated = |world: &World| {
        let picture = checker::picture(world.allocator.view_address());
        let isolated = |c: &&checker::Chunk| c.view.flags & CHUNK_ISOLATED != 0;
        picture.chunks.values().filter(isolated).count()
    };
    assert_eq!(isolated(&world), 2);

    // Sidelined chunks come after active ones, and are active again as soon as they are used.
    for _ in 0..7 {
        world.alloc(PAGE, PAGE, AllocFlags::NONE).unwrap();
    }
    assert_eq!(isolated(&world), 2);
    world.alloc(PAGE, PAGE, AllocFlags::NONE).unwrap();
    assert_eq!(isolated(&world), 1);
    assert_eq!(world.allocator.statistics().chunks, 4);
    world.check();

    // A sidelined chunk whose last area goes is a wholly free one.
    kept.into_iter().for_each(|ptr| world.free(ptr));
    world.check();
    assert_eq!(isolated(&world), 0);
}

#[test]
fn what_is_freed_in_a_sidelined_chunk_loses_its_memory_too() {
    let mut world = new_world();
    world.fill_up();
    balance(&world);
    // Four chunks with areas in pages 0 and 1, of which three lose the other pages' memory.
    let areas: Vec<usize> =
        (0..32).map(|_| world.alloc(PAGE, PAGE, AllocFlags::NONE).unwrap()).collect();
    for (n, &ptr) in areas.iter().enumerate() {
        if n % 8 > 1 {
            world.free(ptr);
        }
    }
    balance(&world);
    let before = world.fake.usage().pages.len();
    let picture = checker::picture(world.allocator.view_address());
    let sidelined = picture.chunks.values().find(|c| c.view.flags & CHUNK_ISOLATED != 0).unwrap();
    let base = sidelined.view.base.wrapping_sub(picture.view.delta) as usize;
    assert!(world.live.contains_key(&base));
    world.free(base);
    assert!(world.allocator.balance_wanted());
    assert_eq!(balance(&world).depopulated_pages, 1);
    assert_eq!(world.fake.usage().pages.len(), before - 3);
}

#[test]
fn free_runs_do_not_reach_across_pages_without_memory() {
    let mut world = new_world();
    world.fill_up();
    balance(&world);
    // Of each chunk's pages, page 2 keeps an area at its beginning and page 4 one at its end.
    let mut kept = Vec::new();
    let mut freed = Vec::new();
    for page in 0..32 {
        let mut area = |size| world.alloc(size, 4, AllocFlags::NONE).unwrap();
        let (head, body, tail) = (area(64), area(PAGE - 128), area(64));
        for (ptr, keep) in [(head, page % 8 == 2), (body, false), (tail, page % 8 == 4)] {
            if keep { kept.push(ptr) } else { freed.push(ptr) }
        }
    }
    freed.into_iter().for_each(|ptr| world.free(ptr));
    assert!(balance(&world).depopulated_pages > 0);
    // Pages 2 to 4 have a free run of nearly three pages, the middle one without memory.
    world.fill(PAGE + 2000);
    world.check();
    kept.into_iter().for_each(|ptr| world.free(ptr));
    world.free_all();
    balance(&world);
}

#[test]
fn the_fast_path_leaves_wholly_free_chunks_alone() {
    let mut world = new_world();
    world.fill_up();
    let used = world.alloc(PAGE, PAGE, AllocFlags::NONE).unwrap();
    let filler = world.alloc(MAX_ALLOC_SIZE, 4, AllocFlags::NONE).unwrap();
    world.free(filler);
    // The wholly free chunk has populated pages, the one in use has none left: its next page is
    // populated rather than the free chunk broken.
    world.alloc(PAGE, PAGE, AllocFlags::NONE).unwrap();
    let picture = checker::picture(world.allocator.view_address());
    assert_eq!(picture.free_chunks(), 1);
    world.free(used);
    world.check();
}
