//! `percpu_counter`.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use percpu_core::counter::PercpuCounter;

use super::{guest_test, run_on};
use crate::{control, sched};

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

guest_test!(
    /// Initial 1, CPU 0's local 2, CPU 1's local 3: the sum is 6.
    worked_example, cpus = 2, possible = 2, {
        make(1);
        run_on(0, || counter().add_local(2));
        run_on(1, || counter().add_local(3));
        assert_eq!(counter().read(), 1);
        assert_eq!(counter().sum_positive(), 6);
    }
);

guest_test!(a_dead_cpu_is_folded, cpus = 2, possible = 2, {
    make(10);
    run_on(1, || counter().add_local(7));
    assert_eq!(counter().read(), 10);
    run_on(0, || assert_eq!(control::down(1), Ok(())));
    assert_eq!(counter().read(), 17);
    assert_eq!(counter().sum(), 17);
    run_on(0, || assert_eq!(control::up(1), Ok(())));
    assert_eq!(counter().sum(), 17);
});

guest_test!(additions_of_many_threads_add_up, cpus = 4, possible = 4, {
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
});
