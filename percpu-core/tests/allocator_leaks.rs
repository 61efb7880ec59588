//! The leak tracker through the public interface: what is reported, what is not, and what it costs
//! the memory it lives in.

mod common;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::fake::{NO_CACHE, use_cache_of};
use common::scale::{cases, scaled};
use common::threads::Done;
use common::{Shape, World, checker};
use percpu_core::alloc::{
    AllocFlags, EARLY_CALLS, Leak, LeakError, LeakSite, LeakStatistics, Scan, Tracking,
};
use percpu_core::area::Config;
use percpu_core::var::PerCpuPtr;

/// Words that a scan begins with.
struct Roots(Vec<usize>);

impl Roots {
    fn range(&mut self) -> Range<usize> {
        // Of the kind that a scan's atomic loads ask for.
        let Range { start, end } = self.0.as_mut_ptr_range();
        start.expose_provenance()..end.expose_provenance()
    }
}

fn scan(world: &World, roots: &[usize]) -> (Scan, Vec<Leak>) {
    let mut roots = Roots(roots.to_vec());
    let mut leaks = Vec::new();
    let tracker = world.allocator.leak_tracker();
    // SAFETY: the vector's words, which nobody changes.
    let scan = unsafe { tracker.scan([roots.range()], |leak| leaks.push(*leak)) }.unwrap();
    assert_eq!(scan.leaks, leaks.len() as u64);
    assert_eq!(scan.leaked_bytes, leaks.iter().map(|leak| u64::from(leak.size)).sum::<u64>());
    (scan, leaks)
}

/// The pointers that a scan reports.
fn leaked(world: &World, roots: &[usize]) -> Vec<usize> {
    scan(world, roots).1.iter().map(|leak| leak.pointer).collect()
}

fn tracked_world() -> World {
    let world = World::new(&Shape::default());
    world.allocator.leak_tracker().start().unwrap();
    world
}

/// An area that the world's model knows nothing of, and its bytes are the test's.
#[track_caller]
fn alloc(world: &World, size: usize) -> usize {
    world.allocator.alloc(size, 8, AllocFlags::NONE).unwrap().raw()
}

fn address(world: &World, ptr: usize, cpu: u32) -> usize {
    ptr.wrapping_add(world.allocator.first_chunk().unwrap().offset(cpu).unwrap())
}

/// Writes `value` into `cpu`'s copy, `at` bytes from the start.
fn write(world: &World, ptr: usize, cpu: u32, at: usize, value: usize) {
    let word = std::ptr::with_exposed_provenance_mut::<usize>(address(world, ptr, cpu) + at);
    // SAFETY: the area is live and this test's own.
    unsafe { word.write(value) };
}

fn statistics(world: &World) -> LeakStatistics {
    world.allocator.leak_tracker().statistics()
}

#[test]
fn an_area_that_nothing_points_to_is_reported_with_its_site() {
    let world = tracked_world();
    let kept = alloc(&world, 24);
    let line = line!() + 1;
    let lost = alloc(&world, 40);
    let (found, leaks) = scan(&world, &[kept]);
    assert_eq!((found.areas, found.leaks, found.leaked_bytes), (2, 1, 40));
    assert!(found.complete && found.words > 1);
    assert_eq!((leaks[0].pointer, leaks[0].size), (lost, 40));
    assert_eq!((leaks[0].site.file(), leaks[0].site.line()), (file!(), line));
    let text = leaks[0].to_string();
    assert!(text.starts_with(&format!("unreferenced area {lost:#x}, 40 bytes, ")), "{text}");
    assert!(text.ends_with(&format!("from {}:{line}:16", file!())), "{text}");
    // A reference that turns up later takes the report back.
    assert_eq!(leaked(&world, &[lost]), [kept]);
    assert_eq!(leaked(&world, &[lost, kept]), []);
}

#[test]
fn every_form_of_a_reference_counts() {
    let world = tracked_world();
    let ptr = alloc(&world, 64);
    let other = alloc(&world, 64);
    let mut forms = vec![ptr, ptr + 1, ptr + 63];
    for cpu in [0, 1, 2] {
        let at = address(&world, ptr, cpu);
        forms.extend([at, at + 8, at + 63]);
    }
    for word in forms {
        assert_eq!(leaked(&world, &[0, word, !0]), [other], "{word:#x}");
    }
    // One byte off either end is somebody else's.
    let end = other.max(ptr) + 64;
    for word in [ptr.min(other) - 1, end, address(&world, end, 1), 0, 1, usize::MAX] {
        assert_eq!(leaked(&world, &[word]).len(), 2, "{word:#x}");
    }
}

