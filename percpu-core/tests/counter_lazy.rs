//! The lazy counter: one word until CPUs contend, exact before, beside and after.

#[path = "common/scale.rs"]
mod scale;
#[path = "common/threads.rs"]
mod threads;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use percpu_core::alloc::{AllocError, AllocFlags, global};
use percpu_core::area::Config;
use percpu_core::counter::{Count, LazyCounter};
use percpu_core::cpu::{self, CpuId};
use percpu_core::var::PerCpuPtr;
use percpu_core::{host, hotplug};
use scale::scaled;
use threads::{Done, Meeting};

const CPUS: usize = 4;
/// Brought up by a test, and never before.
const LATE: usize = 3;

/// Boots, and keeps the other tests of this program away: they count areas.
fn system() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let config = Config { units_on_demand: true, ..Config::default() };
    host::boot_with(CPUS, LATE, &config).unwrap();
    guard
}

fn live_areas() -> u64 {
    global().statistics().live
}

/// Has CPUs add one at the same time, again and again, until `enough`; what was added.
fn count_together(counter: &LazyCounter, cpus: usize, enough: impl Fn() -> bool + Sync) -> i64 {
    let added = AtomicI64::new(0);
    let start = Meeting::new(cpus);
    std::thread::scope(|scope| {
        for n in 0..cpus {
            let (added, start, enough) = (&added, &start, &enough);
            scope.spawn(move || {
                let _cpu = host::enter_when_free(CpuId::new(n).unwrap()).unwrap();
                start.wait();
                while !enough() {
                    for _ in 0..100 {
                        counter.add(1);
                    }
                    added.fetch_add(100, Relaxed);
                }
            });
        }
    });
    added.into_inner()
}

/// So many times.
fn times(rounds: usize) -> impl Fn() -> bool {
    let done = AtomicUsize::new(0);
    move || done.fetch_add(1, Relaxed) >= rounds
}

#[test]
fn on_one_cpu_it_stays_one_word() {
    let _system = system();
    let areas = live_areas();
    assert_eq!(size_of::<LazyCounter>(), 8);
    let counter = LazyCounter::new(-7);
    let rounds = scaled(10_000);
    assert_eq!(count_together(&counter, 1, times(rounds)), rounds as i64 * 100);
    count_on_one(|| counter.sub(3));
    assert_eq!(counter.sum(), rounds as i64 * 100 - 10);
    assert_eq!((counter.parts(), live_areas()), (None, areas), "no per-CPU memory");
}

/// Needs CPUs that run at the same time: one of them cannot get in its own way.
#[test]
fn cpus_that_contend_make_it_per_cpu_and_nothing_is_lost() {
    let _system = system();
    if std::thread::available_parallelism().is_ok_and(|n| n.get() == 1) {
        return;
    }
    let areas = live_areas();
    let counter = LazyCounter::new(-3);
    let patience = Instant::now() + Duration::from_secs(60);
    let enough = || counter.parts().is_some() || Instant::now() > patience;
    let added = count_together(&counter, LATE, enough);
    let parts = counter.parts().expect("three CPUs get into each other's way");
    assert_eq!(counter.sum(), added - 3);
    assert_eq!(live_areas(), areas + 1, "whoever was late has given its area back");
    host::on_each_cpu(|_| counter.sub(5));
    assert_eq!((counter.sum(), counter.parts()), (added - 18, Some(parts)));
    drop(counter);
    assert_eq!(live_areas(), areas);
}

#[test]
fn it_becomes_per_cpu_once_whoever_wants_that() {
    let _system = system();
    let areas = live_areas();
    let counter = LazyCounter::new(9);
    host::on_each_cpu(|_| counter.make_per_cpu().unwrap());
    let parts = counter.parts().unwrap();
    counter.make_per_cpu().unwrap();
    assert_eq!((counter.parts(), counter.sum()), (Some(parts), 9));
    assert_eq!(live_areas(), areas + 1);
}

#[test]
fn a_sum_beside_the_upgrade_misses_nothing() {
    let _system = system();
    for round in 0..scaled(100) as i64 {
        let counter = LazyCounter::new(1_000_000);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut last = 1_000_000;
                while !done.load(Relaxed) {
                    let sum = counter.sum();
                    assert!(sum >= last, "{sum} after {last}: adds only add");
                    last = sum;
                }
            });
            let ending = Done(&done);
            let rounds = times(20);
            // Somebody makes it per-CPU at one time or another within the twenty.
            let added = count_together(&counter, LATE, || {
                if counter.sum() >= 1_000_000 + round * 20 {
                    counter.make_per_cpu().unwrap();
                }
                rounds()
            });
            drop(ending);
            reader.join().unwrap();
            assert_eq!(counter.sum(), 1_000_000 + added);
        });
    }
}

