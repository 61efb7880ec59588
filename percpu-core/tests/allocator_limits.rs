//! What the allocator refuses, and that a refusal or a failure changes nothing.

mod common;

use common::fake::{Call, Fake, NO_CACHE, use_cache_of};
use common::{Shape, World, checker};
use percpu_core::alloc::{AllocError, AllocFlags, Allocator, FreeError, MAX_ALLOC_SIZE};
use percpu_core::area::Config;
use percpu_core::view::{BLOCK_GRANULES, CHUNK_ISOLATED, GRANULE};

const PAGE: usize = 4096;

fn world_with_reserve() -> World {
    let config = Config { reserved_size: 1024, ..Config::default() };
    World::new(&Shape { config, ..Shape::default() })
}

/// Everything that an operation could have changed, the order of lists excepted.
fn everything(world: &World) -> (checker::Picture, common::fake::Usage, String) {
    let picture = checker::picture(world.allocator.view_address()).without_order();
    (picture, world.fake.usage(), format!("{:?}", world.allocator.statistics()))
}

#[test]
fn sizes_and_alignments_out_of_range_are_refused() {
    let mut world = world_with_reserve();
    let before = everything(&world);
    for flags in [AllocFlags::NONE, AllocFlags::ATOMIC, AllocFlags::RESERVED] {
        for size in [0, MAX_ALLOC_SIZE + 1, usize::MAX] {
            assert_eq!(world.alloc(size, 4, flags), Err(AllocError::Size(size)));
        }
        for align in [0, 3, 12, 8192, usize::MAX, 1 << 63] {
            assert_eq!(world.alloc(8, align, flags), Err(AllocError::Align(align)));
        }
    }
    assert_eq!(everything(&world), before);
    let sizes = [1, 2, 3, 4, 5, MAX_ALLOC_SIZE - 1, MAX_ALLOC_SIZE];
    for (size, align) in sizes.into_iter().zip([1, 2, 4, 1, 2048, 4096, 4096]) {
        world.alloc(size, align, AllocFlags::NONE).unwrap();
        world.check();
    }
}

