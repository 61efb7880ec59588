//! Kernel threads.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use percpu_core::cpu::this_cpu_raw;

use percpu_guest::kernel::arch::tsc;
use percpu_guest::kernel::sched;

/// More threads than CPUs: each goes on wherever a CPU is free.
#[percpu_guest::test(cpus = 2, possible = 2)]
fn threads_migrate() {
    static OVER: AtomicBool = AtomicBool::new(false);
    for _ in 0..3 {
        sched::spawn(
            |_| {
                while !OVER.load(Ordering::Relaxed) {
                    sched::yield_now();
                }
            },
            0,
            u32::MAX,
        );
    }
    let mut seen = 0u64;
    let until = tsc::now_ns() + 5_000_000_000;
    while seen != 3 {
        assert!(tsc::now_ns() < until, "the thread saw only the CPUs {seen:#b}");
        seen |= 1 << this_cpu_raw();
        sched::yield_now();
    }
    OVER.store(true, Ordering::Relaxed);
}

#[percpu_guest::test(cpus = 1, possible = 1)]
fn a_thread_that_never_yields_is_preempted() {
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
}
