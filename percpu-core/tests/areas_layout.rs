//! The sizes of units, the grouping of CPUs, and the first chunk's memory.

mod common;

use std::ptr::with_exposed_provenance;

use proptest::prelude::*;

use common::fake::{self, Page};
use common::scale::cases;
use common::two_groups;
use percpu_core::area::{
    AllocInfo, Config, CpuSet, FirstChunk, MIN_DYN_SIZE, MIN_UNIT_SIZE, NO_CPU, SetupError,
};

const K: usize = 1 << 10;

fn cpus(cpus: impl IntoIterator<Item = u32>) -> CpuSet {
    CpuSet::new(cpus).unwrap()
}

fn config(reserved: usize, dyn_size: usize, atom: usize) -> Config {
    Config { reserved_size: reserved, dyn_size, atom_size: atom, ..Config::default() }
}

#[test]
fn thirteen_cpus_in_allocations_of_five_waste_two_units() {
    // An allocation of 160 KiB holds five units of 32 KiB.
    let info = AllocInfo::build(K, &config(0, 20 * K, 160 * K), &cpus(0..13)).unwrap();
    assert_eq!((info.unit_size, info.alloc_size, info.units_per_alloc()), (32 * K, 160 * K, 5));
    let groups: Vec<&[u16]> = info.groups().collect();
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0].len(), 15);
    let expected: Vec<u16> = (0..13).chain([NO_CPU; 2]).collect();
    assert_eq!(groups[0], expected);
}

#[test]
fn sizes_follow_the_table() {
    struct Row {
        static_size: usize,
        reserved: usize,
        dyn_size: usize,
        atom: usize,
        cpus: u32,
        expected: (usize, usize, usize, usize, usize),
    }
    let rows = [
        // The dynamic part is raised to its minimum and takes the slack; the unit to its minimum.
        (0, 0, 0, 4 * K, 1, (12 * K, 12 * K, 32 * K, 32 * K, 1)),
        (1, 0, 12 * K, 4 * K, 4, (16 * K - 1, 16 * K, 32 * K, 32 * K, 1)),
        (1000, 24, 12 * K, 4 * K, 4, (15 * K, 16 * K, 32 * K, 32 * K, 1)),
        // A large sum makes a large unit, not rounded up to anything but the page.
        (30 * K, 8 * K, 20 * K, 4 * K, 2, (22 * K, 60 * K, 60 * K, 60 * K, 1)),
        // A large atom is shared: 2 MiB hold 64 units, but 4 CPUs would waste most of them.
        (K, 0, 20 * K, 2048 * K, 4, (23 * K, 24 * K, 512 * K, 2048 * K, 4)),
        (K, 0, 20 * K, 2048 * K, 64, (23 * K, 24 * K, 32 * K, 2048 * K, 64)),
        // 10 CPUs: 16 would waste 6 of 10, 8 wastes 6 as well, 4 wastes 2.
        (K, 0, 20 * K, 2048 * K, 10, (23 * K, 24 * K, 512 * K, 2048 * K, 4)),
        // A unit about as large as the atom: one a CPU.
        (1100 * K, 0, 20 * K, 2048 * K, 8, (20 * K, 1120 * K, 2048 * K, 2048 * K, 1)),
        // The unit must be of whole pages: 36 KiB go three times into 128 KiB, but two it must be.
        (16 * K, 0, 20 * K, 128 * K, 2, (20 * K, 36 * K, 64 * K, 128 * K, 2)),
    ]
    .map(|(static_size, reserved, dyn_size, atom, cpus, expected)| Row {
        static_size,
        reserved,
        dyn_size,
        atom,
        cpus,
        expected,
    });
    for (n, row) in rows.iter().enumerate() {
        let config = config(row.reserved, row.dyn_size, row.atom);
        let info = AllocInfo::build(row.static_size, &config, &cpus(0..row.cpus)).unwrap();
        let seen = (
            info.dyn_size,
            info.size_sum(),
            info.unit_size,
            info.alloc_size,
            info.units_per_alloc(),
        );
        assert_eq!(seen, row.expected, "row {n}");
        info.verify(&cpus(0..row.cpus)).unwrap();
    }
}