#[test]
fn areas_are_searched_on_every_cpu_if_they_are_referenced_themselves() {
    let world = tracked_world();
    let areas: Vec<usize> = (0..4).map(|_| alloc(&world, 32)).collect();
    // A chain through different CPUs' copies, by number and by address.
    write(&world, areas[0], 2, 24, areas[1]);
    write(&world, areas[1], 1, 0, address(&world, areas[2], 0) + 9);
    write(&world, areas[2], 0, 8, areas[3] + 31);
    assert_eq!(leaked(&world, &[areas[0]]), []);
    assert_eq!(leaked(&world, &[areas[2]]), areas[..2]);
    // A ring that nothing outside refers to.
    write(&world, areas[3], 0, 0, areas[0]);
    assert_eq!(leaked(&world, &[]), areas);
    assert_eq!(leaked(&world, &[areas[1]]), []);
}

#[test]
fn static_variables_are_searched_on_every_cpu() {
    let world = tracked_world();
    let ptr = alloc(&world, 8);
    assert_eq!(leaked(&world, &[]), [ptr]);
    let picture = checker::picture(world.allocator.view_address());
    let first = picture.chunks[&picture.view.first_chunk].view;
    let template = first.base.wrapping_sub(picture.view.delta) as usize;
    for cpu in [0, 1, 2] {
        let unit = address(&world, template, cpu);
        let (number, before) = (unit + 16, 0x5a5a_5a5a_5a5a_5a5a);
        let word = std::ptr::with_exposed_provenance_mut::<usize>(number);
        // SAFETY: bytes 16 to 24 of the 100 bytes of static variables, which nobody else uses.
        unsafe { word.write(ptr + 4) };
        assert_eq!(leaked(&world, &[]), [], "CPU {cpu}");
        // SAFETY: as above.
        unsafe { word.write(before) };
    }
    assert_eq!(leaked(&world, &[]), [ptr]);
}

#[test]
fn freed_areas_are_forgotten() {
    let mut world = tracked_world();
    let freed = world.alloc(64, 8, AllocFlags::NONE).unwrap();
    let kept = world.alloc(64, 8, AllocFlags::NONE).unwrap();
    world.free(freed);
    assert_eq!((statistics(&world).areas, statistics(&world).bytes), (1, 64));
    assert_eq!(leaked(&world, &[freed]), [kept]);
    // Frees that are refused take nothing from the records.
    world.free_raw(kept + 4).unwrap_err();
    world.free_raw(freed).unwrap_err();
    world.free_raw(0).unwrap();
    assert_eq!(leaked(&world, &[]), [kept]);
    // The place's next life is an area of its own.
    let again = alloc(&world, 64);
    assert_eq!(again, freed);
    assert_eq!(scan(&world, &[kept]).1[0].site.file(), file!());
    world.free(kept);
    world.free_raw(again).unwrap();
    assert_eq!(statistics(&world).areas, 0);
    world.check();
}

#[test]
fn areas_in_all_chunks_are_tracked() {
    // Units of two groups with a gap between them.
    let config = Config { reserved_size: 1024, distance: common::two_groups, ..Config::default() };
    let world = World::new(&Shape { cpus: vec![0, 1, 2, 5], config, ..Shape::default() });
    world.allocator.leak_tracker().start().unwrap();
    let mut areas: Vec<usize> = (0..6).map(|_| alloc(&world, 20 << 10)).collect();
    assert!(world.allocator.statistics().chunks > 3);
    areas.push(world.allocator.alloc(64, 64, AllocFlags::RESERVED).unwrap().raw());
    areas.sort_unstable();
    assert_eq!(leaked(&world, &[]), areas);
    for &area in &areas {
        for cpu in [0, 1, 2, 5] {
            let word = address(&world, area, cpu) + 60;
            let found = leaked(&world, &[word]);
            assert_eq!(found.len(), areas.len() - 1, "CPU {cpu}");
            assert!(!found.contains(&area));
        }
    }
}

#[test]
fn cpus_get_their_objects_with_their_units() {
    let config = Config { units_on_demand: true, boot_cpu: Some(1), ..Config::default() };
    let mut world = World::new(&Shape { config, ..Shape::default() });
    world.allocator.leak_tracker().start().unwrap();
    let (ptr, child) = (alloc(&world, 32), alloc(&world, 32));
    // Where there is no memory there is no object either.
    let on_demand = address(&world, ptr, 2) + 8;
    assert_eq!(leaked(&world, &[on_demand]), [ptr, child]);
    world.add_unit(2).unwrap();
    assert_eq!(leaked(&world, &[on_demand]), [child]);
    write(&world, ptr, 2, 24, child);
    assert_eq!(leaked(&world, &[on_demand]), []);
}

