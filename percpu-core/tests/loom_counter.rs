//! Counters under loom: all interleavings of a few adds, folds, sums and deaths with at most so many
//! preemptions, and all values that weakly ordered loads may read.
//!
//! `cargo xtask loom` runs it. A model makes its counter and looks at it afterwards unexplored. Its
//! threads are CPUs; two of them may be one CPU, a thread and what interrupts it, since each step on
//! a local part is one atomic access.

#![cfg(loom)]

#[path = "common/explore.rs"]
mod explore;

use std::cmp::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use explore::{explore, spawn};
use percpu_core::alloc::{AllocFlags, global};
use percpu_core::counter::{self, Count, HierarchicalCounter, LazyCounter, PercpuCounter};
use percpu_core::cpu::CpuId;
use percpu_core::{arch, area, host, hotplug, model, preempt};

const CPUS: usize = 3;

/// Boots, and keeps the other models of this program away: masks and the list of counters are
/// everyone's.
fn system() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    host::boot(CPUS).unwrap();
    guard
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

fn on<R>(n: usize, f: impl FnOnce() -> R) -> R {
    let _cpu = host::enter(cpu(n)).unwrap();
    f()
}

/// What a context of a CPU does to a counter.
type Context<C> = (usize, fn(&C));

/// Does all of `contexts` at once, and gives the counter back.
fn at_once<C: Send + Sync + 'static>(counter: C, contexts: &[Context<C>]) -> C {
    let counter = Arc::new(counter);
    model::start();
    let start = |&(n, work): &Context<C>| {
        let counter = counter.clone();
        spawn(move || {
            // SAFETY: the CPU's other contexts use what is safe against interrupts only.
            unsafe { arch::set_offset(area::offset(cpu(n))) };
            work(&counter);
        })
    };
    let threads: Vec<_> = contexts.iter().map(start).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    model::stop();
    Arc::into_inner(counter).expect("all threads are done")
}

fn local(counter: &PercpuCounter, n: usize) -> i32 {
    // SAFETY: the counter lives, and local parts are only accessed atomically.
    unsafe { counter.locals().read_on(cpu(n)) }
}

/// K1, K2, K3 and C3: two contexts of a CPU, of which the second one to add folds.
#[test]
fn an_interrupt_handlers_add_keeps_the_local_part_below_the_batch() {
    let _system = system();
    explore(3, || {
        let counter = at_once(
            PercpuCounter::new(1000).unwrap(),
            &[
                (0, |counter| counter.add(20)),
                // An interrupt handler of the same CPU.
                (0, |counter| counter.add(30)),
            ],
        );
        assert_eq!(counter.sum(), 1050, "K1");
        assert!(local(&counter, 0) < 32, "K2: {}", local(&counter, 0));
    });
}

/// K1, K3: folds on two CPUs.
#[test]
fn folds_on_two_cpus_lose_nothing() {
    let _system = system();
    explore(3, || {
        let counter = PercpuCounter::new(1000).unwrap();
        on(0, || counter.add(5));
        let counter =
            at_once(counter, &[(0, |counter| counter.add(32)), (1, |counter| counter.add(-32))]);
        assert_eq!((counter.read(), counter.sum()), (1005, 1005));
    });
}

/// K6 beside folds: what a sum sees is a moment, and later sums see later ones.
#[test]
fn a_sum_never_sees_a_fold_half_way() {
    let _system = system();
    explore(3, || {
        let counter = PercpuCounter::new(0).unwrap();
        on(0, || counter.add(31));
        let contexts: [Context<PercpuCounter>; 2] = [
            (0, |counter| counter.add(1)),
            (2, |counter| {
                let first = counter.sum();
                assert!([31, 32].contains(&first), "{first}");
                let second = counter.sum();
                assert!([first, 32].contains(&second), "{second} after {first}");
            }),
        ];
        at_once(counter, &contexts);
    });
}

/// C1, C2: at each step of a CPU's death a sum counts it exactly once.
#[test]
fn a_sum_counts_a_dying_cpu_once() {
    let _system = system();
    explore(4, || {
        let counter = PercpuCounter::new(100).unwrap();
        on(1, || counter.add(7));
        let counter = at_once(
            counter,
            &[
                (1, |_| {
                    // The CPU's last word, and what the thread that takes it down does then.
                    hotplug::set_down(cpu(1), true);
                    counter::cpu_dead(cpu(1));
                }),
                (0, |counter| assert_eq!(counter.sum(), 107)),
            ],
        );
        assert_eq!((counter.read(), local(&counter, 1), counter.sum()), (107, 0, 107));
        hotplug::set_down(cpu(1), false);
    });
}

