//! Cells, locks and statistics of one CPU, with interrupt handlers that come in the middle: called
//! by hand where it matters, and as signals wherever they happen to strike.

#[path = "common/scale.rs"]
mod scale;
#[path = "common/threads.rs"]
mod threads;

use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(not(miri))]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

use percpu_core::alloc::PerCpuBox;
use percpu_core::cpu::{self, CpuId};
use percpu_core::local::{IrqCell, LocalLock, Reentered, SeqStats};
use percpu_core::{host, irq, percpu, preempt};
use scale::scaled;
use threads::{Done, wait_until};

percpu! {
    static CELL: PerCpu<IrqCell<[u64; 2]>> = IrqCell::new([0; 2]);
    static LOCK: PerCpu<LocalLock<Vec<u32>>> = LocalLock::new(Vec::new());
    static STATS: PerCpu<SeqStats<3>> = SeqStats::new();
    #[cfg(not(miri))]
    static PAIR: PerCpu<SeqStats<2>> = SeqStats::new();
}

const CPUS: usize = 4;

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

fn system() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    host::boot(CPUS).unwrap();
    guard
}

fn enter(n: usize) -> host::CpuThread {
    host::enter_when_free(cpu(n)).unwrap()
}

#[test]
fn a_cell_in_use_turns_the_second_user_away() {
    let _system = system();
    let _cpu = enter(0);
    let pin = preempt::disable();
    let handler = || {
        let irq = irq::disable();
        let by_irq = CELL.with_mut_irq(&irq, |value| value[0] += 100);
        let by_pin = CELL.with_mut(&preempt::disable(), |value| value[0] += 100);
        (by_irq, by_pin)
    };
    let inner = CELL.with_mut(&pin, |value| {
        let before = *value;
        value[0] += 1;
        let turned_away = handler();
        assert_eq!(*value, [before[0] + 1, before[1]], "the value changed under its user");
        turned_away
    });
    assert_eq!(inner, Ok((Err(Reentered), Err(Reentered))));
    assert_eq!(handler(), (Ok(()), Ok(())), "the value was not given back");
    // Another CPU has a value of its own.
    let in_use_here = CELL.with_mut(&pin, |_| {
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let _cpu = enter(1);
                CELL.with_mut(&preempt::disable(), |value| value[1] += 1)
            });
            other.join().unwrap()
        })
    });
    assert_eq!(in_use_here, Ok(Ok(())));
}

#[test]
fn a_panic_gives_the_cell_back() {
    let _system = system();
    let _cpu = enter(0);
    let cells = PerCpuBox::<IrqCell<u32>>::try_new_zeroed().unwrap();
    let panics = || {
        let pin = preempt::disable();
        cells.with_mut(&pin, |value| {
            *value = 5;
            panic!("on purpose")
        })
    };
    let _: Box<_> = catch_unwind(AssertUnwindSafe(|| panics().map(|(): ()| ()))).unwrap_err();
    assert_eq!(preempt::count(), 0);
    assert_eq!(cells.with_mut(&preempt::disable(), |value| *value), Ok(5));
}

#[test]
fn a_lock_that_is_taken_is_refused_with_the_way_out() {
    let _system = system();
    let _cpu = enter(2);
    let mut guard = LOCK.lock();
    guard.push(1);
    assert_eq!(preempt::count(), 1);
    // A handler comes.
    assert!(LOCK.try_lock().is_none() && LOCK.try_lock_irqsave().is_none());
    for lock in [|| drop(LOCK.lock()), || drop(LOCK.lock_irqsave())] {
        let panic = catch_unwind(lock).unwrap_err();
        let said = panic.downcast_ref::<&str>().unwrap();
        assert!(said.contains("lock_irqsave everywhere, or by try_lock in the handler"), "{said}");
    }
    assert_eq!((preempt::count(), &**guard), (1, &[1][..]), "who was refused left a guard");
    drop(guard);
    assert_eq!(preempt::count(), 0);
    {
        let mut guard = LOCK.lock_irqsave();
        guard.push(2);
        assert!(LOCK.try_lock().is_none());
    }
    assert_eq!(*LOCK.try_lock().unwrap(), [1, 2]);
    // A CPU cannot be left with its lock taken, and the next one to be the CPU finds it open.
    drop(_cpu);
    let _cpu = enter(2);
    assert_eq!(std::mem::take(&mut *LOCK.lock()), [1, 2]);
}

#[test]
fn a_panic_opens_the_lock() {
    let _system = system();
    let _cpu = enter(3);
    let locks = PerCpuBox::try_new_with(|cpu| LocalLock::new(vec![cpu.index()])).unwrap();
    let panics = || {
        let mut guard = locks.lock_irqsave();
        guard.push(9);
        panic!("on purpose");
    };
    assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
    assert_eq!(*locks.lock(), [3, 9]);
}

