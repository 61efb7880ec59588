//! Counters at the ends of their numbers: everything is as in numbers of 128 bits, of which a counter
//! keeps the lower 64.

use std::cmp::Ordering;
use std::panic::{AssertUnwindSafe, catch_unwind};

use percpu_core::alloc::AllocError;
use percpu_core::counter::{
    Count, HierarchicalCounter, HierarchicalError, LazyCounter, PercpuCounter, PercpuCounters, v26,
};
use percpu_core::cpu::CpuId;
use percpu_core::host;
use proptest::prelude::*;

const CPUS: usize = 4;

const ENDS: [i64; 19] = [
    0,
    1,
    -1,
    2,
    i64::MAX,
    i64::MAX - 1,
    i64::MIN,
    i64::MIN + 1,
    1 << 31,
    -(1 << 31),
    i32::MAX as i64,
    (1 << 32) + 2,
    1 << 50,
    1 << 62,
    (1 << 62) - 1,
    -(1 << 62),
    -(1 << 62) - 1,
    1000,
    -3,
];

const BATCHES: [i32; 9] = [i32::MIN, i32::MIN + 1, -1, 0, 1, 2, 1000, i32::MAX - 1, i32::MAX];

fn boot() {
    host::boot(CPUS).unwrap();
}

fn on<R>(n: usize, f: impl FnOnce() -> R) -> R {
    let _cpu = host::enter_when_free(CpuId::new(n).unwrap()).unwrap();
    f()
}

/// Numbers near the ends of 64 bits, near 0, near what a batch is, and any.
fn number() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => (0..400_i64).prop_map(|n| i64::MAX - n),
        4 => (0..400_i64).prop_map(|n| i64::MIN + n),
        4 => -400..400_i64,
        2 => prop::sample::select(&ENDS[..]),
        1 => any::<i64>(),
    ]
}

/// What a counter keeps of a value.
fn kept(value: i128) -> i64 {
    value as i64
}

/// How far off `read` is from `exact`, as counters count: round the end of the number line.
fn off(read: i64, exact: i64) -> u64 {
    read.wrapping_sub(exact).unsigned_abs()
}