/// K1, K6: a CPU that goes, comes back and counts is in every sum, with what it had counted. What it
/// counts meanwhile is in a sum or not.
#[test]
fn a_sum_counts_a_cpu_that_goes_and_comes_back() {
    let _system = system();
    explore(3, || {
        let counter = PercpuCounter::new(100).unwrap();
        on(1, || counter.add(7));
        let counter = at_once(
            counter,
            &[
                (1, |counter| {
                    hotplug::set_down(cpu(1), true);
                    counter::cpu_dead(cpu(1));
                    // `cpu_up`, and the CPU's first instruction.
                    hotplug::set_down(cpu(1), false);
                    counter.add(1);
                }),
                (0, |counter| {
                    let sums = [counter.sum(), counter.sum()];
                    assert!(sums.iter().all(|sum| [107, 108].contains(sum)), "{sums:?}");
                }),
            ],
        );
        assert_eq!((counter.read(), counter.sum()), (107, 108));
    });
}

/// K5: a fold that another thread asks for comes before the CPU's next life, or is refused.
#[test]
fn a_cpu_is_not_folded_after_it_was_started() {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    static FOLDED: AtomicUsize = AtomicUsize::new(0);
    static REFUSED: AtomicUsize = AtomicUsize::new(0);

    let _system = system();
    std::panic::set_hook(Box::new(|_| {}));
    explore(3, || {
        let counter = PercpuCounter::new(100).unwrap();
        on(1, || counter.add(7));
        hotplug::set_down(cpu(1), true);
        let counter = at_once(
            counter,
            &[
                (1, |counter| {
                    hotplug::set_down(cpu(1), false);
                    counter.add(1);
                }),
                (0, |_| {
                    let fold = std::panic::catch_unwind(|| counter::cpu_dead(cpu(1)));
                    let result = if fold.is_ok() { &FOLDED } else { &REFUSED };
                    result.fetch_add(1, Relaxed);
                }),
            ],
        );
        let local = local(&counter, 1);
        assert!([1, 8].contains(&local), "{local}");
        assert_eq!(counter.sum(), 108);
    });
    drop(std::panic::take_hook());
    assert!(FOLDED.load(Relaxed) > 0 && REFUSED.load(Relaxed) > 0, "the model shows nothing");
}

/// K4 beside a death: the dying CPU's part counts, folded or not.
#[test]
fn a_serial_limited_add_keeps_its_limit_beside_a_death() {
    let _system = system();
    explore(2, || {
        let counter = PercpuCounter::new(1000).unwrap();
        (1..3).for_each(|n| on(n, || counter.add(31)));
        let counter = at_once(
            counter,
            &[
                (1, |_| {
                    hotplug::set_down(cpu(1), true);
                    counter::cpu_dead(cpu(1));
                }),
                (0, |counter| {
                    // The shared part alone is far enough from the limit for two CPUs, not for three.
                    assert!(!counter.limited_add(1064, 3));
                    assert!(counter.limited_add(1064, 2));
                }),
            ],
        );
        assert_eq!(counter.sum(), 1064);
        hotplug::set_down(cpu(1), false);
    });
}

/// What a set replaces is what every sum had until then; the adds beside it are before it or after it.
#[test]
fn a_set_replaces_the_sum_at_one_moment() {
    let _system = system();
    explore(2, || {
        let counter = PercpuCounter::new(0).unwrap();
        on(1, || counter.add(5));
        let counter = at_once(
            counter,
            &[
                (1, |counter| counter.add(1)),
                (0, |counter| counter.set(1000)),
                (2, |counter| {
                    let sum = counter.sum();
                    assert!([5, 6, 1000, 1001].contains(&sum), "{sum}");
                }),
            ],
        );
        let sum = counter.sum();
        assert!([1000, 1001].contains(&sum), "{sum}");
    });
}

/// A counter that goes while a CPU dies is folded or gone.
#[test]
fn a_counter_is_destroyed_beside_a_death() {
    let _system = system();
    explore(3, || {
        let [counter, other] = PercpuCounter::new_many(3).unwrap();
        on(1, || other.add(7));
        hotplug::set_down(cpu(1), true);
        let counter = Mutex::new(Some(counter));
        at_once(
            counter,
            &[
                (2, |_| counter::cpu_dead(cpu(1))),
                (0, |counter| {
                    let counter = counter.lock().unwrap().take().unwrap();
                    PercpuCounter::destroy_many([counter]);
                }),
            ],
        );
        assert_eq!((other.read(), other.sum()), (10, 10));
        hotplug::set_down(cpu(1), false);
    });
}

/// Puts an area that a lazy counter may take into each CPU's cache: a model that looks for one in the
/// chunks has many more steps.
fn fill_caches() {
    // Each execution finds the same.
    global().drain_caches();
    for n in 0..CPUS {
        on(n, || {
            let area = global().alloc(8, 8, AllocFlags::NONE).unwrap();
            // SAFETY: allocated above, and not used.
            unsafe { global().free(area).unwrap() };
        });
    }
}

