//! Interrupts masked in software.

use core::sync::atomic::Ordering;

use percpu_core::cpu::this_cpu_raw;
use percpu_core::{irq, preempt};

use percpu_guest::kernel::arch::tsc;
use percpu_guest::kernel::shared;

/// Longer than two timer intervals.
fn wait_for_ticks() {
    let until = tsc::now_ns() + 4_000 * u64::from(shared::boot().tick_us);
    while tsc::now_ns() < until {
        core::hint::spin_loop();
    }
}

#[percpu_guest::test(cpus = 1, possible = 1)]
fn the_timer_ticks() {
    let before = shared::control(0).heartbeat.load(Ordering::Relaxed);
    wait_for_ticks();
    assert!(shared::control(0).heartbeat.load(Ordering::Relaxed) > before);
}

#[percpu_guest::test(cpus = 1, possible = 1)]
fn no_handler_runs_while_masked_and_pending_ones_run_after() {
    let heartbeat = || shared::control(0).heartbeat.load(Ordering::Relaxed);
    let guard = irq::disable();
    let before = heartbeat();
    wait_for_ticks();
    assert_eq!(heartbeat(), before);
    drop(guard);
    assert!(heartbeat() > before, "the pending tick was lost");
    wait_for_ticks();
    assert!(heartbeat() > before + 1, "the timer is dead after a pending tick");
}

#[percpu_guest::test(cpus = 2, possible = 2)]
fn a_pinned_thread_is_interrupted_but_not_moved() {
    let pin = preempt::disable();
    let cpu = this_cpu_raw();
    let before = shared::control(cpu).heartbeat.load(Ordering::Relaxed);
    wait_for_ticks();
    assert_eq!(this_cpu_raw(), cpu);
    assert!(shared::control(cpu).heartbeat.load(Ordering::Relaxed) > before);
    drop(pin);
}