#[test]
fn early_calls_are_replayed() {
    let mut world = World::new(&Shape::default());
    let tracker = world.allocator.leak_tracker();
    tracker.log_early();
    assert_eq!(statistics(&world).tracking, Tracking::Early);
    let calls = world.fake.lock().calls.len();
    let first = world.alloc(16, 8, AllocFlags::ATOMIC).unwrap();
    let freed = world.alloc(16, 8, AllocFlags::NONE).unwrap();
    world.free(freed);
    let again = alloc(&world, 16);
    assert_eq!(again, freed);
    assert_eq!(world.fake.lock().calls.len(), calls, "the early log asked for memory");
    // SAFETY: no roots.
    let too_early = unsafe { world.allocator.leak_tracker().scan([], |_| ()) };
    assert_eq!(too_early, Err(LeakError::NotStarted));
    assert_eq!(world.allocator.leak_tracker().sites(|_| ()), Err(LeakError::NotStarted));

    world.allocator.leak_tracker().start().unwrap();
    let LeakStatistics { tracking, areas, missed, .. } = statistics(&world);
    assert_eq!((tracking, areas, missed), (Tracking::On, 2, 0));
    assert_eq!(leaked(&world, &[first]), [again]);
    assert!(scan(&world, &[]).0.complete);
    world.free(first);
    assert_eq!(leaked(&world, &[]), [again]);
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_full_early_log_is_replayed_whole() {
    let mut world = World::new(&Shape::default());
    world.allocator.leak_tracker().log_early();
    for _ in 0..EARLY_CALLS {
        world.alloc(8, 8, AllocFlags::NONE).unwrap();
    }
    world.allocator.leak_tracker().start().unwrap();
    let LeakStatistics { areas, missed, early_lost, .. } = statistics(&world);
    assert_eq!((areas, missed, early_lost), (EARLY_CALLS as u64, 0, 0));
    let live: Vec<usize> = world.live.keys().copied().collect();
    assert_eq!(leaked(&world, &[]), live);
}

#[test]
fn an_early_log_that_overflows_disables_the_tracker() {
    let mut world = World::new(&Shape::default());
    world.allocator.leak_tracker().log_early();
    for _ in 0..EARLY_CALLS / 2 {
        let ptr = world.alloc(8, 8, AllocFlags::NONE).unwrap();
        world.free(ptr);
    }
    assert_eq!(statistics(&world).early_lost, 0, "the log is full, no call is lost");
    let kept = world.alloc(8, 8, AllocFlags::NONE).unwrap();
    world.free(kept);
    world.alloc(8, 8, AllocFlags::NONE).unwrap();
    let before = world.fake.lock().log.len();
    let tracker = world.allocator.leak_tracker();
    assert_eq!(tracker.start(), Err(LeakError::EarlyLogOverflow(3)));
    let log = world.fake.lock().log.clone();
    assert_eq!(
        log[before..],
        ["percpu: leak tracking is disabled: the early log holds 200 calls, 3 more were lost"]
    );
    // For good.
    tracker.log_early();
    tracker.stop();
    assert_eq!(tracker.start(), Err(LeakError::EarlyLogOverflow(3)));
    assert_eq!(tracker.statistics().tracking, Tracking::Disabled);
    assert_eq!(world.fake.lock().log.len(), before + 1, "said once");
    world.free_all();
    world.check();
}

#[test]
fn what_was_live_before_an_unlogged_start_is_counted_as_missed() {
    let mut world = World::new(&Shape::default());
    let unknown = world.alloc(8, 8, AllocFlags::NONE).unwrap();
    world.allocator.leak_tracker().start().unwrap();
    assert_eq!(statistics(&world).missed, 1);
    let (found, leaks) = scan(&world, &[]);
    assert_eq!((found.complete, found.areas, leaks), (false, 0, vec![]));
    world.free(unknown);
    assert_eq!(statistics(&world).areas, 0);
}

#[test]
fn what_was_live_before_a_late_log_is_counted_as_missed() {
    let mut world = World::new(&Shape::default());
    let unknown = world.alloc(8, 8, AllocFlags::NONE).unwrap();
    let tracker = world.allocator.leak_tracker();
    tracker.log_early();
    let known = alloc(&world, 16);
    tracker.start().unwrap();
    assert_eq!((statistics(&world).areas, statistics(&world).missed), (1, 1));
    assert_eq!(leaked(&world, &[]), [known]);
    assert!(!scan(&world, &[]).0.complete);
    world.free(unknown);
    world.free_raw(known).unwrap();
    assert_eq!((statistics(&world).areas, statistics(&world).missed), (0, 1));
}

/// Runs `rounds` of them: threads allocate with caches of their own and with none, and free if they are
/// to; meanwhile tracking begins, by two threads at once. All areas that are left are shown to `check`.
fn while_tracking_begins(rounds: usize, frees: bool, check: impl Fn(&World, usize)) {
    let world = World::new(&Shape { cpus: (0..4).collect(), ..Shape::default() });
    for round in 0..rounds {
        let (go, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = |thread: u32| {
            world.fake.adopt();
            use_cache_of(if thread == 3 { NO_CACHE } else { thread });
            let mut live: Vec<usize> = Vec::new();
            for n in 0_usize.. {
                go.fetch_add(1, Ordering::Relaxed);
                if done.load(Ordering::Relaxed) || live.len() > 1000 {
                    break;
                }
                let goes = n % (2 + thread as usize) == 1 && frees;
                if goes && let Some(ptr) = live.pop() {
                    world.free_raw(ptr).unwrap();
                } else {
                    live.push(alloc(&world, 8));
                }
            }
            live
        };
        let tracker = world.allocator.leak_tracker();
        let work = &work;
        let left: Vec<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || work(n))).collect();
            while go.load(Ordering::Relaxed) < 50 + round % 200 {
                std::hint::spin_loop();
            }
            let other = scope.spawn(|| {
                world.fake.adopt();
                if round % 3 == 0 {
                    tracker.log_early();
                }
                match tracker.start() {
                    Ok(()) | Err(LeakError::EarlyLogOverflow(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            });
            let _ = tracker.start();
            other.join().unwrap();
            done.store(true, Ordering::Relaxed);
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        if tracker.statistics().tracking == Tracking::Disabled {
            // The log was too short. There is no way back.
            left.into_iter().for_each(|ptr| world.free_raw(ptr).unwrap());
            return while_tracking_begins(rounds - round - 1, frees, check);
        }
        check(&world, left.len());
        left.into_iter().for_each(|ptr| world.free_raw(ptr).unwrap());
        assert_eq!((statistics(&world).areas, statistics(&world).bytes), (0, 0));
        tracker.stop();
    }
}

const ROUNDS: usize = if cfg!(miri) { 3 } else { 300 };

#[test]
fn each_area_is_either_tracked_or_missed_whenever_tracking_begins() {
    while_tracking_begins(ROUNDS, false, |world, live| {
        let LeakStatistics { areas, missed, .. } = statistics(world);
        assert_eq!(areas + missed, live as u64, "{areas} areas, {missed} missed");
    });
}

#[test]
fn frees_while_tracking_begins_leave_no_area_out() {
    while_tracking_begins(ROUNDS, true, |world, live| {
        let LeakStatistics { areas, missed, .. } = statistics(world);
        assert_eq!(world.allocator.statistics().live, live as u64);
        // What was freed since the beginning may still count as missed.
        let live = live as u64;
        assert!(areas <= live && areas + missed >= live, "{areas}, {missed} missed, {live} live");
    });
}

/// An area whose allocation sleeps while the tracker is stopped and started again.
#[test]
fn an_area_of_an_earlier_start_is_missed_by_the_next_one() {
    let world = Arc::new(World::new(&Shape::default()));
    let tracker = || world.allocator.leak_tracker();
    tracker().start().unwrap();
    let mut before = Vec::new();
    let restarted = loop {
        let calls = world.fake.lock().calls.len();
        let other = world.clone();
        world.fake.lock().meanwhile = Some(Box::new(move || {
            other.allocator.leak_tracker().stop();
            other.allocator.leak_tracker().start().unwrap();
        }));
        let ptr = alloc(&world, 8);
        if world.fake.lock().calls.len() != calls {
            break ptr;
        }
        before.push(ptr);
    };
    let live = before.len() as u64 + 1;
    assert_eq!((statistics(&world).areas, statistics(&world).missed), (0, live));
    let tracked = alloc(&world, 8);
    assert_eq!((statistics(&world).areas, statistics(&world).missed), (1, live));
    assert_eq!(leaked(&world, &[]), [tracked]);
    world.free_raw(restarted).unwrap();
    assert_eq!(statistics(&world).areas, 1);
}

/// A CPU's cache that comes when tracking is on, and the areas that go through it.
#[test]
fn the_cache_of_a_cpu_that_comes_later_is_tracked() {
    let config = Config { units_on_demand: true, boot_cpu: Some(1), ..Config::default() };
    for early in [false, true] {
        let mut world = World::new(&Shape { config, ..Shape::default() });
        if early {
            world.allocator.leak_tracker().log_early();
        } else {
            world.allocator.leak_tracker().start().unwrap();
        }
        world.add_unit(2).unwrap();
        use_cache_of(2);
        let ptr = alloc(&world, 8);
        world.allocator.leak_tracker().start().unwrap();
        assert_eq!((statistics(&world).areas, statistics(&world).missed), (1, 0));
        assert_eq!(leaked(&world, &[]), [ptr]);
        use_cache_of(NO_CACHE);
    }
}

/// What scans and reports call may ask for what they are about; what would wait for them is refused.
#[test]
fn callbacks_may_use_the_tracker_and_the_allocator() {
    let world = tracked_world();
    let (kept, lost) = (alloc(&world, 8), alloc(&world, 8));
    let tracker = world.allocator.leak_tracker();
    let all = || {
        assert_eq!(tracker.start(), Ok(()));
        tracker.log_early();
        assert_eq!(tracker.statistics().tracking, Tracking::On);
        tracker.not_leak(PerCpuPtr::<u8>::from_raw(0));
        assert!(world.allocator.statistics().live >= 2);
        let ptr = world.allocator.alloc(8, 8, AllocFlags::ATOMIC).unwrap().raw();
        world.free_raw(ptr).unwrap();
    };
    let mut roots = Roots(vec![kept]);
    let ranges = std::iter::once_with(|| {
        all();
        roots.range()
    });
    let mut found = Vec::new();
    let visit = |leak: &Leak| {
        all();
        let ptr = alloc(&world, 8);
        world.free_raw(ptr).unwrap();
        world.allocator.balance();
        found.push(leak.pointer);
    };
    // SAFETY: the vector's words, which nobody changes.
    unsafe { tracker.scan(ranges, visit) }.unwrap();
    assert_eq!(found, [lost]);
    let mut sites = 0;
    let visit = |_: &LeakSite| {
        all();
        world.allocator.balance();
        sites += 1;
    };
    tracker.sites(visit).unwrap();
    assert_eq!(sites, 2);
    assert_eq!(leaked(&world, &[kept]), [lost]);
}

#[test]
fn atomic_allocations_take_prepared_records_and_are_missed_without() {
    let mut world = tracked_world();
    let calls = world.fake.lock().calls.len();
    world.fill(64);
    assert_eq!(world.fake.lock().calls.len(), calls, "an atomic allocation asked for memory");
    let LeakStatistics { areas, missed, .. } = statistics(&world);
    assert!(areas > 0 && missed > 0, "{areas} areas, {missed} missed");
    assert_eq!(areas + missed, world.live.len() as u64);
    let warnings = |world: &World| {
        let log = &world.fake.lock().log;
        log.iter().filter(|line| line.contains("not tracked for want of memory")).count()
    };
    assert_eq!(warnings(&world), 1);
    assert!(!scan(&world, &[]).0.complete);
    // The records of freed areas serve others.
    let known = leaked(&world, &[]);
    known[..5].iter().for_each(|&ptr| world.free(ptr));
    for _ in 0..5 {
        world.alloc(64, 4, AllocFlags::ATOMIC).unwrap();
    }
    assert_eq!(statistics(&world).missed, missed);
    // Work that sleeps gets more.
    world.allocator.balance();
    let one = world.live.keys().copied().find(|ptr| !known.contains(ptr)).unwrap();
    world.free(one);
    world.alloc(64, 4, AllocFlags::ATOMIC).unwrap();
    assert_eq!(statistics(&world).missed, missed);
    world.free_all();
    assert_eq!((statistics(&world).areas, statistics(&world).bytes), (0, 0));
}

#[test]
fn records_that_cannot_be_had_fail_no_allocation() {
    let mut world = tracked_world();
    world.fake.lock().fail_at = Some(0);
    world.fake.lock().fail_from_then_on = true;
    let mut count = 0;
    while world.alloc(64, 4, AllocFlags::NONE).is_ok() {
        count += 1;
    }
    world.fake.stop_failing();
    let LeakStatistics { areas, missed, .. } = statistics(&world);
    assert!(areas > 0 && missed > 0);
    assert_eq!(areas + missed, count);
    world.check();
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_start_without_memory_changes_nothing() {
    for logged in [false, true] {
        let mut world = World::new(&Shape::default());
        let tracker = world.allocator.leak_tracker();
        if logged {
            tracker.log_early();
        }
        // So many records take several pieces of memory.
        for _ in 0..EARLY_CALLS {
            world.alloc(8, 8, AllocFlags::NONE).unwrap();
        }
        let tracker = world.allocator.leak_tracker();
        let (before, usage) = (tracker.statistics(), world.fake.usage());
        let mut failures = 0;
        loop {
            world.fake.fail_nth(failures);
            let result = tracker.start();
            world.fake.stop_failing();
            if result.is_ok() {
                break;
            }
            assert_eq!(result, Err(LeakError::NoMemory));
            assert_eq!(tracker.statistics(), before, "request {failures}");
            assert_eq!(world.fake.usage(), usage, "request {failures}");
            failures += 1;
        }
        assert_eq!(failures, if logged { 4 } else { 1 });
        let LeakStatistics { areas, missed, .. } = tracker.statistics();
        let all = EARLY_CALLS as u64;
        assert_eq!((areas, missed), if logged { (all, 0) } else { (0, all) });
    }
}

#[test]
fn a_start_that_meets_an_overflow_gives_its_memory_back() {
    let world = Arc::new(World::new(&Shape::default()));
    world.allocator.leak_tracker().log_early();
    (0..EARLY_CALLS).for_each(|_| _ = alloc(&world, 8));
    let usage = world.fake.usage();
    let other = world.clone();
    world.fake.lock().meanwhile = Some(Box::new(move || _ = alloc(&other, 8)));
    assert_eq!(world.allocator.leak_tracker().start(), Err(LeakError::EarlyLogOverflow(1)));
    assert_eq!(world.fake.usage(), usage);
}

#[test]
fn memory_that_comes_after_a_stop_is_given_back() {
    let world = Arc::new(World::new(&Shape::default()));
    let usage = world.fake.usage();
    world.allocator.leak_tracker().start().unwrap();
    let calls = world.fake.lock().calls.len();
    let other = world.clone();
    world.fake.lock().meanwhile = Some(Box::new(move || other.allocator.leak_tracker().stop()));
    while world.fake.lock().calls.len() == calls {
        alloc(&world, 8);
    }
    assert_eq!(statistics(&world).tracking, Tracking::Off);
    assert_eq!(world.fake.usage(), usage);
}

#[test]
fn atomic_allocations_ask_for_records_before_they_run_out() {
    let world = tracked_world();
    let atomic = || _ = world.allocator.alloc(8, 8, AllocFlags::ATOMIC).unwrap();
    let mut count = 0;
    world.allocator.balance();
    while !world.allocator.balance_wanted() {
        atomic();
        count += 1;
    }
    assert_eq!(statistics(&world).missed, 0);
    assert!(count > 20, "asked for after {count} areas");
    // It is for records alone: with as many of them balance is not wanted.
    world.allocator.leak_tracker().stop();
    world.allocator.balance();
    (0..count).for_each(|_| atomic());
    assert!(!world.allocator.balance_wanted());
    // Whoever answers such wishes in time misses no area.
    world.allocator.leak_tracker().start().unwrap();
    let missed = statistics(&world).missed;
    for _ in 0..500 {
        atomic();
        if world.allocator.balance_wanted() {
            world.allocator.balance();
        }
    }
    assert_eq!((statistics(&world).areas, statistics(&world).missed), (500, missed));
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_panic_ends_a_scan() {
    let world = tracked_world();
    let pairs = || {
        for _ in 0..scaled(10_000) {
            let ptr = alloc(&world, 8);
            world.free_raw(ptr).unwrap();
        }
    };
    let tracker = world.allocator.leak_tracker();
    let areas: Vec<usize> = (0..10).map(|_| alloc(&world, 8)).collect();
    pairs();
    let before = world.fake.usage();
    let mut words = Roots(areas.clone());
    let mut roots = [Some(words.range()), None].into_iter();
    let panicking = std::iter::from_fn(|| Some(roots.next()?.expect("a range of roots")));
    let scan_of = AssertUnwindSafe(|| {
        // SAFETY: the vector's words, which nobody changes.
        unsafe { tracker.scan(panicking, |_| ()) }
    });
    catch_unwind(scan_of).unwrap_err();
    // The areas that were found have not been searched. Some of them go, some stay.
    areas[..5].iter().for_each(|&ptr| world.free_raw(ptr).unwrap());
    areas[..5].iter().for_each(|&ptr| assert_eq!(alloc(&world, 8), ptr));
    pairs();
    assert_eq!(world.fake.usage(), before);
    let mut one = Roots(areas[9..].to_vec());
    let visited = AssertUnwindSafe(|| {
        // SAFETY: as above.
        unsafe { tracker.scan([one.range()], |leak| panic!("{leak}")) }
    });
    let message = catch_unwind(visited).unwrap_err().downcast::<String>().unwrap();
    assert!(message.starts_with("unreferenced area"), "{message}");
    pairs();
    assert_eq!(world.fake.usage(), before);
    assert_eq!(leaked(&world, &areas[1..]), areas[..1]);
}

#[test]
fn pinned_areas_are_no_leaks_nor_what_they_refer_to() {
    let world = tracked_world();
    let (pinned, child) = (alloc(&world, 8), alloc(&world, 8));
    write(&world, pinned, 1, 0, child);
    let tracker = world.allocator.leak_tracker();
    assert!(tracker.not_leak(PerCpuPtr::<u64>::from_raw(pinned)));
    assert!(!tracker.not_leak(PerCpuPtr::<u64>::from_raw(pinned + 1)));
    assert_eq!(leaked(&world, &[]), []);
    assert_eq!(leaked(&world, &[]), []);
    // The next area at that place is another.
    world.free_raw(pinned).unwrap();
    assert_eq!(alloc(&world, 8), pinned);
    assert_eq!(leaked(&world, &[]), [pinned, child]);
}

#[test]
fn areas_that_are_allocated_during_a_scan_are_not_reported_but_searched() {
    let world = tracked_world();
    let moved = alloc(&world, 8);
    let mut roots = Roots(vec![0]);
    let mut newborn = 0;
    // While the roots are being gone through, the last reference moves into a new area.
    let ranges = std::iter::once_with(|| {
        newborn = world.allocator.alloc(8, 8, AllocFlags::ATOMIC).unwrap().raw();
        write(&world, newborn, 0, 0, moved);
        roots.range()
    });
    // SAFETY: the vector's words, which nobody changes.
    let found = unsafe { world.allocator.leak_tracker().scan(ranges, |leak| panic!("{leak}")) };
    assert_eq!(found.map(|found| (found.areas, found.leaks)), Ok((1, 0)));
    assert_eq!(leaked(&world, &[]), [moved, newborn]);
}

#[test]
fn areas_that_are_freed_during_a_scan_leave_no_trace() {
    let world = tracked_world();
    let (a, b) = (alloc(&world, 8), alloc(&world, 8));
    let mut roots = [Roots(vec![a, b]), Roots(vec![0])];
    // Between two ranges both are referenced and wait to be searched themselves.
    let ranges = roots.iter_mut().enumerate().map(|(n, roots)| {
        if n == 1 {
            world.free_raw(a).unwrap();
        }
        roots.range()
    });
    // SAFETY: the vectors' words, which nobody changes.
    let found = unsafe { world.allocator.leak_tracker().scan(ranges, |leak| panic!("{leak}")) };
    assert_eq!(found.map(|found| found.areas), Ok(1));
    assert_eq!(statistics(&world).areas, 1);
    let again = alloc(&world, 8);
    assert_eq!(leaked(&world, &[b]), [again]);
    // And its record is one of many, not two of them.
    let mut others: Vec<usize> = (0..200).map(|_| alloc(&world, 8)).collect();
    others.push(again);
    others.sort_unstable();
    assert_eq!(leaked(&world, &[b]), others);
}

#[test]
fn reports_may_free_what_they_report() {
    let world = tracked_world();
    let count = 20;
    (0..count).for_each(|_| _ = alloc(&world, 16));
    let tracker = world.allocator.leak_tracker();
    let free = |leak: &Leak| world.free_raw(leak.pointer).unwrap();
    // SAFETY: no roots.
    let found = unsafe { tracker.scan([], free) }.unwrap();
    assert_eq!((found.leaks, statistics(&world).areas), (count, 0));
    assert_eq!(world.allocator.statistics().live, 0);
}

#[test]
fn sites_are_summed_up() {
    #[track_caller]
    fn helper(world: &World, count: usize, size: usize) -> &'static Location<'static> {
        for _ in 0..count {
            alloc(world, size);
        }
        Location::caller()
    }
    let world = tracked_world();
    let one = helper(&world, 3, 16);
    let kept = alloc(&world, 100);
    let two = helper(&world, 2, 32);
    let sites = || {
        let mut sites: Vec<LeakSite> = Vec::new();
        world.allocator.leak_tracker().sites(|site| sites.push(*site)).unwrap();
        sites
    };
    let sums = |sites: &[LeakSite]| -> Vec<_> {
        sites.iter().map(|s| (s.areas, s.bytes, s.leaks, s.leaked_bytes)).collect()
    };
    assert_eq!(sums(&sites()), [(3, 48, 0, 0), (1, 100, 0, 0), (2, 64, 0, 0)]);
    leaked(&world, &[kept]);
    let after = sites();
    assert_eq!(sums(&after), [(3, 48, 3, 48), (1, 100, 0, 0), (2, 64, 2, 64)]);
    assert_eq!((after[0].site, after[2].site), (one, two));
    assert_eq!(after[0].to_string(), format!("3 areas, 48 bytes, from {one}: 3 leaked, 48 bytes"));
    // The memory for the lines may be missing.
    world.fake.fail_nth(0);
    assert_eq!(world.allocator.leak_tracker().sites(|_| ()), Err(LeakError::NoMemory));
}

#[test]
fn a_stopped_tracker_gives_its_memory_back() {
    let mut world = World::new(&Shape::default());
    let before = world.fake.usage();
    let tracker = world.allocator.leak_tracker();
    tracker.start().unwrap();
    let areas: Vec<usize> = (0..200).map(|_| alloc(&world, 4)).collect();
    assert!(world.fake.usage().meta.len() > before.meta.len() + 2);
    leaked(&world, &areas[..10]);
    world.allocator.leak_tracker().stop();
    assert_eq!(statistics(&world).tracking, Tracking::Off);
    assert_eq!(world.fake.usage(), before);
    areas.into_iter().for_each(|ptr| world.free_raw(ptr).unwrap());
    // Another start knows nothing of what was before.
    world.allocator.leak_tracker().start().unwrap();
    assert_eq!((statistics(&world).areas, statistics(&world).missed), (0, 0));
    let ptr = world.alloc(4, 4, AllocFlags::NONE).unwrap();
    assert_eq!(leaked(&world, &[]), [ptr]);
    // And an allocator that goes takes its records along.
    let fake = world.fake.clone();
    drop(world);
    assert!(fake.usage().meta.is_empty());
}

#[test]
#[cfg_attr(miri, ignore = "the search reads what others write, as a debugger does")]
fn scans_and_calls_at_the_same_time_agree_in_the_end() {
    let world = tracked_world();
    let kept: Vec<usize> = (0..50).map(|n| alloc(&world, 8 + n * 8)).collect();
    // Half of them are known to other areas only.
    for pair in kept.chunks_exact(2) {
        write(&world, pair[0], 1, 0, pair[1]);
    }
    let roots: Vec<usize> = kept.iter().copied().step_by(2).collect();
    let scanned = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers = [0, 1].map(|thread| {
            let (world, scanned) = (&world, &scanned);
            scope.spawn(move || {
                world.fake.adopt();
                let mut live = Vec::new();
                let mut n = 0;
                while n < 4000 || !scanned.load(Ordering::Relaxed) {
                    if n % 3 == 2 || live.len() > 2000 {
                        let ptr = live.swap_remove(n * 7 % live.len());
                        world.free_raw(ptr).unwrap();
                    } else {
                        live.push(alloc(world, 8 + (n * 13 + thread) % 500));
                    }
                    if n % 500 == 0 {
                        world.allocator.balance();
                    }
                    n += 1;
                }
                live.into_iter().for_each(|ptr| world.free_raw(ptr).unwrap());
            })
        });
        let _ending = Done(&scanned);
        // A caller that has failed is finished, too.
        while !callers.iter().all(|caller| caller.is_finished()) {
            let (found, leaks) = scan(&world, &roots);
            assert!(found.areas >= 50 && found.complete);
            assert!(leaks.iter().all(|leak| !kept.contains(&leak.pointer)), "{leaks:?}");
            scanned.store(true, Ordering::Relaxed);
        }
    });
    let LeakStatistics { areas, missed, .. } = statistics(&world);
    assert_eq!((areas, missed), (50, 0));
    assert_eq!(leaked(&world, &roots), []);
    kept.into_iter().for_each(|ptr| world.free_raw(ptr).unwrap());
    assert_eq!((statistics(&world).areas, statistics(&world).bytes), (0, 0));
}

mod random {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Alloc(usize),
        Free(prop::sample::Index),
        /// Writes a reference to one area into another.
        Link(prop::sample::Index, prop::sample::Index, u32, usize),
        /// Scans with these areas as roots.
        Scan(Vec<prop::sample::Index>),
    }

    fn ops() -> impl Strategy<Value = Op> {
        let index = any::<prop::sample::Index>;
        prop_oneof![
            6 => (1usize..200).prop_map(|n| Op::Alloc(n * 8)),
            3 => index().prop_map(Op::Free),
            8 => (index(), index(), 0u32..3, 0usize..8).prop_map(|(a, b, c, d)| Op::Link(a, b, c, d)),
            2 => prop::collection::vec(index(), 0..3).prop_map(Op::Scan),
        ]
    }

    /// What the model knows: size, and the references by CPU and place.
    type Areas = BTreeMap<usize, (usize, BTreeMap<(u32, usize), usize>)>;

    /// What cannot be reached from the roots. References are by number, so that one into freed
    /// memory counts for whoever lives there by now.
    fn unreachable(areas: &Areas, roots: &[usize]) -> Vec<usize> {
        let mut seen = BTreeSet::new();
        let mut todo = roots.to_vec();
        while let Some(at) = todo.pop() {
            let Some((&ptr, (size, links))) = areas.range(..=at).next_back() else { continue };
            if at < ptr + size && seen.insert(ptr) {
                todo.extend(links.values());
            }
        }
        areas.keys().copied().filter(|ptr| !seen.contains(ptr)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: cases(48), failure_persistence: None, ..Default::default()
        })]

        #[test]
        fn a_scan_reports_exactly_what_cannot_be_reached(
            ops in prop::collection::vec(ops(), 1..scaled(100)),
        ) {
            let world = tracked_world();
            let mut areas = Areas::new();
            for op in ops {
                let pick = |index: &prop::sample::Index| {
                    let all: Vec<usize> = areas.keys().copied().collect();
                    (!all.is_empty()).then(|| *index.get(&all))
                };
                match op {
                    Op::Alloc(size) => {
                        areas.insert(alloc(&world, size), (size, BTreeMap::new()));
                    }
                    Op::Free(index) => {
                        if let Some(ptr) = pick(&index) {
                            world.free_raw(ptr).unwrap();
                            areas.remove(&ptr);
                        }
                    }
                    Op::Link(from, to, cpu, at) => {
                        let (Some(from), Some(to)) = (pick(&from), pick(&to)) else { continue };
                        let (size, links) = areas.get_mut(&from).unwrap();
                        let place = at * 8 % *size;
                        let word = if at % 2 == 0 { to } else { address(&world, to, cpu) };
                        write(&world, from, cpu, place, word);
                        links.insert((cpu, place), to);
                    }
                    Op::Scan(roots) => {
                        let roots: Vec<usize> = roots.iter().filter_map(pick).collect();
                        prop_assert_eq!(leaked(&world, &roots), unreachable(&areas, &roots));
                    }
                }
            }
            prop_assert_eq!(statistics(&world).areas, areas.len() as u64);
            prop_assert_eq!(leaked(&world, &[]), unreachable(&areas, &[]));
        }
    }
}
