//! Counters on a thread that is no CPU: an add panics with one sentence before anything has changed,
//! from the first call on and whatever the counter's state is; everything else works.

use std::cmp::Ordering;
use std::mem::offset_of;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::with_exposed_provenance;
use std::sync::{Mutex, MutexGuard, PoisonError};

use percpu_core::counter::{
    self, Count, HierarchicalCounter, LazyCounter, PercpuCounter, PercpuCounters, v26,
};
use percpu_core::cpu::{self, CpuId};
use percpu_core::view::CounterView;
use percpu_core::{host, hotplug, irq};

const CPUS: usize = 4;

/// Boots, and keeps the other tests of this program away.
fn system() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    host::boot(CPUS).unwrap();
    guard
}

/// Calls `f`, which must panic because this thread is no CPU.
#[track_caller]
fn refused<R>(what: &str, f: impl FnOnce() -> R) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(f)) else { panic!("{what}: no panic") };
    let said = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    let said = said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap();
    assert!(said.starts_with("this thread is no CPU: "), "{what}: {said}");
}

/// A counter's memory but for the list's links, which other counters change.
fn memory(counter: &PercpuCounter) -> Vec<u8> {
    let links = offset_of!(CounterView, count);
    let bytes = with_exposed_provenance::<u8>(counter.address());
    // SAFETY: the counter lives, and nobody changes it now.
    (links..size_of::<CounterView>()).map(|n| unsafe { bytes.add(n).read() }).collect()
}

fn locals(counter: &PercpuCounter) -> Vec<i32> {
    // SAFETY: the counter lives, and local parts are only accessed atomically.
    cpu::possible().iter().map(|cpu| unsafe { counter.locals().read_on(cpu) }).collect()
}

