//! Per-CPU values that are changed in place: cells, locks, statistics.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use percpu_core::cpu::{self, CpuId};
use percpu_core::local::{IrqCell, LocalLock, SeqStats};
use percpu_core::{irq, percpu, preempt};

use percpu_guest::kernel::arch::tsc;
use percpu_guest::kernel::testing::run_on;
use percpu_guest::kernel::{sched, tick};

percpu! {
    static CELL: PerCpu<IrqCell<u64>> = IrqCell::new(0);
    static LOCK: PerCpu<LocalLock<u64>> = LocalLock::new(0);
    static STATS: PerCpu<SeqStats<2>> = SeqStats::new();
}

/// What the timer's handler has found: let in, turned away.
static ENTERED: AtomicU32 = AtomicU32::new(0);
static REFUSED: AtomicU32 = AtomicU32::new(0);

fn note(entered: bool) {
    let found = if entered { &ENTERED } else { &REFUSED };
    found.fetch_add(1, Ordering::Relaxed);
}

/// Waits for interrupts, as long as the handler has not come `times` times more.
fn wait_for(found: &AtomicU32, times: u32) {
    let until = found.load(Ordering::Relaxed) + times;
    let late = tsc::now_ns() + 5_000_000_000;
    while found.load(Ordering::Relaxed) < until {
        assert!(tsc::now_ns() < late, "no interrupt came by");
        core::hint::spin_loop();
    }
}

/// A handler that comes while a thread is inside is turned away, one that comes later is not.
#[percpu_guest::test(cpus = 1, possible = 1)]
fn an_interrupt_is_turned_away_from_a_cell_in_use() {
    tick::set_hook(|| {
        let pin = preempt::disable();
        note(CELL.with_mut(&pin, |value| *value += 1).is_ok());
    });
    let pin = preempt::disable();
    let during = CELL.with_mut(&pin, |value| {
        let before = ENTERED.load(Ordering::Relaxed);
        let was = *value;
        wait_for(&REFUSED, 2);
        assert_eq!(*value, was);
        ENTERED.load(Ordering::Relaxed) - before
    });
    assert_eq!(during, Ok(0));
    wait_for(&ENTERED, 2);
}

/// So it is with a lock; and a holder who masks interrupts is not interrupted at all.
#[percpu_guest::test(cpus = 1, possible = 1)]
fn an_interrupt_is_turned_away_from_a_lock_that_is_held() {
    tick::set_hook(|| {
        let held = LOCK.try_lock();
        note(held.is_some());
    });
    let held = LOCK.lock();
    let before = ENTERED.load(Ordering::Relaxed);
    wait_for(&REFUSED, 2);
    assert_eq!(ENTERED.load(Ordering::Relaxed), before);
    drop(held);
    wait_for(&ENTERED, 2);
    let held = LOCK.lock_irqsave();
    let found = ENTERED.load(Ordering::Relaxed) + REFUSED.load(Ordering::Relaxed);
    let until = tsc::now_ns() + 5_000_000;
    while tsc::now_ns() < until {
        core::hint::spin_loop();
    }
    assert_eq!(ENTERED.load(Ordering::Relaxed) + REFUSED.load(Ordering::Relaxed), found);
    drop(held);
}

/// One CPU reads another's numbers while they are written, by a thread and by its interrupts.
#[percpu_guest::test(cpus = 2, possible = 2)]
fn statistics_are_read_as_of_one_moment() {
    static OVER: AtomicBool = AtomicBool::new(false);
    tick::set_hook(|| {
        let masked = irq::disable();
        STATS.update(&masked, [2, 20]);
    });
    sched::spawn_bound(
        |_| {
            while !OVER.load(Ordering::Relaxed) {
                let masked = irq::disable();
                STATS.update(&masked, [1, 10]);
            }
        },
        1,
    );
    run_on(0, || {
        let one = CpuId::new(1).expect("possible");
        while STATS.snapshot(one) == [0, 0] {
            sched::yield_now();
        }
        for _ in 0..50_000 {
            let [packets, bytes] = STATS.snapshot(one);
            assert_eq!(bytes, 10 * packets);
        }
    });
    OVER.store(true, Ordering::Relaxed);
    let [packets, bytes] = STATS.sum();
    assert_eq!(bytes, 10 * packets, "over {} CPUs", cpu::booted_once().count());
}