#[test]
fn statistics_are_of_one_moment() {
    const LOOKS: usize = scaled(100_000);
    let _system = system();
    let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let rounds = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let _cpu = enter(1);
            let mut rounds = 0;
            while !done.load(Relaxed) {
                STATS.update(&irq::disable(), [1, 3, 5]);
                STATS.update_pinned(&preempt::disable(), [1, 3, 5]);
                rounds += 2;
                begun.store(true, SeqCst);
            }
            rounds
        });
        let ending = Done(&done);
        wait_until(|| begun.load(SeqCst));
        let mut last = 0;
        for _ in 0..LOOKS {
            let [a, b, c] = STATS.snapshot(cpu(1));
            assert_eq!((b, c), (3 * a, 5 * a), "numbers of different moments");
            assert!(a >= last && a > 0, "an older moment than the one before");
            last = a;
        }
        drop(ending);
        writer.join().unwrap()
    });
    assert_eq!(STATS.sum(), [1, 3, 5].map(|n| n * rounds));
    assert_eq!(STATS.try_snapshot(cpu(0)), Some([0; 3]));
}

#[test]
fn statistics_wrap() {
    let _system = system();
    let stats = {
        let _cpu = enter(0);
        let stats = PerCpuBox::<SeqStats<1>>::try_new_zeroed().unwrap();
        stats.update(&irq::disable(), [u64::MAX]);
        stats
    };
    let _cpu = enter(1);
    stats.update(&irq::disable(), [3]);
    assert_eq!((stats.snapshot(cpu(0)), stats.sum()), ([u64::MAX], [2]));
    assert_eq!(cpu::current(), cpu(1));
}

/// What an interrupt handler did, and did not, get.
#[cfg(not(miri))]
static HANDLED: AtomicU64 = AtomicU64::new(0);
#[cfg(not(miri))]
static REFUSED: AtomicU64 = AtomicU64::new(0);

#[cfg(not(miri))]
extern "C" fn handler(_: libc::c_int) {
    let pin = preempt::disable();
    let used = CELL.with_mut(&pin, |value| {
        value[0] += 1;
        value[1] += 1;
    });
    match used {
        Ok(()) => HANDLED.fetch_add(1, Relaxed),
        Err(Reentered) => REFUSED.fetch_add(1, Relaxed),
    };
    // A handler that reads what it may have interrupted.
    if let Some([a, b]) = PAIR.try_snapshot(pin.cpu()) {
        assert_eq!(b, 2 * a);
    }
}

/// A signal is to a thread what an interrupt is to a CPU.
#[test]
#[cfg(not(miri))]
fn an_interrupt_anywhere_finds_a_cell_whole_or_in_use() {
    let _system = system();
    let _cpu = enter(3);
    let done = AtomicBool::new(false);
    // SAFETY: `handler` does nothing but lock-free operations.
    let before = unsafe { libc::signal(libc::SIGUSR2, handler as *const () as libc::sighandler_t) };
    assert_ne!(before, libc::SIG_ERR);
    // SAFETY: asks who this thread is.
    let this_thread = unsafe { libc::pthread_self() };
    let begin = CELL.with_mut(&preempt::disable(), |value| *value).unwrap();
    let mut rounds = 0_u64;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                // SAFETY: the thread waits for this one, so it lives.
                assert_eq!(unsafe { libc::pthread_kill(this_thread, libc::SIGUSR2) }, 0);
                std::thread::sleep(std::time::Duration::from_micros(5));
            }
        });
        let _ending = Done(&done);
        while (HANDLED.load(Relaxed) < 500 || REFUSED.load(Relaxed) < 500) && rounds < 1 << 27 {
            rounds += 1;
            let pin = preempt::disable();
            let used = CELL.with_mut(&pin, |value| {
                assert_eq!(value[0] - begin[0], value[1] - begin[1]);
                value[0] += 1;
                std::hint::black_box(&mut *value);
                value[1] += 1;
            });
            assert_eq!(used, Ok(()), "a handler left the cell in use");
            PAIR.update_pinned(&pin, [1, 2]);
        }
    });
    // SAFETY: the handler was the default before.
    unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
    let (handled, refused) = (HANDLED.load(Relaxed), REFUSED.load(Relaxed));
    let value = CELL.with_mut(&preempt::disable(), |value| *value).unwrap();
    assert_eq!([value[0] - begin[0], value[1] - begin[1]], [rounds + handled; 2]);
    assert!(handled > 0 && refused > 0, "{handled} handled, {refused} refused: nothing was shown");
    assert_eq!(PAIR.snapshot(cpu(3)), [rounds, 2 * rounds]);
}
