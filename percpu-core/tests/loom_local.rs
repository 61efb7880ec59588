//! Local locks and statistics under loom: a thread and what interrupts it, a writer and a reader,
//! in all interleavings, and with all values that weakly ordered loads may read.
//!
//! `cargo xtask loom` runs it.

#![cfg(loom)]

#[path = "common/explore.rs"]
mod explore;

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use explore::{explore, spawn};
use percpu_core::alloc::PerCpuBox;
use percpu_core::cpu::CpuId;
use percpu_core::local::{LocalLock, SeqStats};
use percpu_core::model::AtomicU32;
use percpu_core::{arch, area, host, irq, model, preempt};

const CPUS: usize = 2;

/// Boots, and keeps the other models of this program away.
fn system() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    host::boot(CPUS).unwrap();
    guard
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

/// What a context of a CPU does.
type Context<T, R> = (usize, fn(&PerCpuBox<T>) -> R);

/// Does all of `contexts` at once.
fn at_once<T: Send + 'static, R: Send + 'static>(
    boxed: PerCpuBox<T>,
    contexts: &[Context<T, R>],
) -> (PerCpuBox<T>, Vec<R>) {
    let boxed = Arc::new(boxed);
    model::start();
    let start = |&(n, work): &Context<T, R>| {
        let boxed = boxed.clone();
        spawn(move || {
            // SAFETY: the CPU's other contexts use what is safe against interrupts only.
            unsafe { arch::set_offset(area::offset(cpu(n))) };
            work(&boxed)
        })
    };
    let threads: Vec<_> = contexts.iter().map(start).collect();
    let results = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    model::stop();
    (Arc::into_inner(boxed).expect("all threads are done"), results)
}

/// Adds one in two steps, if the lock is open; whether it was.
fn add_if_open(guard: Option<impl Deref<Target = AtomicU32>>) -> u32 {
    guard.map_or(0, |value| {
        value.store(value.load(Relaxed) + 1, Relaxed);
        1
    })
}

/// A handler that strikes anywhere gets the lock or does not; whoever has it has the value alone.
#[test]
fn a_lock_is_its_holders_whatever_interrupts_him() {
    let _system = system();
    explore(3, || {
        let boxed = PerCpuBox::try_new_with(|_| LocalLock::new(AtomicU32::new(0))).unwrap();
        let (boxed, added) = at_once(
            boxed,
            &[
                (0, |lock| (0..2).map(|_| add_if_open(lock.try_lock())).sum::<u32>()),
                // Interrupts it.
                (0, |lock| add_if_open(lock.try_lock_irqsave())),
                // Has a lock of its own.
                (1, |lock| add_if_open(Some(lock.lock())) - 1),
            ],
        );
        let added: u32 = added.iter().sum();
        assert!(added > 0);
        let of = |n| {
            let _cpu = host::enter(cpu(n)).unwrap();
            assert_eq!(preempt::count(), 0);
            boxed.try_lock().expect("nobody holds it").load(Relaxed)
        };
        assert_eq!((of(0), of(1)), (added, 1));
    });
}

/// Boehm's reader and writer: what is read is of one moment, and not of one before the last.
#[test]
fn statistics_are_of_one_moment() {
    static SEEN: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

    let _system = system();
    explore(3, || {
        let boxed = PerCpuBox::<SeqStats<2>>::try_new_zeroed().unwrap();
        let (boxed, _) = at_once(
            boxed,
            &[
                (0, |stats| (0..2).for_each(|_| stats.update(&irq::disable(), [1, 10]))),
                (1, |stats| {
                    let mut last = 0;
                    for [a, b] in (0..2).filter_map(|_| stats.try_snapshot(cpu(0))) {
                        assert_eq!(b, 10 * a, "numbers of different moments");
                        assert!(a >= last, "an older moment than the one before");
                        last = a;
                        SEEN[a as usize].fetch_add(1, Relaxed);
                    }
                }),
            ],
        );
        assert_eq!(boxed.sum(), [2, 20]);
    });
    let seen = SEEN.each_ref().map(|seen| seen.load(Relaxed));
    assert!(seen.iter().all(|&seen| seen > 0), "the model shows little: {seen:?}");
}