fn fits(value: i64, limit: i64, amount: i64) -> bool {
    let new = i128::from(value) + i128::from(amount);
    match amount.cmp(&0) {
        Ordering::Greater => new <= limit.into(),
        Ordering::Equal => true,
        Ordering::Less => new >= limit.into(),
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Add(i64),
    Sub(i64),
    AddBatch(i64, i32),
    AddLocal(i64),
    SubLocal(i64),
    LimitedAdd(i64, i64),
    Compare(i64),
    Set(i64),
    Sync,
    /// What it stands at, and a little beside.
    CompareNear(i64),
    LimitedAddNear(i64, i64),
}

fn op() -> impl Strategy<Value = Op> {
    let batch = || prop_oneof![Just(i32::MIN), 0..60, Just(i32::MAX)];
    prop_oneof![
        4 => number().prop_map(Op::Add),
        2 => number().prop_map(Op::Sub),
        2 => (number(), batch()).prop_map(|(amount, batch)| Op::AddBatch(amount, batch)),
        1 => number().prop_map(Op::AddLocal),
        1 => number().prop_map(Op::SubLocal),
        4 => (number(), number()).prop_map(|(limit, amount)| Op::LimitedAdd(limit, amount)),
        4 => number().prop_map(Op::Compare),
        1 => number().prop_map(Op::Set),
        1 => Just(Op::Sync),
        4 => (-200..200_i64).prop_map(Op::CompareNear),
        4 => (-200..200_i64, -100..100_i64).prop_map(|(n, amount)| Op::LimitedAddNear(n, amount)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 3 } else { 200 }))]

    #[test]
    fn a_percpu_counter_decides_as_in_128_bits(
        initial in number(), ops in proptest::collection::vec((0..CPUS, op()), 1..60),
    ) {
        boot();
        let counter = PercpuCounter::new(initial).unwrap();
        let mut model = i128::from(initial);
        for (n, op) in ops {
            let value = kept(model);
            on(n, || -> Result<(), TestCaseError> {
                match op {
                    Op::Add(amount) => {
                        counter.add(amount);
                        model += i128::from(amount);
                    }
                    Op::Sub(amount) => {
                        counter.sub(amount);
                        model -= i128::from(amount);
                    }
                    Op::AddBatch(amount, batch) => {
                        counter.add_batch(amount, batch);
                        model += i128::from(amount);
                    }
                    Op::AddLocal(amount) => {
                        counter.add_local(amount);
                        model += i128::from(amount);
                    }
                    Op::SubLocal(amount) => {
                        counter.sub_local(amount);
                        model -= i128::from(amount);
                    }
                    Op::LimitedAdd(limit, amount) => {
                        let fits = fits(value, limit, amount);
                        prop_assert_eq!(counter.limited_add(limit, amount), fits, "at {}", value);
                        model += if fits { amount.into() } else { 0 };
                    }
                    Op::LimitedAddNear(near, amount) => {
                        let limit = value.saturating_add(near);
                        let fits = fits(value, limit, amount);
                        prop_assert_eq!(counter.limited_add(limit, amount), fits, "at {}", value);
                        model += if fits { amount.into() } else { 0 };
                    }
                    Op::Compare(rhs) => {
                        prop_assert_eq!(counter.compare(rhs), value.cmp(&rhs), "at {}", value);
                    }
                    Op::CompareNear(near) => {
                        let rhs = value.saturating_add(near);
                        prop_assert_eq!(counter.compare(rhs), value.cmp(&rhs), "at {}", value);
                    }
                    Op::Set(amount) => {
                        counter.set(amount);
                        model = amount.into();
                    }
                    Op::Sync => counter.sync(),
                }
                Ok(())
            })?;
            prop_assert_eq!(counter.sum(), kept(model));
            prop_assert_eq!(counter.sum_positive(), kept(model).max(0));
            prop_assert!(off(counter.read(), counter.sum()) <= counter.error_bound());
        }
    }

    #[test]
    fn the_other_counters_sum_and_compare_as_in_128_bits(
        initial in number(),
        max_error in prop_oneof![60..2000_u64, Just(u64::MAX), Just(i64::MAX as u64)],
        ops in proptest::collection::vec((0..CPUS, number(), any::<bool>(), number()), 1..60),
    ) {
        boot();
        let tree = HierarchicalCounter::new(initial, max_error).unwrap();
        let lazy = LazyCounter::new(initial >> 1);
        let old = v26::Counter::<CPUS>::new();
        let mut added = 0;
        for (n, amount, subtract, rhs) in ops {
            for counter in [&tree as &dyn Count, &lazy, &old] {
                on(n, || if subtract { counter.sub(amount) } else { counter.add(amount) });
            }
            added += if subtract { -i128::from(amount) } else { i128::from(amount) };
            let begin = [initial, initial >> 1, 0];
            for (counter, initial) in [&tree as &dyn Count, &lazy, &old].into_iter().zip(begin) {
                let value = kept(i128::from(initial) + added);
                prop_assert_eq!(counter.sum(), value);
                for rhs in [rhs, value, value.saturating_add(1), value.saturating_sub(1)] {
                    prop_assert_eq!(counter.compare(rhs), value.cmp(&rhs));
                }
            }
            for within in [0, 1, 100, max_error, u64::MAX] {
                prop_assert!(off(tree.read_within(within), tree.sum()) <= within);
            }
            prop_assert!(off(tree.read(), tree.sum()) <= tree.error_bound());
        }
    }
}