/// Takes all that an atomic allocation could use: what is populated, in chunks and in CPUs' caches.
fn take_all_atomic_memory() -> Vec<PerCpuPtr<u8>> {
    global().drain_caches();
    let mut taken = Vec::new();
    for size in [4096, 256, 8, 4] {
        while let Ok(area) = global().alloc(size, 4, AllocFlags::ATOMIC) {
            taken.push(area);
        }
    }
    taken
}

fn give_back(taken: Vec<PerCpuPtr<u8>>) {
    for area in taken {
        // SAFETY: `take_all_atomic_memory` allocated it, and it was not used.
        unsafe { global().free(area).unwrap() };
    }
}

#[test]
fn without_memory_it_stays_one_word_and_counts_on() {
    let _system = system();
    let taken = take_all_atomic_memory();
    let counter = LazyCounter::new(0);
    assert_eq!(counter.make_per_cpu(), Err(AllocError::NoPopulatedRoom));
    let rounds = scaled(20_000);
    let added = count_together(&counter, LATE, times(rounds));
    assert_eq!(added, rounds as i64 * 100);
    assert_eq!((counter.sum(), counter.parts()), (added, None));
    give_back(taken);
    // As soon as there is some, it becomes per-CPU after all.
    counter.make_per_cpu().unwrap();
    let more = count_together(&counter, LATE, times(10));
    assert_eq!(counter.sum(), added + more);
}

#[test]
fn a_cpu_that_goes_or_comes_leaves_its_part_where_it_is_counted() {
    let _system = system();
    let counter = LazyCounter::new(0);
    counter.make_per_cpu().unwrap();
    let added = count_together(&counter, LATE, times(10));
    let two = CpuId::new(2).unwrap();
    hotplug::cpu_down(two).unwrap();
    assert_eq!(counter.sum(), added);
    hotplug::cpu_up(two).unwrap();
    let late = CpuId::new(LATE).unwrap();
    assert!(!cpu::booted_once().contains(late));
    hotplug::cpu_up(late).unwrap();
    host::on_each_cpu(|_| counter.add(100));
    assert_eq!(counter.sum(), added + 400);
    hotplug::cpu_down(late).unwrap();
    assert_eq!(counter.sum(), added + 400);
}

/// Its first CPU does `f`.
fn count_on_one<R>(f: impl FnOnce() -> R) -> R {
    let _cpu = host::enter_when_free(CpuId::new(0).unwrap()).unwrap();
    f()
}

const LEAST: i64 = -(1 << 62);
const MOST: i64 = (1 << 62) - 1;

#[test]
fn one_word_holds_63_bits_and_an_add_beyond_makes_it_per_cpu() {
    let _system = system();
    for amount in [MOST, LEAST, 0, -1] {
        let counter = LazyCounter::new(amount);
        assert_eq!((counter.sum(), counter.read(), counter.parts()), (amount, amount, None));
    }
    for (from, amount) in [
        (MOST, 1),
        (MOST, MOST),
        (LEAST, -1),
        (0, i64::MAX),
        (0, i64::MIN),
        (LEAST, i64::MIN),
        (MOST, i64::MAX),
        (-1, LEAST),
    ] {
        let counter = LazyCounter::new(from);
        count_on_one(|| counter.add(amount));
        assert_eq!(counter.sum(), from.wrapping_add(amount), "{from} + {amount}");
        assert!(counter.parts().is_some(), "{from} + {amount}");
        // From here on it is one of 64 bits.
        count_on_one(|| counter.sub(amount));
        assert_eq!(counter.sum(), from, "{from} + {amount} - {amount}");
    }
    // As large, but within the word all the time.
    let counter = LazyCounter::new(LEAST);
    count_on_one(|| counter.add(i64::MAX));
    assert_eq!((counter.sum(), counter.parts()), (MOST, None));
}

#[test]
fn a_beginning_that_one_word_does_not_hold_is_refused() {
    for amount in [i64::MAX, i64::MIN, MOST + 1, LEAST - 1] {
        let said = panic_of(|| LazyCounter::new(amount));
        assert!(said.contains("from -2^62 to 2^62 - 1"), "{amount}: {said}");
    }
}

#[test]
fn an_add_beyond_one_word_panics_without_memory_and_changes_nothing() {
    let _system = system();
    let taken = take_all_atomic_memory();
    for (from, amount) in [(MOST, 1), (LEAST, -1), (0, i64::MIN), (0, i64::MAX)] {
        let counter = LazyCounter::new(from);
        let said = panic_of(|| count_on_one(|| counter.add(amount)));
        assert!(said.contains("is to leave the values that one word holds"), "{said}");
        assert_eq!((counter.sum(), counter.parts()), (from, None));
    }
    give_back(taken);
}

fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    let Err(panic) = catch_unwind(AssertUnwindSafe(f)) else { return "no panic".to_owned() };
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap()
}
