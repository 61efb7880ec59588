//! Units that get memory when their CPU first comes up, and the first chunk made page by page.

mod common;

use std::ptr::with_exposed_provenance;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use common::fake::{Call, Fake, FakeHandle, Page, Usage};
use common::scale::scaled;
use common::threads::Done;
use common::{Shape, World, checker, fake, two_groups};
use percpu_core::alloc::{AllocFlags, Allocator};
use percpu_core::area::{AllocInfo, Config, CpuSet, FirstChunk, Method, SetupError};
use percpu_core::platform::NoMemory;
use percpu_core::var::PerCpuPtr;

const PAGE: usize = 4096;
const K: usize = 1 << 10;

/// Six CPUs in two groups, of which CPU 2 has a unit.
fn shape() -> Shape {
    let config = Config {
        reserved_size: 1024,
        distance: two_groups,
        units_on_demand: true,
        boot_cpu: Some(2),
        ..Config::default()
    };
    Shape { cpus: (0..6).collect(), config, ..Shape::default() }
}

fn pages_by_cpu(usage: &Usage) -> Vec<(u32, usize)> {
    let mut pages = std::collections::BTreeMap::new();
    for page in usage.pages.values() {
        let Page::Populated { cpu } = page else { panic!("{page:?} at rest") };
        *pages.entry(*cpu).or_insert(0) += 1;
    }
    pages.into_iter().collect()
}

/// Two grown chunks with holes among their populated pages, areas everywhere.
fn busy(world: &mut World) {
    world.alloc(40, 8, AllocFlags::RESERVED).unwrap();
    world.fill_up();
    let areas: Vec<usize> =
        (0..24).map(|_| world.alloc(PAGE, PAGE, AllocFlags::NONE).unwrap()).collect();
    let freed = areas.iter().enumerate().filter(|(n, _)| n % 8 != 3 && n % 8 != 5);
    freed.for_each(|(_, &ptr)| world.free(ptr));
    world.allocator.balance();
    world.alloc(20, 4, AllocFlags::NONE).unwrap();
    world.check();
}

#[test]
fn memory_is_behind_the_units_of_cpus_that_came_up_and_no_other() {
    let mut world = World::new(&shape());
    let first_pages = (100 + 1024 + 28 * K).div_ceil(PAGE);
    assert_eq!(pages_by_cpu(&world.fake.usage()), [(2, first_pages)]);
    busy(&mut world);
    let (_, per_cpu) = pages_by_cpu(&world.fake.usage())[0];
    assert!(per_cpu > first_pages + 2);

    // The other group's and the own one's, in an order of their own.
    for (n, cpu) in [5, 0, 3].into_iter().enumerate() {
        world.add_unit(cpu).unwrap();
        let pages = pages_by_cpu(&world.fake.usage());
        assert_eq!(pages.len(), n + 2);
        assert!(pages.iter().all(|&(_, count)| count == pages[0].1), "{pages:?}");
        world.check();
        // Growth, atomic and reserved allocations reach the new unit; and memory goes from there.
        world.alloc(3 * PAGE, PAGE, AllocFlags::NONE).unwrap();
        world.alloc(8, 8, AllocFlags::RESERVED).unwrap();
        world.check();
    }
    assert!(world.allocator.first_chunk().unwrap().has_memory(5));
    assert!(!world.allocator.first_chunk().unwrap().has_memory(1));
    world.free_all();
    world.allocator.balance();
    world.check();
    checker::check_balanced(&world);
    let fake = world.fake.clone();
    drop(world);
    let usage = fake.usage();
    assert!(usage.meta.is_empty() && usage.reserved.is_empty() && usage.pages.is_empty());
}

