//! The counters' batch under hotplug: more CPUs than the smallest batch is made for.

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

#[test]
fn local_parts_may_exceed_a_batch_that_shrinks() {
    host::boot(CPUS).unwrap();
    assert_eq!(counter::batch(), 40, "twice the CPUs that are online");
    let in_view = std::ptr::with_exposed_provenance::<i32>(view::roots().counter_batch as usize);
    // SAFETY: the batch is a static, and nobody changes it now.
    assert_eq!(unsafe { in_view.read() }, 40);

    let counter = PercpuCounter::new(0).unwrap();
    host::on_each_cpu(|_| counter.add(39));
    assert_eq!((counter.read(), counter.sum()), (0, 780));
    for n in 10..CPUS {
        hotplug::cpu_down(cpu(n)).unwrap();
        assert_eq!(counter::batch(), 32.max(2 * (CPUS as i32 - 1 - (n as i32 - 10))));
        assert_eq!((counter.read(), counter.sum()), (39 * (n as i64 - 9), 780));
    }
    assert_eq!(counter::batch(), 32);

    // Ten CPUs are up with 39 each, which is more than the batch says there can be.
    assert_eq!(counter.compare(390 + 10 * 33), std::cmp::Ordering::Greater);
    on(0, || {
        assert!(!counter.limited_add(780, 1));
        assert!(counter.limited_add(781, 1));
    });
    on(1, || {
        counter.add(0);
        // SAFETY: the counter lives, and local parts are only accessed atomically.
        let local = unsafe { counter.locals().read_on(cpu(1)) };
        assert_eq!(local, 0, "the next add folds what is too much");
    });
    assert_eq!(counter.sum(), 781);
    for n in 10..CPUS {
        hotplug::cpu_up(cpu(n)).unwrap();
    }
    assert_eq!((counter::batch(), counter.sum()), (40, 781));
    assert_eq!(cpu::online().count(), CPUS);
}
