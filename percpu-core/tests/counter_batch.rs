//! The counters' batch under hotplug: more CPUs than the smallest batch is made for.

use std::cmp::Ordering;

use percpu_core::counter::{self, PercpuCounter};
use percpu_core::cpu::{self, CpuId};
use percpu_core::{host, hotplug, view};

const CPUS: usize = 20;

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

fn on(n: usize, f: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _cpu = host::enter_when_free(cpu(n)).unwrap();
            f();
        });
    });
}

fn local(counter: &PercpuCounter, n: usize) -> i32 {
    // SAFETY: the counter lives, and local parts are only accessed atomically.
    unsafe { counter.locals().read_on(cpu(n)) }
}

/// Takes a CPU down, from a thread that is on none.
fn hotplug_down(n: usize) {
    std::thread::spawn(move || hotplug::cpu_down(cpu(n)).unwrap()).join().unwrap();
}

#[test]
fn local_parts_do_not_exceed_a_batch_that_shrinks() {
    host::boot(CPUS).unwrap();
    assert_eq!(counter::batch(), 40, "twice the CPUs that are online");
    let in_view = std::ptr::with_exposed_provenance::<i32>(view::roots().counter_batch as usize);
    // SAFETY: the batch is a static, and nobody changes it now.
    assert_eq!(unsafe { in_view.read() }, 40);

    let counter = PercpuCounter::new(0).unwrap();
    host::on_each_cpu(|cpu| counter.add(39 - cpu.index() as i64));
    let sum = (20..=39).sum::<i64>();
    assert_eq!((counter.read(), counter.sum()), (0, sum));
    for n in (10..CPUS).rev() {
        hotplug::cpu_down(cpu(n)).unwrap();
        let batch = 32.max(2 * n as i32);
        assert_eq!(counter::batch(), batch);
        for other in 0..n {
            let before = 39 - other as i32;
            let after = if before < batch { before } else { 0 };
            assert_eq!(local(&counter, other), after, "CPU {other} when {n} are left");
        }
        assert_eq!(counter.sum(), sum);
    }
    assert_eq!(counter::batch(), 32);

    // Adds that looked at the batch when it was 40, and happen now: more than 32 on each CPU.
    host::on_each_cpu(|_| counter.sync());
    counter.set(0);
    // SAFETY: as in `local`.
    host::on_each_cpu(|_| unsafe { counter.locals().add(39) });
    assert_eq!((counter.read(), counter.sum()), (0, 390));
    assert_eq!(counter.compare(385), Ordering::Greater, "10 CPUs with less than 32 had no 385");
    on(0, || {
        assert!(!counter.limited_add(390, 1));
        assert!(counter.limited_add(391, 1));
    });
    on(1, || {
        counter.add(0);
        assert_eq!(local(&counter, 1), 0, "the next add folds what is too much");
    });
    on(2, || {
        counter::fold_excess();
        assert_eq!((local(&counter, 2), local(&counter, 3)), (0, 39), "this CPU's part only");
        counter.add(31);
        counter::fold_excess();
        assert_eq!(local(&counter, 2), 31, "not too much");
    });
    assert_eq!(counter.sum(), 391 + 31);
    for n in 10..CPUS {
        hotplug::cpu_up(cpu(n)).unwrap();
    }
    assert_eq!((counter::batch(), counter.sum()), (40, 391 + 31));
    assert_eq!(cpu::online().count(), CPUS);

    // A CPU that is busy holds nobody up: it folds when it next adds.
    host::on_each_cpu(|_| counter.sync());
    counter.set(0);
    let held = host::enter_when_free(cpu(0)).unwrap();
    counter.add(39);
    std::thread::spawn(|| hotplug::cpu_down(cpu(CPUS - 1)).unwrap()).join().unwrap();
    assert_eq!((counter::batch(), local(&counter, 0)), (38, 39));
    counter.add(0);
    assert_eq!((local(&counter, 0), counter.read()), (0, 39));

    // Another smallest batch: what was added under a larger one is reckoned with.
    for n in (4..CPUS - 1).rev() {
        hotplug_down(n);
    }
    counter.sync();
    counter.set(0);
    counter::set_smallest_batch(3);
    assert_eq!(counter::batch(), 8, "twice the CPUs that are online");
    counter.add(7);
    assert_eq!((local(&counter, 0), counter.read()), (7, 0));
    // SAFETY: as in `local`.
    unsafe { counter.locals().add(24) };
    assert_eq!(counter.compare(30), Ordering::Greater);
    counter.add(1);
    assert_eq!((local(&counter, 0), counter.read()), (0, 32));
    for n in (1..4).rev() {
        hotplug_down(n);
    }
    assert_eq!(counter::batch(), 3);

    // The largest batch that a bound reckons with, from here on.
    for smallest in [i32::MIN, -1, 0, 1, 1000, i32::MAX - 1, i32::MAX] {
        counter::set_smallest_batch(smallest);
        assert_eq!(counter::batch(), smallest.max(2));
        let counter = PercpuCounter::new(7).unwrap();
        for amount in [1, -1, i64::MAX, i64::MIN, 1 << 31, -(1 << 31), i32::MAX.into()] {
            counter.add(amount);
            counter.sub(amount);
            counter::fold_excess();
            assert_eq!((counter.sum(), counter.compare(amount)), (7, 7.cmp(&amount)));
        }
        assert!(counter.read().abs_diff(7) <= counter.error_bound());
    }
    drop(held);
}