#[test]
fn a_new_unit_has_the_template_and_zero_behind_it() {
    let mut world = World::new(&shape());
    busy(&mut world);
    world.add_unit(4).unwrap();
    let first = world.allocator.first_chunk().unwrap();
    let unit = |cpu: u32, template: usize| {
        let at = template.wrapping_add(first.offset(cpu).unwrap());
        // SAFETY: the unit has memory, and nobody changes it now.
        unsafe { std::slice::from_raw_parts(with_exposed_provenance::<u8>(at), 100 + 1024) }
    };
    let template = first.base().wrapping_sub(first.offset(0).unwrap());
    // CPU 0's unit is the lowest.
    assert_eq!(unit(4, template)[..100], [0x5a; 100]);
    // A live area's copy was seen to be zero by `add_unit`; this is what no area has taken yet.
    assert!(unit(4, template)[100 + 48..].iter().all(|&byte| byte == 0));
    assert_eq!(first.static_variable_at(unit(4, template).as_ptr().addr() + 99), Some((4, 99)));
    let absent = first.base() + 5 * PAGE;
    assert_eq!(first.static_variable_at(absent), None, "no memory, no variable");
}

#[test]
fn a_unit_that_is_there_stays_as_it_is() {
    let mut world = World::new(&shape());
    world.add_unit(1).unwrap();
    let ptr = world.alloc(64, 4, AllocFlags::NONE).unwrap();
    let calls = world.fake.lock().calls.len();
    let usage = world.fake.usage();
    world.add_unit(1).unwrap();
    world.add_unit(2).unwrap();
    assert_eq!(world.fake.lock().calls.len(), calls, "nothing was asked for");
    assert_eq!(world.fake.usage(), usage);
    // Looks at every copy's bytes.
    world.free(ptr);
}

