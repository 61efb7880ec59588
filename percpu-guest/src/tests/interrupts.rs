//! Interrupts masked in software.

use core::sync::atomic::Ordering;

use percpu_core::cpu::this_cpu_raw;
use percpu_core::{irq, preempt};

use percpu_guest::kernel::arch::tsc;
use percpu_guest::kernel::shared;

/// Longer than any tick is late, on a host that is busy or emulated, too.
const PATIENCE_NS: u64 = 5_000_000_000;

/// Longer than two timer intervals.
fn wait_for_ticks() {
    let until = tsc::now_ns() + 4_000 * u64::from(shared::boot().tick_us);
    while tsc::now_ns() < until {
        core::hint::spin_loop();
    }
}

/// Timer interrupts of `cpu` so far.
fn ticks(cpu: u32) -> u64 {
    shared::control(cpu).heartbeat.load(Ordering::Relaxed)
}

/// Waits until `cpu` has had more than `count` timer interrupts. The host decides when a tick that is
/// due comes.
fn wait_for_more_than(count: u64, cpu: u32, otherwise: &str) {
    let until = tsc::now_ns() + PATIENCE_NS;
    while ticks(cpu) <= count {
        assert!(tsc::now_ns() < until, "{otherwise}");
        core::hint::spin_loop();
    }
}

#[percpu_guest::test(cpus = 1, possible = 1)]
fn the_timer_ticks() {
    wait_for_more_than(ticks(0), 0, "no tick comes");
}

#[percpu_guest::test(cpus = 1, possible = 1)]
fn no_handler_runs_while_masked_and_pending_ones_run_after() {
    let guard = irq::disable();
    let before = ticks(0);
    wait_for_ticks();
    assert_eq!(ticks(0), before);
    drop(guard);
    // The handler arms the timer, so a tick that is lost is the last one.
    wait_for_more_than(before, 0, "the pending tick was lost");
    wait_for_more_than(before + 1, 0, "the timer is dead after a pending tick");
}

#[percpu_guest::test(cpus = 2, possible = 2)]
fn a_pinned_thread_is_interrupted_but_not_moved() {
    let pin = preempt::disable();
    let cpu = this_cpu_raw();
    wait_for_more_than(ticks(cpu), cpu, "no tick comes");
    wait_for_ticks();
    assert_eq!(this_cpu_raw(), cpu);
    drop(pin);
}
