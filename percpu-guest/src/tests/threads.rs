//! Kernel threads.

use core::sync::atomic::{AtomicU64, Ordering};

use percpu_core::cpu::this_cpu_raw;

use super::guest_test;
use crate::sched;

guest_test!(threads_migrate, cpus = 2, possible = 2, {
    let mut seen = 0u64;
    for _ in 0..100_000 {
        seen |= 1 << this_cpu_raw();
        if seen == 3 {
            return;
        }
        sched::yield_now();
    }
    panic!("the thread saw only the CPUs {seen:#b}");
});

guest_test!(a_thread_that_never_yields_is_preempted, cpus = 1, possible = 1, {
    static STEPS: AtomicU64 = AtomicU64::new(0);
    sched::spawn(
        |_| loop {
            STEPS.fetch_add(1, Ordering::Relaxed);
        },
        0,
        u32::MAX,
    );
    while STEPS.load(Ordering::Relaxed) < 1000 {
        sched::yield_now();
    }
    // Getting here at all means that the loop above lost the CPU against its will.
});