#[test]
fn a_cpu_joins_the_first_group_that_is_near_both_ways() {
    let near = |a: u32, b: u32| if a / 2 == b / 2 { 10 } else { 20 };
    // CPU 2 is near to CPU 0, but not the other way round.
    let one_way = |a: u32, b: u32| if (a, b) == (0, 2) || a.max(b) == 3 { 20 } else { 10 };
    // 0 and 2 are not near to each other, 1 is near to both: 2 may not join the group of 0 and 1.
    let chain = |a: u32, b: u32| if a.abs_diff(b) <= 1 { 10 } else { 20 };
    type Case = (fn(u32, u32) -> u32, &'static [&'static [u16]]);
    // All are near to 0 only: the second member keeps others out of its group.
    let star = |a: u32, b: u32| if a == 0 || b == 0 || a == b { 10 } else { 20 };
    let cases: [Case; 4] = [
        (near, &[&[0, 1], &[2, 3]]),
        (one_way, &[&[0, 1], &[2], &[3]]),
        (chain, &[&[0, 1], &[2, 3]]),
        (star, &[&[0, 1], &[2], &[3]]),
    ];
    for (distance, expected) in cases {
        let config = Config { distance, ..Config::default() };
        let info = AllocInfo::build(0, &config, &cpus(0..4)).unwrap();
        assert_eq!(info.groups().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn each_group_has_its_own_unused_units() {
    let config = Config { distance: two_groups, ..config(0, 20 * K, 128 * K) };
    // Five even and two odd CPUs; four units an allocation would waste 3 + 2 of 7.
    let info = AllocInfo::build(K, &config, &cpus([0, 1, 2, 4, 6, 7, 8])).unwrap();
    assert_eq!(info.units_per_alloc(), 2);
    let groups: Vec<&[u16]> = info.groups().collect();
    assert_eq!(groups, [&[0, 2, 4, 6, 8, NO_CPU][..], &[1, 7][..]]);
}

#[test]
fn set_up_refuses_what_breaks_a_rule_and_names_it() {
    let build = |config: &Config, set: &CpuSet| AllocInfo::build(K, config, set).map(|_| ());
    let small = config(0, 20 * K, 4 * K);
    assert_eq!(build(&small, &cpus([])), Err(SetupError::NoCpu));
    for atom in [0, 1, 4095, 6 * K] {
        assert_eq!(build(&config(0, 0, atom), &cpus(0..2)), Err(SetupError::AtomSize(atom)));
    }
    for huge in [usize::MAX, usize::MAX / 2, 2 << 30] {
        assert_eq!(build(&config(huge, huge, 4 * K), &cpus(0..2)), Err(SetupError::TooLarge));
    }
    assert_eq!(CpuSet::new([0, 1024]).unwrap_err(), SetupError::CpuOutOfRange(1024));

    let set = cpus([0, 1, 5]);
    let good = AllocInfo::build(K, &small, &set).unwrap();
    good.verify(&set).unwrap();
    let with = |change: fn(&mut AllocInfo)| {
        let mut info = good.clone();
        change(&mut info);
        info.verify(&set).unwrap_err()
    };
    assert_eq!(with(|i| i.atom_size = 12 * K), SetupError::AtomSize(12 * K));
    assert_eq!(with(|i| i.unit_size += 8), SetupError::UnitUnaligned(32 * K + 8));
    assert_eq!(with(|i| i.unit_size = 28 * K), SetupError::UnitTooSmall(28 * K));
    assert_eq!(
        with(|i| i.static_size = 64 * K),
        SetupError::UnitBelowSum { unit_size: 32 * K, size_sum: 88 * K }
    );
    assert_eq!(with(|i| i.dyn_size = 8 * K), SetupError::DynamicTooSmall(8 * K));
    assert_eq!(with(|i| i.reserved_size = 6), SetupError::ReservedUnaligned(6));
    assert_eq!(with(|i| i.cpu_map[2] = NO_CPU), SetupError::CpuWithoutUnit(5));
    assert_eq!(with(|i| i.cpu_map[2] = 1), SetupError::CpuWithTwoUnits(1));
    assert_eq!(with(|i| i.cpu_map[2] = 3), SetupError::UnitOfImpossibleCpu(3));
    assert_eq!(with(|i| i.unit_size = 2 << 30), SetupError::TooLarge);
    let text = with(|i| i.reserved_size = 6).to_string();
    assert_eq!(text, "the reserved size must be a multiple of 4, not 6");
}

/// The rules once more, said as a choice among all candidates instead of a search.
fn second_opinion(
    static_size: usize,
    config: &Config,
    possible: &[u32],
) -> (usize, usize, Vec<Vec<u16>>) {
    let sum = static_size + config.reserved_size + config.dyn_size.max(MIN_DYN_SIZE);
    let sum = sum.div_ceil(4096) * 4096;
    let min_unit = sum.max(MIN_UNIT_SIZE);
    let alloc = min_unit.div_ceil(config.atom_size) * config.atom_size;
    let mut groups: Vec<Vec<u32>> = Vec::new();
    for &cpu in possible {
        let near = |&other: &u32| {
            (config.distance)(cpu, other) <= 10 && (config.distance)(other, cpu) <= 10
        };
        match groups.iter_mut().find(|group| group.iter().all(near)) {
            Some(group) => group.push(cpu),
            None => groups.push(vec![cpu]),
        }
    }
    let allocs = |upa: usize| groups.iter().map(|g| g.len().div_ceil(upa)).sum::<usize>();
    let candidates: Vec<usize> = (1..=alloc / min_unit)
        .filter(|&upa| alloc.is_multiple_of(upa) && (alloc / upa).is_multiple_of(4096))
        .filter(|&upa| allocs(upa) * upa - possible.len() <= possible.len() / 3)
        .collect();
    let fewest = candidates.iter().map(|&upa| allocs(upa)).min().unwrap();
    let upa = *candidates.iter().find(|&&upa| allocs(upa) == fewest).unwrap();
    let map = groups
        .into_iter()
        .map(|group| {
            let units = group.len().div_ceil(upa) * upa;
            let cpus = group.into_iter().map(|cpu| cpu as u16);
            cpus.chain(std::iter::repeat(NO_CPU)).take(units).collect()
        })
        .collect();
    (sum - static_size - config.reserved_size, alloc / upa, map)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(256), failure_persistence: None, ..Default::default() })]

    #[test]
    fn layouts_agree_with_a_second_implementation(
        static_size in 0usize..100_000, reserved in 0usize..5000, dyn_size in 0usize..60_000,
        atom in prop::sample::select(vec![4 * K, 16 * K, 64 * K, 96 * K, 160 * K, 480 * K, 2048 * K]),
        set in prop::collection::btree_set(0u32..70, 1..40),
        nodes in prop::sample::select(vec![1u32, 2, 3, 5]),
    ) {
        let distance: fn(u32, u32) -> u32 = match nodes {
            1 => |_, _| 10,
            2 => |a, b| if a % 2 == b % 2 { 10 } else { 21 },
            3 => |a, b| if a / 24 == b / 24 { 10 } else { 16 },
            _ => |a, b| if a.abs_diff(b) < 5 { 10 } else { 40 },
        };
        let config = Config { distance, ..config(reserved * 4, dyn_size, atom) };
        let possible: Vec<u32> = set.into_iter().collect();
        let info = AllocInfo::build(static_size, &config, &cpus(possible.iter().copied())).unwrap();
        let (dyn_size, unit_size, map) = second_opinion(static_size, &config, &possible);
        prop_assert_eq!(info.dyn_size, dyn_size);
        prop_assert_eq!(info.unit_size, unit_size);
        prop_assert_eq!(info.groups().map(<[u16]>::to_vec).collect::<Vec<_>>(), map);
        if atom.is_power_of_two() {
            prop_assert_eq!(info.verify(&cpus(possible)), Ok(()));
        }
    }
}