/// What a failure must not change.
fn everything(world: &World) -> (checker::Picture, Usage, String) {
    let picture = checker::picture(world.allocator.view_address()).without_order();
    (picture, world.fake.usage(), format!("{:?}", world.allocator.statistics()))
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_failure_at_any_step_of_adding_a_unit_changes_nothing() {
    let mut world = World::new(&shape());
    busy(&mut world);
    let before = everything(&world);
    let mut failures = 0;
    loop {
        let calls = world.fake.lock().calls.len();
        world.fake.fail_nth(failures);
        let result = world.add_unit(3);
        world.fake.stop_failing();
        let calls = world.fake.lock().calls.split_off(calls);
        if result.is_ok() {
            assert_eq!(calls.iter().filter(|&&call| call == Call::Populate).count(), failures - 1);
            break;
        }
        assert_eq!(result, Err(NoMemory));
        assert_eq!(everything(&world), before, "failure {failures}");
        world.check();
        failures += 1;
    }
    // The first chunk, three others with holes in some, and the cache.
    assert!(failures > 1 + 3 + 1, "{failures}");
    world.check();
    world.free_all();
    world.check();
}

#[test]
fn units_appear_while_threads_allocate_and_balance() {
    const ROUNDS: usize = scaled(4000);
    let config = Config { units_on_demand: true, ..Config::default() };
    let world = World::new(&Shape { cpus: (0..8).collect(), config, ..Shape::default() });
    let (added, stop) = (AtomicUsize::new(1), AtomicBool::new(false));
    let first = world.allocator.first_chunk().unwrap();
    let words = |ptr: usize, cpu: u32, size: usize| {
        let at = with_exposed_provenance::<u32>(ptr.wrapping_add(first.offset(cpu).unwrap()));
        // SAFETY: of an area of this thread's own, in a unit that has memory.
        (0..size / 4).map(move |i| unsafe { at.add(i).cast_mut() })
    };
    thread::scope(|scope| {
        for n in 0..2 {
            let (world, added, stop) = (&world, &added, &stop);
            scope.spawn(move || {
                world.fake.adopt();
                let mut held: Vec<(usize, usize)> = Vec::new();
                let mut round = 0;
                while round < ROUNDS || !stop.load(Ordering::Acquire) {
                    round += 1;
                    let size = [8, 16, 100, 2000, 5000][(round * 7 + n) % 5];
                    let ptr = world.allocator.alloc(size, 8, AllocFlags::NONE).unwrap().raw();
                    // CPUs that are known after the area was handed out, as well as before.
                    for cpu in 0..added.load(Ordering::Acquire) as u32 {
                        for word in words(ptr, cpu, size) {
                            // SAFETY: in the area; nobody else uses it.
                            unsafe {
                                assert_eq!(word.read(), 0, "H3: {ptr:#x} on CPU {cpu}");
                                word.write(!0);
                            }
                        }
                    }
                    held.push((ptr, size));
                    if held.len() == 40 {
                        for (ptr, _) in held.drain(..35) {
                            // SAFETY: not used any more.
                            unsafe { world.allocator.free(PerCpuPtr::from_raw(ptr)) }.unwrap();
                        }
                    }
                    if round % 256 == 0 {
                        world.allocator.balance();
                    }
                }
            });
        }
        // Also when adding panics, or the threads would go on for ever.
        let _stop = Done(&stop);
        for cpu in 1..8 {
            for _ in 0..scaled(300) {
                thread::yield_now();
            }
            world.allocator.add_unit(cpu).unwrap();
            added.store(cpu as usize + 1, Ordering::Release);
        }
    });
}

/// Makes a first chunk by pages for the CPUs 0 to 3 with units for `with_unit`.
fn by_page(with_unit: &[u32], template: &[u8]) -> Result<FirstChunk<Fake>, SetupError> {
    let config = Config { distance: two_groups, atom_size: 64 * K, ..Config::default() };
    let possible = CpuSet::new(0..4).unwrap();
    let info = AllocInfo::build(template.len(), &config.by_page(), &possible).unwrap();
    info.verify(&possible).unwrap();
    let with_unit = CpuSet::new(with_unit.iter().copied()).unwrap();
    // SAFETY: verified above, of possible CPUs and by page; the template is borrowed for longer than
    // the first chunk is used to add units.
    unsafe { FirstChunk::page(&info, template.as_ptr().expose_provenance(), &with_unit) }
}

fn nothing_is_left(fake: &FakeHandle) -> bool {
    let usage = fake.usage();
    usage.meta.is_empty() && usage.reserved.is_empty() && usage.pages.is_empty()
}

#[test]
fn the_page_method_puts_all_units_into_one_range_page_by_page() {
    let fake = fake::install();
    let template: Vec<u8> = (0..5000).map(|i| (i % 251) as u8).collect();
    let first = by_page(&[0, 1, 3], &template).unwrap();
    // Static and dynamic part take nine pages of a unit, near its CPU; one call each.
    let usage = fake.usage();
    assert_eq!(usage.reserved, [(first.base(), 4 * 36 * K)].into());
    assert_eq!(pages_by_cpu(&usage), [(0, 9), (1, 9), (3, 9)]);
    let calls = fake.lock().calls.clone();
    assert_eq!(calls.iter().filter(|&&call| call == Call::Populate).count(), 27);
    for cpu in [0, 1, 3] {
        let unit = template.as_ptr().addr().wrapping_add(first.offset(cpu).unwrap());
        assert_eq!(unit, first.base() + cpu as usize * 36 * K);
        // SAFETY: the unit has memory.
        let copy = unsafe { std::slice::from_raw_parts(with_exposed_provenance::<u8>(unit), 5000) };
        assert_eq!(copy, template);
    }
    drop(first);
    assert!(nothing_is_left(&fake));
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_failure_at_any_step_of_the_page_method_gives_everything_back() {
    let fake = fake::install();
    let template = vec![7; 5000];
    let mut failures = 0;
    loop {
        fake.fail_nth(failures);
        let allocator = Allocator::<Fake>::new();
        let result =
            by_page(&[0, 2], &template).and_then(|first| allocator.init(first).map(|_| ()));
        fake.stop_failing();
        if result.is_ok() {
            break;
        }
        assert_eq!(result, Err(SetupError::NoMemory));
        drop(allocator);
        assert!(nothing_is_left(&fake), "failure {failures}");
        failures += 1;
    }
    // Four tables, a reservation, two units of nine pages; then the allocator's own.
    assert!(failures > 4 + 1 + 18, "{failures}");
}

#[test]
fn the_allocator_works_on_units_made_by_page() {
    let config = Config { method: Method::Page, ..shape().config };
    let mut world = World::new(&Shape { config, static_size: 5000, ..shape() });
    busy(&mut world);
    world.add_unit(5).unwrap();
    world.alloc(5 * PAGE, PAGE, AllocFlags::NONE).unwrap();
    world.check();
    // A unit's failure in the middle of its pages.
    let before = everything(&world);
    world.fake.fail_nth(4);
    assert_eq!(world.add_unit(0), Err(NoMemory));
    world.fake.stop_failing();
    assert_eq!(everything(&world), before);
    world.free_all();
    world.check();
}
