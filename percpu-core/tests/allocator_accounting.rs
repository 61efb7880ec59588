//! Accounting: every accounted area is charged once and uncharged once, whatever way it goes.

mod common;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use common::fake::{self, Call};
use common::scale::{cases, scaled};
use common::{Shape, World, checker};
use percpu_core::alloc::{Accounting, AllocError, AllocFlags, Group, MAX_ALLOC_SIZE};
use percpu_core::area::Config;
use proptest::prelude::*;

const CPUS: usize = 3;

/// A ledger of charges with a limit for each group.
struct Book(Mutex<State>);

#[derive(Default)]
struct State {
    charged: BTreeMap<u32, usize>,
    limit: usize,
    calls: usize,
}

impl Book {
    /// A book for one test, which lives as long as the program.
    fn open(limit: usize) -> &'static Self {
        Box::leak(Box::new(Self(Mutex::new(State { limit, ..State::default() }))))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn charged(&self, group: Group) -> usize {
        self.lock().charged.get(&group.number()).copied().unwrap_or(0)
    }

    fn total(&self) -> usize {
        self.lock().charged.values().sum()
    }
}

impl Accounting for Book {
    fn charge(&self, group: Group, bytes: usize) -> bool {
        fake::assert_may_sleep("charge");
        let mut state = self.lock();
        state.calls += 1;
        let limit = state.limit;
        let charged = state.charged.entry(group.number()).or_default();
        let fits = *charged + bytes <= limit;
        *charged += if fits { bytes } else { 0 };
        fits
    }

    fn uncharge(&self, group: Group, bytes: usize) {
        fake::assert_may_sleep("uncharge");
        let mut state = self.lock();
        state.calls += 1;
        let charged = state.charged.get_mut(&group.number()).expect("a group that was charged");
        *charged = charged.checked_sub(bytes).expect("not more than was charged");
    }
}

fn group(n: u32) -> Group {
    Group::new(n).unwrap()
}

fn accounted_world(limit: usize) -> (World, &'static Book) {
    let config = Config { reserved_size: 1024, ..Config::default() };
    let world = World::new(&Shape { config, ..Shape::default() });
    let book = Book::open(limit);
    assert!(world.allocator.set_accounting(book));
    (world, book)
}

fn alloc(world: &World, size: usize, flags: AllocFlags, of: Group) -> Result<usize, AllocError> {
    world.allocator.alloc_accounted(size, 4, flags, of).map(|ptr| ptr.raw())
}

#[test]
fn an_area_is_charged_for_every_possible_cpu_until_it_is_freed() {
    let (mut world, book) = accounted_world(usize::MAX);
    let (one, two) = (group(1), group(u32::MAX));
    // Small enough for a cache, too large for one, and of the reserved part.
    let small = alloc(&world, 10, AllocFlags::NONE, one).unwrap();
    assert_eq!(book.charged(one), 12 * CPUS, "rounded up to granules");
    let large = alloc(&world, MAX_ALLOC_SIZE, AllocFlags::NONE, two).unwrap();
    assert_eq!(book.charged(two), MAX_ALLOC_SIZE * CPUS);
    let reserved = alloc(&world, 64, AllocFlags::RESERVED, one).unwrap();
    assert_eq!(book.charged(one), (12 + 64) * CPUS);
    // Areas of nobody's are not charged, though they lie in the same chunk.
    let other = world.alloc(10, 4, AllocFlags::NONE).unwrap();
    assert_eq!(book.lock().calls, 3);
    world.free(other);
    assert_eq!(book.lock().calls, 3);

    for (ptr, rest) in [(large, 12 + 64), (small, 64), (reserved, 0)] {
        // A free that is refused takes nothing back, nor does a second one.
        world.free_raw(ptr + 4).unwrap_err();
        world.free_raw(ptr).unwrap();
        world.free_raw(ptr).unwrap_err();
        assert_eq!(book.total(), rest * CPUS);
    }
    // Their places' next lives are nobody's.
    let calls = book.lock().calls;
    let again: Vec<_> = (0..8).map(|_| world.alloc(10, 4, AllocFlags::NONE).unwrap()).collect();
    assert!(again.contains(&small));
    world.free_all();
    assert_eq!(book.lock().calls, calls);
    world.check();
}