fn embed(
    info: &AllocInfo,
    template: &[u8],
    span_limit: usize,
) -> Result<FirstChunk<fake::Fake>, SetupError> {
    let all = cpus(info.groups().flatten().filter(|&&c| c != NO_CPU).map(|&c| u32::from(c)));
    let start = template.as_ptr().expose_provenance();
    // SAFETY: `build` makes what `verify` accepts, for the CPUs that it names. The template is borrowed
    // for longer than the first chunk is used to add units.
    unsafe { FirstChunk::embed(info, start, span_limit, &all) }
}

#[test]
fn each_possible_cpu_gets_the_template_and_nobody_else_memory() {
    let fake = fake::install();
    fake.lock().gap = 256 * K;
    let template: Vec<u8> = (0..5000).map(|i| (i % 251) as u8).collect();
    let set = cpus([0, 1, 2, 4, 6, 7, 8]);
    let config = Config { distance: two_groups, ..config(100, 20 * K, 128 * K) };
    let info = AllocInfo::build(template.len(), &config, &set).unwrap();
    let first = embed(&info, &template, usize::MAX).unwrap();

    // Units 0..6 are those of the even group, 6..8 of the odd one; unit 5 has no CPU (A9: also a
    // trailing unused unit leaves the last CPU's known).
    let units = [(0, 0), (1, 6), (2, 1), (4, 2), (6, 3), (7, 7), (8, 4)];
    let usage = fake.usage();
    let (even, odd) = {
        let mut starts = usage.reserved.iter();
        (starts.next().unwrap(), starts.next().unwrap())
    };
    assert_eq!((*even.1, *odd.1), (6 * 64 * K, 2 * 64 * K));
    assert_eq!(first.base(), *even.0);
    let template_start = template.as_ptr().addr();
    let mut pages = Vec::new();
    for (cpu, unit) in units {
        assert_eq!(first.unit(cpu), Some(unit));
        let base = if unit < 6 { even.0 + unit * 64 * K } else { odd.0 + (unit - 6) * 64 * K };
        assert_eq!(template_start.wrapping_add(first.offset(cpu).unwrap()), base);
        // SAFETY: the unit has memory.
        let copy = unsafe { std::slice::from_raw_parts(with_exposed_provenance::<u8>(base), 5000) };
        assert_eq!(copy, template);
        pages.extend(
            (0..info.size_sum() / 4096).map(|page| (base + page * 4096, Page::Populated { cpu })),
        );
        assert_eq!(first.static_variable_at(base), Some((cpu, 0)));
        assert_eq!(first.static_variable_at(base + 4999), Some((cpu, 4999)));
        assert_eq!(first.static_variable_at(base + 5000), None);
        assert_eq!(first.static_variable_at(base - 1), None);
    }
    for cpu in [3, 5, 9, 1000] {
        assert_eq!((first.unit(cpu), first.offset(cpu)), (None, None));
    }
    pages.sort_by_key(|&(addr, _)| addr);
    assert_eq!(usage.pages.into_iter().collect::<Vec<_>>(), pages);

    drop(first);
    let usage = fake.usage();
    assert!(usage.meta.is_empty() && usage.reserved.is_empty() && usage.pages.is_empty());
}