#[test]
fn before_set_up_there_is_a_typed_error() {
    let fake = common::fake::install();
    let allocator = Allocator::<Fake>::new();
    assert_eq!(allocator.alloc(8, 8, AllocFlags::NONE), Err(AllocError::NotSetUp));
    assert_eq!(allocator.balance(), Default::default());
    // SAFETY: nothing was handed out, so the call is refused.
    let freed = unsafe { allocator.free(percpu_core::var::PerCpuPtr::from_raw(64)) };
    assert_eq!(freed, Err(FreeError::NotSetUp));
    drop(allocator);
    assert!(fake.usage().meta.is_empty());
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn warnings_stop_after_ten() {
    let mut world = world_with_reserve();
    let lines = |world: &World| world.fake.lock().log.len();
    let before = lines(&world);
    for _ in 0..20 {
        world.alloc(0, 4, AllocFlags::NONE).unwrap_err();
    }
    assert_eq!(lines(&world) - before, 11);
    let log = world.fake.lock().log.clone();
    assert!(log[before].contains("allocation failed, size=0 align=4"), "{log:?}");
    assert_eq!(log[before + 10], "percpu: limit reached, disable warning");

    // Refused frees have a limit of their own.
    for _ in 0..20 {
        world.free_raw(12).unwrap_err();
    }
    assert_eq!(lines(&world) - before, 22);

    // Atomic allocations for want of room say nothing: their callers expect it.
    let mut world = World::new(&Shape::default());
    world.fill(4096);
    assert_eq!(world.alloc(4096, 4, AllocFlags::ATOMIC), Err(AllocError::NoPopulatedRoom));
    assert_eq!(lines(&world), 0);
}

#[test]
fn frees_of_what_is_not_live_are_refused() {
    // A unit with a tail that is not managed.
    let config = Config { reserved_size: 1024, dyn_size: 12 << 10, ..Config::default() };
    let mut world = World::new(&Shape { config, ..Shape::default() });
    let small = world.alloc(20, 4, AllocFlags::NONE).unwrap();
    let large = world.alloc(3 * PAGE, PAGE, AllocFlags::NONE).unwrap();
    let reserved = world.alloc(100, 64, AllocFlags::RESERVED).unwrap();
    let grown = {
        world.fill(MAX_ALLOC_SIZE);
        world.alloc(MAX_ALLOC_SIZE, 4, AllocFlags::NONE).unwrap()
    };
    let freed = world.alloc(12, 4, AllocFlags::NONE).unwrap();
    world.free(freed);
    let before = everything(&world);

    assert_eq!(world.free_raw(0), Ok(()), "null is ignored");
    let unit_size = before.0.view.unit_size as usize;
    let first_chunk = &before.0.chunks[&before.0.view.first_chunk].view;
    let template = first_chunk.base.wrapping_sub(before.0.view.delta) as usize;
    for inside in [1, 2, 3, 4, 16, 19] {
        assert_eq!(world.free_raw(small + inside), Err(FreeError::Interior(small + inside)));
    }
    for inside in [4, PAGE, 3 * PAGE - 4] {
        assert_eq!(world.free_raw(large + inside), Err(FreeError::Interior(large + inside)));
        assert_eq!(world.free_raw(grown + inside), Err(FreeError::Interior(grown + inside)));
    }
    assert_eq!(world.free_raw(reserved + 4), Err(FreeError::Interior(reserved + 4)));
    assert_eq!(world.free_raw(freed), Err(FreeError::NotLive(freed)), "freed twice");
    assert_eq!(world.free_raw(template), Err(FreeError::Static(template)));
    assert_eq!(world.free_raw(template + 96), Err(FreeError::Static(template + 96)));
    let end = template + unit_size;
    assert_ne!(first_chunk.end_offset, 0);
    let tail = end - first_chunk.end_offset as usize;
    for ptr in [4, usize::MAX, template - 4, tail, end - 4, end, grown - 4, grown + unit_size] {
        assert_eq!(world.free_raw(ptr), Err(FreeError::Wild(ptr)), "{ptr:#x}");
    }
    assert_eq!(everything(&world), before);
    world.check();
    world.free_all();
    world.check();
}

#[test]
fn reserved_allocations_stay_in_the_reserved_part() {
    let mut world = world_with_reserve();
    let mut areas = Vec::new();
    while let Ok(ptr) = world.alloc(64, 4, AllocFlags::RESERVED) {
        areas.push(ptr);
        assert!(areas.len() <= 16);
    }
    assert_eq!(areas.len(), 1024 / 64);
    let full = world.alloc(4, 4, AllocFlags::RESERVED | AllocFlags::ATOMIC);
    assert_eq!(full, Err(AllocError::NoReservedRoom));
    world.check();
    world.free_all();
    world.check();
    let none = World::new(&Shape::default()).alloc(4, 4, AllocFlags::RESERVED);
    assert_eq!(none, Err(AllocError::NoReservedRoom));
}

#[test]
fn atomic_allocations_use_populated_pages_only() {
    let mut world = World::new(&Shape::default());
    // A second chunk with one populated page.
    world.fill_up();
    let anchor = world.alloc(8, 8, AllocFlags::NONE).unwrap();
    let calls = world.fake.lock().calls.len();
    let areas = world.fill(64);
    assert_eq!(areas.len(), (PAGE - 8) / 64);
    assert!(areas.iter().all(|ptr| ptr / PAGE == anchor / PAGE));
    assert_eq!(world.fake.lock().calls.len(), calls, "an atomic allocation asked for memory");
    assert!(world.allocator.balance_wanted());
    world.check();
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_failure_at_any_step_of_growth_changes_nothing() {
    // Growth of three kinds: a chunk, pages of a chunk, pages on both sides of a populated one.
    type Prepare = fn(&mut World);
    let new_chunk: Prepare = |world| world.fill_up();
    let more_pages: Prepare = |world| {
        world.fill_up();
        world.alloc(8, 8, AllocFlags::NONE).unwrap();
    };
    let two_runs: Prepare = |world| {
        world.fill_up();
        world.allocator.balance();
        let pages: Vec<usize> =
            (0..24).map(|_| world.alloc(PAGE, PAGE, AllocFlags::NONE).unwrap()).collect();
        let others = pages.into_iter().enumerate().filter(|(n, _)| n % 8 != 3);
        others.for_each(|(_, ptr)| world.free(ptr));
        world.allocator.balance();
        // A chunk that was sidelined has memory behind page 3 alone, which becomes free.
        let picture = checker::picture(world.allocator.view_address());
        let mut chunks = picture.chunks.values().map(|chunk| chunk.view);
        let sidelined = chunks.find(|chunk| chunk.flags & CHUNK_ISOLATED != 0).unwrap();
        let first_page = sidelined.base.wrapping_sub(picture.view.delta) as usize;
        world.free(first_page + 3 * PAGE);
    };
    for (kind, prepare) in [new_chunk, more_pages, two_runs].into_iter().enumerate() {
        let mut failures = 0;
        loop {
            let mut world = World::new(&Shape::default());
            prepare(&mut world);
            let before = everything(&world);
            world.fake.fail_nth(failures);
            let result = world.alloc(5 * PAGE, 4, AllocFlags::NONE);
            world.fake.stop_failing();
            world.check();
            match result {
                Ok(ptr) => {
                    world.free(ptr);
                    world.check();
                    break;
                }
                Err(error) => assert_eq!(error, AllocError::NoMemory),
            }
            assert_eq!(everything(&world), before, "failure {failures} of growth {kind}");
            // The same request succeeds when there is memory.
            let ptr = world.alloc(5 * PAGE, 4, AllocFlags::NONE).unwrap();
            world.free(ptr);
            failures += 1;
        }
        // Reservation, account, a unit a CPU and the index; a unit a CPU; the same for two runs.
        assert_eq!(failures, [6, 3, 6][kind]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_hole_of_one_granule_in_any_block_is_found_again() {
    // Regression A1: Linux 6.12 loses such a hole in every block after the first.
    let mut world = World::new(&Shape::default());
    world.fill_up();
    let areas: Vec<usize> = (0..2 * BLOCK_GRANULES)
        .map(|_| world.alloc(GRANULE as usize, 4, AllocFlags::NONE).unwrap())
        .collect();
    world.fill_up();
    for &ptr in areas.iter().step_by(97) {
        world.free(ptr);
        world.check();
        assert_eq!(world.alloc(4, 4, AllocFlags::ATOMIC), Ok(ptr));
        world.check();
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_chunk_of_small_holes_that_failed_a_fit_is_tried_again_after_a_free() {
    let mut world = World::new(&Shape::default());
    let areas = world.fill(4);
    // Holes of 16 bytes put the chunk into slot 2, where 24 bytes look for room.
    for ptr in areas.chunks_exact(8).flat_map(|eight| &eight[..4]) {
        world.free(*ptr);
    }
    assert_eq!(world.alloc(24, 4, AllocFlags::ATOMIC), Err(AllocError::NoPopulatedRoom));
    world.check();
    // Demoted: not even small areas find it, until something is freed in it.
    assert_eq!(world.alloc(4, 4, AllocFlags::ATOMIC), Err(AllocError::NoPopulatedRoom));
    let other = areas.chunks_exact(8).last().unwrap()[7];
    world.free(other);
    world.check();
    let picture = checker::picture(world.allocator.view_address());
    let demoted = picture.chunks.values().any(|chunk| chunk.view.slot == 0);
    assert!(!demoted);
    world.alloc(16, 4, AllocFlags::ATOMIC).unwrap();
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn statistics_count_what_happens() {
    let mut world = World::new(&Shape::default());
    let small = world.alloc(1, 1, AllocFlags::NONE).unwrap();
    let large = world.alloc(MAX_ALLOC_SIZE, 4, AllocFlags::NONE).unwrap();
    world.free(small);
    let stats = world.allocator.statistics();
    assert_eq!((stats.allocs, stats.frees, stats.live, stats.peak_live), (2, 1, 1, 2));
    assert_eq!((stats.smallest, stats.largest), (4, 32768));
    assert_eq!((stats.chunks, stats.peak_chunks), (2, 2));
    world.free(large);
    world.alloc(8, 8, AllocFlags::NONE).unwrap();
    assert_eq!(world.allocator.statistics().peak_live, 2);

    // Holes of 4, 4, 8 and 12 bytes in a full chunk.
    let mut world = World::new(&Shape::default());
    let areas = world.fill(4);
    for hole in [0..1, 10..11, 20..22, 30..33] {
        areas[hole].iter().for_each(|&ptr| world.free(ptr));
    }
    let mut seen = Vec::new();
    world.allocator.for_each_chunk(|chunk| seen.push(*chunk));
    assert_eq!(seen.len(), 1);
    let chunk = seen[0];
    assert_eq!((chunk.free, chunk.runs, chunk.fragments), (28, 4, 2));
    assert_eq!((chunk.longest_run, chunk.median_run), (12, 4));
    assert_eq!(chunk.empty_populated_pages, 0);
}

/// Growth of all kinds, and balance work of all kinds; everything is looked at after failures and
/// after balance work.
fn grow_and_balance(world: &mut World) {
    fn alloc(world: &mut World, size: usize) -> Option<usize> {
        let before = world.fake.usage();
        let result = world.alloc(size, 4, AllocFlags::NONE);
        if let Err(error) = result {
            assert_eq!(error, AllocError::NoMemory);
            world.check();
            assert_eq!(world.fake.usage(), before, "a failed allocation kept memory or lost some");
        }
        result.ok()
    }
    fn balance(world: &mut World) {
        let balanced = world.allocator.balance();
        world.check();
        checker::check_balanced(world);
        if !balanced.out_of_memory {
            assert!(world.allocator.statistics().empty_populated_pages >= 4);
        }
    }
    world.fill_up();
    alloc(world, 8);
    balance(world);
    let pages: Vec<usize> = (0..32).filter_map(|_| alloc(world, PAGE)).collect();
    for (n, &ptr) in pages.iter().enumerate() {
        if n % 8 != 3 {
            world.free(ptr);
        }
    }
    // Takes pages away; then atomic allocations fail, and balance puts more there.
    balance(world);
    world.fill(PAGE);
    world.alloc(5 * PAGE, 4, AllocFlags::ATOMIC).unwrap_err();
    balance(world);
    let large: Vec<usize> = (0..3).filter_map(|_| alloc(world, MAX_ALLOC_SIZE)).collect();
    alloc(world, 3 * PAGE);
    large.into_iter().for_each(|ptr| world.free(ptr));
    balance(world);
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_failure_of_any_call_of_a_scenario_is_a_typed_error_and_leaks_nothing() {
    for cache in [NO_CACHE, 1] {
        use_cache_of(cache);
        let mut kinds = Vec::new();
        for n in 0.. {
            let mut world = World::new(&Shape::default());
            world.fake.fail_nth(n);
            grow_and_balance(&mut world);
            let failed = {
                let state = world.fake.lock();
                state.fail_at.and_then(|at| state.calls.get(at).copied())
            };
            world.fake.stop_failing();
            world.free_all();
            world.allocator.balance();
            world.check();
            let fake = world.fake.clone();
            drop(world);
            let usage = fake.usage();
            assert!(usage.meta.is_empty() && usage.reserved.is_empty() && usage.pages.is_empty());
            match failed {
                Some(kind) => kinds.push(kind),
                None => break,
            }
        }
        let count = |kind| kinds.iter().filter(|&&it| it == kind).count();
        assert!(count(Call::Reserve) >= 4, "{kinds:?}");
        assert!(count(Call::Meta) >= 4, "{kinds:?}");
        assert!(count(Call::Populate) >= 30, "{kinds:?}");
    }
}