/// What interrupts an add once makes it fail once: one CPU alone keeps its one word.
#[test]
fn a_lazy_counter_stays_one_word_on_a_cpu_that_is_interrupted() {
    let _system = system();
    explore(3, || {
        let counter = at_once(
            LazyCounter::new(100),
            &[
                (0, |counter| counter.add(1)),
                // An interrupt handler of the same CPU.
                (0, |counter| counter.add(1)),
            ],
        );
        assert_eq!((counter.sum(), counter.parts()), (102, None));
    });
}

/// An add that two others got before makes the counter per-CPU, and nothing is lost.
#[test]
fn a_lazy_counter_becomes_per_cpu_when_cpus_contend() {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    static UPGRADES: AtomicUsize = AtomicUsize::new(0);

    let _system = system();
    explore(3, || {
        fill_caches();
        let add: fn(&LazyCounter) = |counter| counter.add(1);
        let counter = at_once(LazyCounter::new(100), &[(0, add), (1, add), (2, add)]);
        assert_eq!(counter.sum(), 103);
        UPGRADES.fetch_add(counter.parts().is_some().into(), Relaxed);
    });
    assert!(UPGRADES.load(Relaxed) > 0, "the model shows nothing");
}

/// Two upgrades at once, of which one comes late, beside adds: nothing is lost, or kept.
#[test]
fn the_loser_of_an_upgrade_leaves_nothing_behind() {
    let _system = system();
    explore(3, || {
        fill_caches();
        let areas = global().statistics().live;
        let upgrade: fn(&LazyCounter) = |counter| {
            counter.make_per_cpu().unwrap();
            counter.add(1);
        };
        let add: fn(&LazyCounter) = |counter| counter.add(1);
        let counter = at_once(LazyCounter::new(100), &[(0, upgrade), (1, upgrade), (2, add)]);
        assert_eq!(counter.sum(), 103);
        assert_eq!(global().statistics().live, areas + 1, "an area was kept");
        for n in 0..CPUS {
            on(n, || assert_eq!(preempt::count(), 0, "L1: a guard was kept"));
        }
    });
}

/// An add that makes the counter per-CPU, but comes late.
#[test]
fn an_add_that_is_the_loser_of_an_upgrade_is_counted() {
    let _system = system();
    explore(4, || {
        fill_caches();
        let counter = at_once(
            LazyCounter::new(100),
            &[
                (0, |counter| counter.add(1)),
                (1, |counter| (0..2).for_each(|_| counter.add(1))),
                (2, |counter| counter.make_per_cpu().unwrap()),
            ],
        );
        assert_eq!(counter.sum(), 103);
    });
}

/// A sum beside an upgrade, seen from a CPU that does not add.
#[test]
fn a_sum_of_a_lazy_counter_never_goes_back() {
    let _system = system();
    explore(4, || {
        fill_caches();
        let counter = at_once(
            LazyCounter::new(100),
            &[
                (0, |counter| counter.add(10)),
                (1, |counter| counter.make_per_cpu().unwrap()),
                (2, |counter| {
                    let first = counter.sum();
                    assert!([100, 110].contains(&first), "{first}");
                    let second = counter.sum();
                    assert!([first, 110].contains(&second), "{second} after {first}");
                }),
            ],
        );
        assert_eq!(counter.sum(), 110);
    });
}

/// What an add has changed in its leaf and not yet carried to the root may be more than the error
/// bound, so that the root alone does not tell what the value is.
#[test]
fn a_hierarchical_counter_is_compared_by_its_exact_value() {
    let _system = system();
    explore(3, || {
        // Leaves keep from -8 to 7.
        let counter = HierarchicalCounter::new(0, 24).unwrap();
        assert_eq!(counter.error_bound(), 24);
        (1..3).for_each(|n| on(n, || counter.add(7)));
        let counter = at_once(
            counter,
            &[
                (0, |counter| counter.add(8)),
                // An interrupt handler of the same CPU: it carries -16, and the other 16 later.
                (0, |counter| counter.add(-1)),
                // It is 14, 13, 22 or 21.
                (2, |counter| assert_eq!(counter.compare(9), Ordering::Greater)),
            ],
        );
        assert_eq!(counter.sum(), 21);
    });
}

/// Carries telescope, whatever their order.
#[test]
fn a_hierarchical_counter_has_its_error_when_all_adds_are_done() {
    let _system = system();
    explore(3, || {
        let counter = at_once(
            HierarchicalCounter::new(50, 3).unwrap(),
            &[
                (0, |counter| (0..2).for_each(|_| counter.add(3))),
                (0, |counter| counter.add(-5)),
                (1, |counter| {
                    counter.add(7);
                    let sum = counter.sum();
                    // The sum may have any of the others.
                    assert!((52..=63).contains(&sum), "{sum}");
                }),
            ],
        );
        assert_eq!(counter.sum(), 58);
        assert!(counter.read().abs_diff(58) <= 3, "{}", counter.read());
    });
}