#[test]
fn groups_too_far_apart_are_given_back() {
    let fake = fake::install();
    fake.lock().gap = 512 * K;
    let config = Config { distance: two_groups, mapping_space: 1024 * K, ..Config::default() };
    let info = AllocInfo::build(K, &config, &cpus(0..4)).unwrap();
    let span = 2 * 32 * K + 512 * K + 2 * 32 * K;
    let template = vec![7; K];
    assert_eq!(config.span_limit(), 768 * K);
    drop(embed(&info, &template, span).unwrap());
    let error = embed(&info, &template, span - 1).map(|_| ()).unwrap_err();
    assert_eq!(error, SetupError::SpanTooWide { span, limit: span - 1 });
    let usage = fake.usage();
    assert!(usage.meta.is_empty() && usage.reserved.is_empty() && usage.pages.is_empty());
}

#[test]
fn a_failure_at_any_step_gives_everything_back() {
    let fake = fake::install();
    let template = vec![7; K];
    let config = Config { distance: two_groups, reserved_size: 64, ..Config::default() };
    let info = AllocInfo::build(K, &config, &cpus(0..4)).unwrap();
    let mut failures = 0;
    loop {
        fake.fail_nth(failures);
        let allocator = percpu_core::alloc::Allocator::<fake::Fake>::new();
        let result =
            embed(&info, &template, usize::MAX).and_then(|first| allocator.init(first).map(|_| ()));
        fake.stop_failing();
        match result {
            Ok(()) => {
                let again = embed(&info, &template, usize::MAX).unwrap();
                let again = allocator.init(again).map(|_| ());
                assert_eq!(again, Err(SetupError::AlreadySetUp));
                break;
            }
            Err(error) => assert_eq!(error, SetupError::NoMemory),
        }
        let usage = fake.usage();
        assert!(usage.meta.is_empty() && usage.reserved.is_empty() && usage.pages.is_empty());
        failures += 1;
    }
    // Four tables, two reservations, four units, the table of caches and four caches, the lists'
    // heads and two chunks.
    assert_eq!(failures, 18);
}
