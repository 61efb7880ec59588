//! The hierarchical counter: the error its maker chose, at every level, and exact sums.

#[path = "common/scale.rs"]
mod scale;

use std::sync::{Mutex, MutexGuard, PoisonError};

use percpu_core::area::Config;
use percpu_core::counter::{Count, HierarchicalCounter, HierarchicalError};
use percpu_core::cpu::CpuId;
use percpu_core::{host, hotplug};
use proptest::prelude::*;
use scale::{cases, scaled};

/// Three levels above the leaves: 80, 10, 2, 1.
const CPUS: usize = 80;
/// CPUs that are up; the others have no unit.
const UP: usize = 20;

fn system() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let config = Config { units_on_demand: true, ..Config::default() };
    host::boot_with(CPUS, UP, &config).unwrap();
    guard
}

fn on<R: Send>(n: usize, f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let run = || {
            let _cpu = host::enter_when_free(CpuId::new(n).unwrap()).unwrap();
            f()
        };
        scope.spawn(run).join().unwrap()
    })
}

/// The least error for this shape: a leaf keeps one, a node above two, a node above that four.
const SMALLEST: u64 = 80 + 10 * 2 + 2 * 4;

#[test]
fn an_impossible_error_is_refused_with_the_smallest_possible_one() {
    let _system = system();
    for wanted in [0, 1, SMALLEST - 1] {
        let error = HierarchicalCounter::new(0, wanted).unwrap_err();
        assert_eq!(error, HierarchicalError::MaxError { wanted, smallest: SMALLEST });
        assert!(error.to_string().ends_with("the smallest error is 108"), "{error}");
    }
    assert_eq!(HierarchicalCounter::new(0, SMALLEST).unwrap().error_bound(), SMALLEST);
}

#[test]
fn as_much_of_the_error_is_used_as_batches_of_a_power_of_two_can() {
    let _system = system();
    let step = 3000 / scaled(3000);
    for max in (SMALLEST..3000).step_by(step).chain([1 << 20, 1 << 40, u64::MAX]) {
        let bound = HierarchicalCounter::new(0, max).unwrap().error_bound();
        assert!(bound <= max);
        let enough = if max < 1 << 40 { max / 3 } else { 1 << 38 };
        assert!(bound >= enough, "{bound} of {max}");
    }
}

#[test]
fn a_new_counter_stands_at_its_amount_at_every_level() {
    let _system = system();
    for amount in [0, 1, -1, i64::MAX, i64::MIN] {
        let counter = HierarchicalCounter::new(amount, 1000).unwrap();
        assert_eq!((counter.read(), counter.sum()), (amount, amount));
        for within in [0, 1, 100, 1000, u64::MAX] {
            assert_eq!(counter.read_within(within), amount);
        }
    }
}

/// Leaves and inner nodes keep what takes them furthest from what the root knows.
#[test]
fn the_bound_is_reached_and_not_passed() {
    let _system = system();
    let counter = HierarchicalCounter::new(0, 1 << 12).unwrap();
    // 80 leaves of 16: 640; 10 nodes of 8 x 16: 640; 2 nodes of 8 x 128: 1024.
    assert_eq!(counter.error_bound(), 640 + 640 + 1024);
    // Each CPU just below half of its batch.
    host::on_each_cpu(|_| counter.add(7));
    assert_eq!((counter.sum(), counter.read()), (7 * UP as i64, 0));
    // And at half of it: that goes up, and is more than there was.
    host::on_each_cpu(|_| counter.inc());
    assert_eq!(counter.read_within(639), counter.sum(), "an error below 640 is an exact sum");
    assert_eq!(counter.read_within(640), 16 * UP as i64, "that of the first level");
    assert_eq!(counter.sum(), 8 * UP as i64);
    // 8 CPUs pass 8 on to their node, which keeps less than 4, so all 8 go on.
    assert_eq!(counter.read_within(1280), 128 * 3, "16 CPUs pass on 8, and 4 the half of that");
    assert_eq!(counter.read(), 0);
}

#[test]
fn carries_of_cpus_that_move_between_groups_add_up() {
    let _system = system();
    let counter = HierarchicalCounter::new(500, 1 << 10).unwrap();
    for round in 0..50 {
        for n in 0..UP {
            let amount = (round * 37 + n as i64 * 1001) % 777 - 300;
            on(n, || counter.add(amount));
            let exact = counter.sum();
            assert!(counter.read().abs_diff(exact) <= counter.error_bound());
        }
    }
}

#[test]
fn cpus_that_go_and_come_for_the_first_time_are_counted() {
    let _system = system();
    let counter = HierarchicalCounter::new(0, 2000).unwrap();
    host::on_each_cpu(|_| counter.add(9));
    let (gone, late) = (CpuId::new(5).unwrap(), CpuId::new(77).unwrap());
    hotplug::cpu_down(gone).unwrap();
    assert_eq!(counter.sum(), 9 * UP as i64);
    hotplug::cpu_up(late).unwrap();
    on(77, || (0..5000).for_each(|_| counter.inc()));
    assert_eq!(counter.sum(), 9 * UP as i64 + 5000);
    assert!(counter.read().abs_diff(counter.sum()) <= counter.error_bound());
    assert!(counter.read_within(800).abs_diff(counter.sum()) <= 800);
    hotplug::cpu_down(late).unwrap();
    hotplug::cpu_up(gone).unwrap();
    assert_eq!(counter.sum(), 9 * UP as i64 + 5000);
}

#[test]
fn a_comparison_is_exact_near_and_far() {
    let _system = system();
    let counter = HierarchicalCounter::new(0, 500).unwrap();
    host::on_each_cpu(|_| counter.add(1));
    let sum = UP as i64;
    for rhs in [sum - 1, sum, sum + 1, sum + 10_000, i64::MIN, i64::MAX] {
        assert_eq!(counter.compare(rhs), sum.cmp(&rhs));
    }
}

/// An add of a CPU, small or as large as can be.
fn adds() -> impl Strategy<Value = Vec<(usize, i64)>> {
    let amount = prop_oneof![
        4 => -20_i64..20,
        3 => -3000_i64..3000,
        1 => any::<i64>(),
        1 => prop_oneof![Just(i64::MAX), Just(i64::MIN), Just(i64::MAX - 1)],
    ];
    proptest::collection::vec((0..UP, amount), 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(60)))]

    #[test]
    fn no_level_is_further_off_than_it_says(
        initial in any::<i64>(), max_error in SMALLEST..100_000, adds in adds(),
    ) {
        let _system = system();
        let counter = HierarchicalCounter::new(initial, max_error).unwrap();
        prop_assert!(counter.error_bound() <= max_error);
        let mut model = i128::from(initial);
        // The adds of each CPU in their order, all CPUs at once.
        host::on_each_cpu(|cpu| {
            for (_, amount) in adds.iter().filter(|add| add.0 == cpu.index()) {
                counter.add(*amount);
            }
        });
        for (_, amount) in &adds {
            model += i128::from(*amount);
        }
        let exact = model as i64;
        prop_assert_eq!(counter.sum(), exact);
        // The error is one of numbers that wrap.
        let off = |read: i64| read.wrapping_sub(exact).unsigned_abs();
        prop_assert!(off(counter.read()) <= counter.error_bound());
        for within in [0, 79, 80, 200, 640, 1000, 5000, max_error] {
            prop_assert!(off(counter.read_within(within)) <= within);
        }
    }
}
