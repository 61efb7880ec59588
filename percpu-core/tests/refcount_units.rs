//! Refs, locks and statistics on CPUs that first come up later. One test, in the order in which a
//! machine lives: CPU 0 is up, the others have never been.

#[path = "common/threads.rs"]
mod threads;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use percpu_core::alloc::PerCpuBox;
use percpu_core::area::Config;
use percpu_core::cpu::{self, CpuId};
use percpu_core::local::{IrqCell, LocalLock, SeqStats};
use percpu_core::refcount::{PercpuRef, RefFlags, Release};
use percpu_core::var::PerCpuPtr;
use percpu_core::view::RefView;
use percpu_core::{host, hotplug, irq, preempt};
use threads::{Meeting, wait_until};

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

fn on_cpu<R>(n: usize, f: impl FnOnce() -> R) -> R {
    let _cpu = host::enter_when_free(cpu(n)).unwrap();
    f()
}

fn new(flags: RefFlags) -> (PercpuRef<impl Fn()>, Arc<AtomicUsize>) {
    let releases = Arc::new(AtomicUsize::new(0));
    let seen = releases.clone();
    let release = move || {
        seen.fetch_add(1, SeqCst);
    };
    (PercpuRef::new(release, flags).unwrap(), releases)
}

fn is_open<T: Release>(of: &PercpuRef<T>, n: usize) -> bool {
    let view = std::ptr::with_exposed_provenance::<RefView>(of.view_address());
    // SAFETY: the ref is there, and nobody changes its mode now.
    unsafe { PerCpuPtr::<i64>::from_raw((*view).words as usize).read_on(cpu(n)) >= 0 }
}

#[test]
fn a_cpu_that_first_comes_up_later_finds_what_the_others_left() {
    let config = Config { units_on_demand: true, ..Config::default() };
    host::boot_with(6, 1, &config).unwrap();
    let locks = PerCpuBox::try_new_with(|cpu| LocalLock::new(vec![cpu.index()])).unwrap();
    let cells = PerCpuBox::<IrqCell<u32>>::try_new_zeroed().unwrap();
    let stats = PerCpuBox::<SeqStats<2>>::try_new_zeroed().unwrap();
    on_cpu(0, || stats.update(&irq::disable(), [1, 10]));

    let (open, open_releases) = new(RefFlags::NONE);
    let (atomic, _) = new(RefFlags::INIT_ATOMIC);
    let (dead, dead_releases) = new(RefFlags::ALLOW_REINIT);
    let (last, guard) = on_cpu(0, || (dead.get(), open.get()));
    dead.kill().unwrap();

    hotplug::cpu_up(cpu(1)).unwrap();
    on_cpu(1, || {
        // A closed word, whatever the mode: each operation counts where it should.
        assert!(dead.tryget_live().is_none());
        drop(last);
        assert_eq!(dead_releases.load(SeqCst), 1);
        drop(atomic.get());
        assert!(!is_open(&atomic, 1) && !is_open(&dead, 1) && !is_open(&open, 1));
        let second = open.tryget_live().unwrap();
        assert!(is_open(&open, 1));
        drop((second, guard));
        locks.lock().push(7);
        cells.with_mut(&preempt::disable(), |value| *value += 3).unwrap();
        stats.update(&irq::disable(), [2, 20]);
    });
    on_cpu(1, || assert_eq!(*locks.lock(), [1, 7]));
    on_cpu(0, || assert_eq!(*locks.lock(), [0]));
    assert_eq!((stats.sum(), stats.snapshot(cpu(1))), ([3, 30], [2, 20]));
    assert_eq!((open.kill(), open_releases.load(SeqCst)), (Ok(()), 1));

    first_arrivals_while_refs_are_killed();
}

/// CPUs get their units, and run for the first time, in the middle of kills and revivals.
fn first_arrivals_while_refs_are_killed() {
    for n in 2..6 {
        let (object, releases) = new(RefFlags::ALLOW_REINIT);
        let begin = Meeting::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                begin.wait();
                hotplug::cpu_up(cpu(n)).unwrap();
                on_cpu(n, || {
                    for _ in 0..200 {
                        drop(object.tryget_live());
                        drop(object.tryget());
                    }
                });
            });
            begin.wait();
            for life in 1..20 {
                object.kill().unwrap();
                wait_until(|| releases.load(SeqCst) >= life);
                object.reinit().unwrap();
            }
        });
        assert_eq!((object.kill(), releases.load(SeqCst)), (Ok(()), 20));
        assert!(object.is_zero());
    }
    assert_eq!(cpu::booted_once().count(), 6);
}