/// Every function of the module, with each of the numbers: none does anything but count, refuse by an
/// error, or panic as its documentation says.
#[test]
fn every_function_takes_every_number() {
    boot();
    let _cpu = host::enter_when_free(CpuId::new(0).unwrap()).unwrap();
    let ends = &ENDS[..if cfg!(miri) { 8 } else { ENDS.len() }];
    for &a in ends {
        for &b in ends {
            let sum = a.wrapping_add(b);
            let counter = PercpuCounter::new(a).unwrap();
            counter.add(b);
            assert_eq!((counter.sum(), counter.sum_positive()), (sum, sum.max(0)), "{a} + {b}");
            counter.sub(b);
            assert_eq!((counter.sum(), counter.compare(b)), (a, a.cmp(&b)), "{a} + {b} - {b}");
            counter.add_local(b);
            counter.sub_local(b);
            for batch in BATCHES {
                counter.add_batch(b, batch);
                counter.add_batch(b.wrapping_neg(), batch);
            }
            counter.inc();
            counter.dec();
            counter.sync();
            assert_eq!((counter.read(), counter.read_positive()), (a, a.max(0)));
            let fits = fits(a, b, b);
            assert_eq!(counter.limited_add(b, b), fits, "{a} + {b} within {b}");
            assert_eq!(counter.sum(), if fits { a + b } else { a });
            counter.set(b);
            assert_eq!(counter.sum(), b);

            let tree = HierarchicalCounter::new(a, 1000).unwrap();
            tree.add(b);
            assert_eq!((tree.sum(), tree.compare(b)), (sum, sum.cmp(&b)), "{a} + {b}");
            tree.sub(b);
            assert_eq!((tree.sum(), tree.read_within(0)), (a, a));

            let old = v26::Counter::<CPUS>::new();
            old.add(a);
            old.add(b);
            assert_eq!((old.sum(), old.compare(a)), (sum, sum.cmp(&a)));
            old.sub(b);
            assert_eq!(old.sum(), a);

            let Ok(lazy) = catch_unwind(|| LazyCounter::new(a)) else {
                assert!(!(-(1 << 62)..1 << 62).contains(&a), "{a}");
                continue;
            };
            lazy.add(b);
            assert_eq!((lazy.sum(), lazy.compare(b)), (sum, sum.cmp(&b)), "{a} + {b}");
            lazy.sub(b);
            lazy.inc();
            lazy.dec();
            assert_eq!(lazy.sum(), a);
        }
    }
    for max_error in ENDS.map(|n| n as u64) {
        match HierarchicalCounter::new(1, max_error) {
            Ok(counter) => {
                assert!(counter.error_bound() <= max_error);
                assert_eq!(counter.read_within(max_error), 1);
            }
            Err(HierarchicalError::MaxError { wanted, smallest }) => {
                assert!(wanted == max_error && smallest > wanted);
                HierarchicalCounter::new(1, smallest).unwrap();
            }
            Err(error) => panic!("{max_error}: {error}"),
        }
    }
    for count in ENDS.map(|n| n as usize).into_iter().chain([3, 8191, 8192, 8193, 40_000, 65_536]) {
        match PercpuCounters::new(count, -1) {
            Ok(counters) => {
                assert!(count <= 8192 && counters.len() == count);
                assert_eq!(counters.iter().map(PercpuCounter::sum).sum::<i64>(), -(count as i64));
            }
            Err(error) => {
                assert!(count > 8192 && matches!(error, AllocError::Size(_)), "{count}: {error}");
            }
        }
    }
}

/// The end of the number line between what a read says and what is exact: Linux and this crate once
/// compared the numbers that `read` gives.
#[test]
fn a_value_beside_the_end_is_not_taken_for_one_beyond() {
    boot();
    // The shared part of the first counter is past the end; that of the second would be.
    let counter = PercpuCounter::new(i64::MAX).unwrap();
    on(1, || counter.sub(20));
    on(2, || (0..2).for_each(|_| counter.add(10)));
    on(1, || counter.sub(1));
    on(2, || counter.sync());
    let value = i64::MAX - 1;
    assert_eq!((counter.read() < 0, counter.sum()), (true, value));
    assert_eq!(counter.compare(0), Ordering::Greater);
    assert_eq!(
        (counter.compare(value), counter.compare(i64::MAX)),
        (Ordering::Equal, Ordering::Less)
    );
    on(0, || {
        assert!(!counter.limited_add(0, 1), "far above the limit");
        assert!(!counter.limited_add(i64::MAX, 2));
        assert!(counter.limited_add(i64::MAX, 1));
        assert!(counter.limited_add(i64::MIN, -1));
    });
    let counter = PercpuCounter::new(i64::MIN).unwrap();
    on(1, || counter.add(20));
    on(2, || counter.sub(20));
    on(2, || counter.sync());
    assert_eq!((counter.read() > 0, counter.sum()), (true, i64::MIN));
    assert_eq!(counter.compare(0), Ordering::Less);
    on(0, || {
        assert!(!counter.limited_add(0, -1), "far below the limit");
        assert!(!counter.limited_add(i64::MIN, -1));
        assert!(counter.limited_add(i64::MAX, i64::MAX));
    });
    assert_eq!(counter.sum(), -1);

    let tree = HierarchicalCounter::new(i64::MAX - 2, 1000).unwrap();
    on(1, || tree.add(100));
    on(2, || tree.sub(101));
    assert_eq!((tree.sum(), tree.compare(0)), (i64::MAX - 3, Ordering::Greater));
}

#[test]
fn an_add_that_panics_leaves_the_counter_as_it_was() {
    boot();
    let small = v26::Counter::<1>::new();
    let entered = host::enter_when_free(CpuId::new(2).unwrap()).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| small.add(1))).is_err(), "CPU 2 of 1");
    assert_eq!((small.sum(), percpu_core::preempt::count()), (0, 0));
    // The CPU can be left: no guard was kept.
    drop(entered);
}