#[test]
fn cpus_without_a_unit_are_paid_for_too() {
    let config = Config { units_on_demand: true, boot_cpu: Some(1), ..Config::default() };
    let mut world = World::new(&Shape { config, ..Shape::default() });
    let book = Book::open(usize::MAX);
    assert!(world.allocator.set_accounting(book));
    let ptr = alloc(&world, 40, AllocFlags::NONE, group(1)).unwrap();
    assert_eq!(book.total(), 40 * CPUS);
    world.add_unit(2).unwrap();
    assert_eq!(book.lock().calls, 1);
    world.free_raw(ptr).unwrap();
    assert_eq!(book.total(), 0);
}

#[test]
fn a_refused_charge_changes_nothing() {
    let (world, book) = accounted_world(100 * CPUS);
    let kept = alloc(&world, 60, AllocFlags::NONE, group(7)).unwrap();
    let before = (
        checker::picture(world.allocator.view_address()),
        world.fake.usage(),
        world.allocator.statistics(),
        world.fake.lock().log.len(),
    );
    for flags in [AllocFlags::NONE, AllocFlags::ATOMIC, AllocFlags::RESERVED] {
        assert_eq!(alloc(&world, 44, flags, group(7)), Err(AllocError::OverLimit));
    }
    let after = (
        checker::picture(world.allocator.view_address()),
        world.fake.usage(),
        world.allocator.statistics(),
        world.fake.lock().log.len(),
    );
    assert_eq!(before, after);
    assert_eq!(book.charged(group(7)), 60 * CPUS);
    // Another group has its own limit, and this one has room again after a free.
    alloc(&world, 44, AllocFlags::NONE, group(8)).unwrap();
    world.free_raw(kept).unwrap();
    alloc(&world, 100, AllocFlags::NONE, group(7)).unwrap();
}

#[test]
fn allocations_that_fail_are_not_charged() {
    let (mut world, book) = accounted_world(usize::MAX);
    let of = group(3);
    for (size, align) in [(0, 4), (MAX_ALLOC_SIZE + 1, 4), (usize::MAX, 4), (8, 3), (8, 8192)] {
        let result = world.allocator.alloc_accounted(size, align, AllocFlags::NONE, of);
        assert!(matches!(result, Err(AllocError::Size(_) | AllocError::Align(_))), "{result:?}");
        assert_eq!(book.total(), 0);
    }
    let none = alloc(&world, 4096, AllocFlags::RESERVED, of);
    assert_eq!((none, book.total()), (Err(AllocError::NoReservedRoom), 0));
    world.fill_up();
    let none = alloc(&world, 4096, AllocFlags::ATOMIC, of);
    assert_eq!((none, book.total()), (Err(AllocError::NoPopulatedRoom), 0));
    // Whichever call for memory fails, that of the table of groups included.
    let mut failures = 0;
    loop {
        let live = world.allocator.statistics().live;
        let calls = world.fake.lock().calls.len();
        world.fake.fail_nth(failures);
        let result = alloc(&world, 4096, AllocFlags::NONE, of);
        world.fake.stop_failing();
        let Err(error) = result else {
            // The last one is for the next chunk's table, without which this one is well served.
            assert_eq!(world.fake.lock().calls.last(), Some(&Call::Meta));
            break;
        };
        world.check();
        assert_eq!((error, book.total()), (AllocError::NoMemory, 0));
        assert_eq!(world.allocator.statistics().live, live);
        assert!(world.fake.lock().calls.len() > calls);
        failures += 1;
    }
    assert!(failures >= 5);
    assert_eq!(book.total(), 4096 * CPUS);
}

#[test]
fn atomic_allocations_take_the_table_that_lies_ready() {
    let (mut world, book) = accounted_world(usize::MAX);
    let of = group(5);
    let calls = world.fake.lock().calls.len();
    let first = alloc(&world, 64, AllocFlags::ATOMIC, of).unwrap();
    // The table is there now; the reserved chunk wants one of its own.
    let second = alloc(&world, 64, AllocFlags::ATOMIC, of).unwrap();
    let flags = AllocFlags::ATOMIC | AllocFlags::RESERVED;
    let live = world.allocator.statistics().live;
    assert_eq!(alloc(&world, 64, flags, of), Err(AllocError::NoMemory));
    assert_eq!(book.total(), 2 * 64 * CPUS);
    assert_eq!(world.allocator.statistics().live, live);
    assert_eq!(world.fake.lock().calls.len(), calls, "an atomic allocation asked for memory");
    // The balance work has been asked for another.
    assert!(world.allocator.balance_wanted());
    world.allocator.balance();
    let third = alloc(&world, 64, flags, of).unwrap();
    assert_eq!(book.total(), 3 * 64 * CPUS);
    for ptr in [first, second, third] {
        world.free_raw(ptr).unwrap();
    }
    assert_eq!(book.total(), 0);
    world.free_all();
    world.check();
}