type Op<C> = (&'static str, fn(&C));

/// What changes this CPU's local part, or may.
const PERCPU_OPS: [Op<PercpuCounter>; 16] = [
    ("add 0", |c| c.add(0)),
    ("add", |c| c.add(1)),
    ("add much", |c| c.add(i64::MAX)),
    ("sub", |c| c.sub(1)),
    ("sub much", |c| c.sub(i64::MIN)),
    ("inc", PercpuCounter::inc),
    ("dec", PercpuCounter::dec),
    ("add_batch", |c| c.add_batch(1, 1_000)),
    ("add_batch at once", |c| c.add_batch(1, i32::MIN)),
    ("add_local", |c| c.add_local(1)),
    ("sub_local", |c| c.sub_local(1)),
    ("sync", PercpuCounter::sync),
    ("limited_add of nothing", |c| _ = c.limited_add(0, 0)),
    ("limited_add far from the limit", |c| _ = c.limited_add(1 << 40, 1)),
    ("limited_add near the limit", |c| _ = c.limited_add(40, 1)),
    ("limited_add past the limit", |c| _ = c.limited_add(-5, 1)),
];

#[test]
fn a_percpu_counter_is_not_changed_by_a_thread_that_is_no_cpu() {
    let _system = system();
    let counters = PercpuCounters::new(2, 0).unwrap();
    for counter in [&PercpuCounter::new(0).unwrap(), &counters[1]] {
        // Twice: with nothing in the local parts, and with something.
        for filled in [false, true] {
            if filled {
                host::on_each_cpu(|_| counter.add(9));
            }
            for (name, op) in PERCPU_OPS {
                let before = (memory(counter), locals(counter), counter.sum());
                refused(name, || op(counter));
                let after = (memory(counter), locals(counter), counter.sum());
                assert_eq!(after, before, "{name}");
            }
        }
        // All that a fold had begun was undone: sums need no lock, and find what there is.
        assert_eq!((counter.read(), counter.sum()), (0, 36));
    }
}

#[test]
fn a_percpu_counter_is_made_read_set_and_dropped_by_a_thread_that_is_no_cpu() {
    let _system = system();
    let counter = PercpuCounter::new(5).unwrap();
    host::on_each_cpu(|_| counter.add(1));
    assert_eq!((counter.read(), counter.read_positive()), (5, 5));
    assert_eq!((counter.sum(), counter.sum_positive()), (9, 9));
    assert_eq!((counter.compare(9), counter.compare(1 << 40)), (Ordering::Equal, Ordering::Less));
    assert!(counter.error_bound() >= 4);
    counter.set(-7);
    assert_eq!((counter.sum(), counter.sum_positive()), (-7, 0));
    let _ = format!("{counter:?}");
    drop(counter);
    let [a, b] = PercpuCounter::new_many(3).unwrap();
    assert_eq!(a.sum() + b.sum(), 6);
    PercpuCounter::destroy_many([a]);
    drop(b);
    let counters = PercpuCounters::new(3, 1).unwrap();
    let _ = format!("{counters:?}");
    assert_eq!(counters.iter().map(PercpuCounter::sum).sum::<i64>(), 3);
    drop(counters);
}

#[test]
fn a_lazy_counter_is_not_changed_by_a_thread_that_is_no_cpu() {
    let _system = system();
    let counter = LazyCounter::new(3);
    let ops: [Op<LazyCounter>; 6] = [
        ("add 0", |c| c.add(0)),
        ("add", |c| c.add(1)),
        ("add beyond one word", |c| c.add(i64::MAX)),
        ("sub", |c| c.sub(1)),
        ("inc", |c| c.inc()),
        ("dec", |c| c.dec()),
    ];
    for per_cpu in [false, true] {
        for (name, op) in ops {
            refused(name, || op(&counter));
            assert_eq!((counter.sum(), counter.parts().is_some()), (3, per_cpu), "{name}");
        }
        assert_eq!((counter.read(), counter.compare(4)), (3, Ordering::Less));
        let _ = format!("{counter:?}");
        counter.make_per_cpu().unwrap();
    }
    drop(counter);
    // Several at once, of which one makes it per-CPU and the others find that.
    for _ in 0..if cfg!(miri) { 2 } else { 200 } {
        let counter = LazyCounter::new(8);
        std::thread::scope(|scope| {
            let upgrade = || counter.make_per_cpu().unwrap();
            let threads = [scope.spawn(upgrade), scope.spawn(upgrade), scope.spawn(upgrade)];
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        assert_eq!(counter.sum(), 8);
    }
}

#[test]
fn a_hierarchical_counter_is_not_changed_by_a_thread_that_is_no_cpu() {
    let _system = system();
    let counter = HierarchicalCounter::new(3, 100).unwrap();
    let ops: [Op<HierarchicalCounter>; 6] = [
        ("add 0", |c| c.add(0)),
        ("add", |c| c.add(1)),
        ("add much", |c| c.add(i64::MAX)),
        ("sub", |c| c.sub(1)),
        ("inc", HierarchicalCounter::inc),
        ("dec", HierarchicalCounter::dec),
    ];
    for expected in [3, 3 + 4 * 1000] {
        for (name, op) in ops {
            let before = counter.read();
            refused(name, || op(&counter));
            assert_eq!((counter.sum(), counter.read()), (expected, before), "{name}");
        }
        assert_eq!(
            (counter.read_within(0), counter.compare(expected)),
            (expected, Ordering::Equal)
        );
        host::on_each_cpu(|_| counter.add(1000));
    }
    let _ = format!("{counter:?}");
    drop(counter);
}

#[test]
fn the_counter_of_2_6_is_not_changed_by_a_thread_that_is_no_cpu() {
    let _system = system();
    let counter = v26::Counter::<CPUS>::default();
    for expected in [0, 4 * 1000] {
        for amount in [0, 1, i64::MAX] {
            refused("add", || counter.add(amount));
            refused("sub", || counter.sub(amount));
        }
        assert_eq!((counter.sum(), counter.sum_positive()), (expected, expected));
        assert!(counter.read().abs_diff(expected) <= 64 && counter.read_positive() >= 0);
        assert_eq!(counter.compare(expected), Ordering::Equal);
        host::on_each_cpu(|_| counter.add(1000));
    }
}

#[test]
fn functions_of_the_module_on_a_thread_that_is_no_cpu() {
    let _system = system();
    refused("fold_excess", counter::fold_excess);
    assert!(counter::batch() > 0);
    counter::register_hotplug_steps().unwrap();
    counter::set_smallest_batch(32);
    let down = CpuId::new(3).unwrap();
    hotplug::cpu_down(down).unwrap();
    counter::cpu_dead(down);
    hotplug::cpu_up(down).unwrap();
    // No lock and no interrupt guard was left behind: another thread gets on, and this one is a CPU
    // and then none.
    let _ = irq::disable();
    drop(host::enter_any().unwrap());
    refused("fold_excess", counter::fold_excess);
    host::on_each_cpu(|_| counter::fold_excess());
}
