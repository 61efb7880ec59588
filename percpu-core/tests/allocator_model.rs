//! The allocator against a model that knows only intervals, under random operations.
//!
//! The model (`common`) checks that areas are disjoint, zero when handed out and untouched while
//! live; the checker evaluates the invariants from the views after each operation.

mod common;

use proptest::prelude::*;

use common::scale::{INTERPRETED, cases, scaled};
use common::{Shape, World, checker, no_room, two_groups};
use percpu_core::alloc::AllocFlags;
use percpu_core::area::Config;

#[derive(Clone, Debug)]
enum Op {
    Alloc {
        size: usize,
        align: usize,
        flags: AllocFlags,
    },
    Free(prop::sample::Index),
    /// Frees all areas but every `n`th: holes everywhere.
    Thin(usize),
    /// A free that is to be refused, this many bytes behind the start of an area.
    FreeInside(prop::sample::Index, usize),
    Balance,
    /// Makes the `n`th fallible call of the next allocation fail.
    Fail(usize),
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 1usize..=64,
        3 => 65usize..=1024,
        2 => 1025usize..=5000,
        1 => 5001usize..=32768,
        1 => prop::sample::select(vec![4, 8, 4092, 4096, 4100, 8192, 32764, 32768]),
    ]
}

fn flags() -> impl Strategy<Value = AllocFlags> {
    prop_oneof![
        6 => Just(AllocFlags::NONE),
        3 => Just(AllocFlags::ATOMIC),
        1 => Just(AllocFlags::RESERVED),
    ]
}

fn ops() -> impl Strategy<Value = Op> {
    let aligns = prop_oneof![4 => Just(0), 2 => 1u32..=6, 1 => 7u32..=12];
    prop_oneof![
        10 => (sizes(), aligns, flags()).prop_map(|(size, shift, flags)| Op::Alloc { size, align: 1 << shift, flags }),
        8 => any::<prop::sample::Index>().prop_map(Op::Free),
        1 => (2usize..6).prop_map(Op::Thin),
        1 => (any::<prop::sample::Index>(), 1usize..64).prop_map(|(i, at)| Op::FreeInside(i, at)),
        1 => Just(Op::Balance),
        1 => (0usize..12).prop_map(Op::Fail),
    ]
}

fn shapes() -> impl Strategy<Value = Shape> {
    let all = |values: &[usize]| if INTERPRETED { values[..1].to_vec() } else { values.to_vec() };
    let cpus = prop::sample::select(vec![vec![0, 3], vec![0], vec![0, 1, 2], vec![1, 4, 6, 7]]);
    let static_size = prop::sample::select(all(&[100, 0, 4096, 9001]));
    let reserved = prop::sample::select(all(&[1024, 0, 8192]));
    let atom = prop::sample::select(all(&[4096, 131_072]));
    (cpus, static_size, reserved, atom, any::<bool>()).prop_map(
        |(cpus, static_size, reserved_size, atom_size, groups)| {
            let mut config = Config { reserved_size, atom_size, ..Config::default() };
            if groups {
                config.distance = two_groups;
            }
            Shape { cpus, static_size, config }
        },
    )
}

fn apply(world: &mut World, op: Op) {
    let pick = |world: &World, index: prop::sample::Index| {
        let live: Vec<usize> = world.live.keys().copied().collect();
        (!live.is_empty()).then(|| *index.get(&live))
    };
    match op {
        Op::Alloc { size, align, flags } => {
            let before = world.allocator.statistics();
            match world.alloc(size, align, flags) {
                Ok(_) => assert_eq!(world.allocator.statistics().live, before.live + 1),
                Err(error) => assert_eq!(error, no_room(flags)),
            }
            world.fake.stop_failing();
        }
        Op::Free(index) => {
            if let Some(ptr) = pick(world, index) {
                world.free(ptr);
            }
        }
        Op::Thin(n) => {
            let live: Vec<usize> = world.live.keys().copied().collect();
            live.into_iter()
                .enumerate()
                .filter(|(i, _)| i % n != 0)
                .for_each(|(_, ptr)| world.free(ptr));
        }
        Op::FreeInside(index, at) => {
            if let Some(ptr) = pick(world, index)
                && at < world.live[&ptr].size
            {
                world.free_raw(ptr + at).unwrap_err();
            }
        }
        Op::Balance => {
            world.allocator.balance();
            checker::check_balanced(world);
        }
        Op::Fail(n) => world.fake.fail_nth(n),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(48), failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn every_invariant_holds_after_each_operation(
        shape in shapes(),
        ops in prop::collection::vec(ops(), 1..scaled(60)),
    ) {
        let mut world = World::new(&shape);
        world.check();
        for op in ops {
            apply(&mut world, op);
            world.check();
        }
        let fake = world.fake.clone();
        drop(world);
        let usage = fake.usage();
        prop_assert!(usage.meta.is_empty() && usage.reserved.is_empty() && usage.pages.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(24), failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn long_runs_end_with_every_invariant_and_no_area_lost(
        shape in shapes(),
        ops in prop::collection::vec(ops(), scaled(200)..scaled(600)),
    ) {
        let mut world = World::new(&shape);
        for op in ops {
            apply(&mut world, op);
        }
        world.check();
        world.free_all();
        world.allocator.balance();
        world.check();
        checker::check_balanced(&world);
        // All of the first chunk's dynamic part is one run again.
        let picture = checker::picture(world.allocator.view_address());
        for chunk in picture.chunks.values() {
            assert_eq!(chunk.view.md.contig_hint * 4, chunk.view.free_bytes);
        }
    }
}
