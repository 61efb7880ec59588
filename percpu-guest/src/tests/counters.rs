//! `percpu_counter`.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use percpu_core::counter::{
    HierarchicalCounter, LazyCounter, PercpuCounter, PercpuCounters, batch,
};

use percpu_guest::kernel::testing::run_on;
use percpu_guest::kernel::{cpus, sched};

struct Shared(UnsafeCell<Option<PercpuCounter>>);
// SAFETY: each machine runs one test, which writes it before it starts threads that read it.
unsafe impl Sync for Shared {}
static COUNTER: Shared = Shared(UnsafeCell::new(None));

fn counter() -> &'static PercpuCounter {
    // SAFETY: nobody writes once `make` has returned.
    unsafe { (*COUNTER.0.get()).as_ref() }.expect("made first")
}

fn make(initial: i64) {
    // SAFETY: called once, before other threads look.
    unsafe { *COUNTER.0.get() = Some(PercpuCounter::new(initial).expect("memory")) };
}

/// Initial 1, CPU 0's local 2, CPU 1's local 3: the sum is 6.
#[percpu_guest::test(cpus = 2, possible = 2)]
fn worked_example() {
    make(1);
    run_on(0, || counter().add_local(2));
    run_on(1, || counter().add_local(3));
    assert_eq!(counter().read(), 1);
    assert_eq!(counter().sum_positive(), 6);
}

#[percpu_guest::test(cpus = 2, possible = 2)]
fn a_dead_cpu_is_folded() {
    make(10);
    run_on(1, || counter().add_local(7));
    assert_eq!(counter().read(), 10);
    run_on(0, || assert_eq!(cpus::down(1), Ok(())));
    assert_eq!(counter().read(), 17);
    assert_eq!(counter().sum(), 17);
    run_on(0, || assert_eq!(cpus::up(1), Ok(())));
    assert_eq!(counter().sum(), 17);
}

#[percpu_guest::test(cpus = 4, possible = 4)]
fn additions_of_many_threads_add_up() {
    static ENDED: AtomicU32 = AtomicU32::new(0);
    make(0);
    for thread in 0..8 {
        sched::spawn(
            |thread| {
                for i in 0..100 {
                    counter().add_batch((thread * i) as i64, 4);
                    if i % 16 == 0 {
                        sched::yield_now();
                    }
                }
                ENDED.fetch_add(1, Ordering::Release);
            },
            thread,
            u32::MAX,
        );
    }
    while ENDED.load(Ordering::Acquire) < 8 {
        sched::yield_now();
    }
    assert_eq!(counter().sum(), 28 * 4950);
}

/// A local that was made under a larger batch is folded when that shrinks, on a CPU that stays.
#[percpu_guest::test(cpus = 18, possible = 18)]
fn a_batch_shrinks_under_a_local_that_exceeds_it() {
    make(0);
    assert_eq!(batch(), 36);
    run_on(1, || counter().add(34));
    assert_eq!(counter().read(), 0);
    run_on(0, || {
        assert_eq!(cpus::down(17), Ok(()));
        assert_eq!(cpus::down(16), Ok(()));
    });
    assert_eq!(batch(), 32);
    assert_eq!(counter().read(), 34);
    assert_eq!(counter().sum(), 34);
    assert_eq!(counter().compare(33), core::cmp::Ordering::Greater);
    assert!(!counter().limited_add(35, 2));
    run_on(1, || counter().add(1));
    assert_eq!(counter().sum(), 35);
    assert_eq!(counter().read(), 34);
}

/// Many made at once: a CPU that dies is folded into each.
#[percpu_guest::test(cpus = 2, possible = 2)]
fn many_counters_are_folded_each() {
    let counters = PercpuCounters::new(200, 5).expect("memory");
    // The test's thread migrates: it adds wherever it is.
    for (n, counter) in counters.iter().enumerate() {
        counter.add(n as i64 % 30);
        sched::yield_now();
    }
    run_on(0, || assert_eq!(cpus::down(1), Ok(())));
    for (n, counter) in counters.iter().enumerate() {
        assert_eq!(counter.sum(), 5 + n as i64 % 30);
    }
}

/// Threads on two CPUs, and interrupts that come in between, make a lazy counter per-CPU
/// without losing anything.
#[percpu_guest::test(cpus = 2, possible = 2)]
fn a_lazy_counter_becomes_per_cpu() {
    static LAZY: LazyCounter = LazyCounter::new(3);
    static ENDED: AtomicU32 = AtomicU32::new(0);
    const EACH: i64 = 20_000;
    for _ in 0..2 {
        sched::spawn(
            |_| {
                for _ in 0..EACH {
                    LAZY.add(2);
                }
                ENDED.fetch_add(1, Ordering::Release);
            },
            0,
            u32::MAX,
        );
    }
    while ENDED.load(Ordering::Acquire) < 2 {
        sched::yield_now();
    }
    assert_eq!(LAZY.sum(), 3 + 4 * EACH);
    run_on(0, || assert_eq!(cpus::down(1), Ok(())));
    assert_eq!(LAZY.sum(), 3 + 4 * EACH);
}

/// A hierarchical counter reads within its bound, also when a CPU that added is down.
#[percpu_guest::test(cpus = 2, possible = 2)]
fn a_hierarchical_counter_keeps_its_bound() {
    let counter = HierarchicalCounter::new(10, 100).expect("memory");
    for n in 0..1000 {
        counter.add(3);
        if n % 64 == 0 {
            sched::yield_now();
        }
        let value = 10 + 3 * (n + 1);
        assert!(counter.read().abs_diff(value) <= counter.error_bound());
    }
    run_on(0, || assert_eq!(cpus::down(1), Ok(())));
    assert_eq!(counter.sum(), 3010);
    assert!(counter.read().abs_diff(3010) <= 100);
}