#[test]
fn without_accounting_nobody_is_charged() {
    let world = World::new(&Shape::default());
    let early = alloc(&world, 64, AllocFlags::NONE, group(1)).unwrap();
    let book = Book::open(usize::MAX);
    assert!(world.allocator.set_accounting(book));
    assert!(!world.allocator.set_accounting(Book::open(0)), "the first one stays");
    world.free_raw(early).unwrap();
    assert_eq!(book.lock().calls, 0);
    let ptr = alloc(&world, 64, AllocFlags::NONE, group(1)).unwrap();
    assert_eq!(book.total(), 64 * CPUS);
    world.free_raw(ptr).unwrap();
    assert_eq!(book.total(), 0);
    assert_eq!(Group::new(0), None);
    assert_eq!(group(9).to_string(), "9");
}

#[test]
fn tables_go_with_their_chunks() {
    let (mut world, book) = accounted_world(usize::MAX);
    let usage = |world: &World| -> usize {
        world.fake.usage().meta.values().map(|layout| layout.size()).sum()
    };
    let statistics = |world: &World| world.allocator.statistics().metadata_bytes as usize;
    let other = usage(&world) - statistics(&world);
    let areas: Vec<_> = (0..8)
        .map(|_| alloc(&world, MAX_ALLOC_SIZE, AllocFlags::NONE, group(1)).unwrap())
        .collect();
    assert!(world.allocator.statistics().chunks >= 8);
    assert_eq!(usage(&world) - statistics(&world), other, "every table is counted");
    areas.into_iter().for_each(|ptr| world.free_raw(ptr).unwrap());
    let before = usage(&world);
    world.allocator.balance();
    let unit = checker::picture(world.allocator.view_address()).view.unit_size as usize;
    assert!(before - usage(&world) > 6 * unit, "the tables went");
    assert_eq!(usage(&world) - statistics(&world), other);
    assert_eq!(book.total(), 0);
    world.free_all();
    let fake = world.fake.clone();
    drop(world);
    assert!(fake.usage().meta.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(48), failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn the_accounts_are_exact_at_any_time(
        ops in prop::collection::vec(
            (0u32..4, 1usize..3000, any::<prop::sample::Index>(), 0u8..12),
            1..scaled(200),
        ),
    ) {
        let limit = 20_000 * CPUS;
        let (mut world, book) = accounted_world(limit);
        let mut accounted: Vec<(usize, usize, u32)> = Vec::new();
        let mut model: BTreeMap<u32, usize> = BTreeMap::new();
        for (of, size, index, what) in ops {
            let flags = if what % 2 == 0 { AllocFlags::NONE } else { AllocFlags::ATOMIC };
            let full = size.next_multiple_of(4) * CPUS;
            match what {
                0..5 if of != 0 => match alloc(&world, size, flags, group(of)) {
                    Ok(ptr) => {
                        accounted.push((ptr, full, of));
                        *model.entry(of).or_default() += full;
                    }
                    Err(AllocError::OverLimit) => {
                        prop_assert!(model.get(&of).copied().unwrap_or(0) + full > limit);
                    }
                    Err(error) => prop_assert!(
                        flags == AllocFlags::ATOMIC, "{error}"
                    ),
                },
                0..7 => _ = world.alloc(size, 4, flags),
                7 => _ = world.allocator.balance(),
                8 => {
                    let live: Vec<usize> = world.live.keys().copied().collect();
                    if !live.is_empty() {
                        world.free(*index.get(&live));
                    }
                }
                _ if accounted.is_empty() => {}
                _ => {
                    let (ptr, full, of) = accounted.swap_remove(index.index(accounted.len()));
                    world.free_raw(ptr).unwrap();
                    *model.get_mut(&of).unwrap() -= full;
                }
            }
            for of in 1..4 {
                prop_assert_eq!(book.charged(group(of)), model.get(&of).copied().unwrap_or(0));
            }
        }
        for (ptr, ..) in accounted {
            world.free_raw(ptr).unwrap();
        }
        prop_assert_eq!(book.total(), 0);
        world.free_all();
        world.check();
    }
}
