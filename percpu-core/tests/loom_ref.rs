//! `PercpuRef` under loom: all interleavings of a few operations with a change of mode, with at most
//! so many preemptions, and all values that weakly ordered loads may read.
//!
//! `cargo xtask loom` runs it. A model makes its ref unexplored, opens words as it needs them, and
//! looks at everything afterwards. Its threads are CPUs; two of them may be one CPU, a thread and
//! what interrupts it, since an operation is one step for its CPU.

#![cfg(loom)]

#[path = "common/explore.rs"]
mod explore;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use explore::{explore, spawn};
use percpu_core::cpu::CpuId;
use percpu_core::model;
use percpu_core::refcount::{PercpuRef, RefError, RefFlags, RefGuard, Release};
use percpu_core::var::PerCpuPtr;
use percpu_core::view::{REF_BIAS, REF_OPEN, REF_PERCPU, RefView, ref_count};
use percpu_core::{arch, area, cpu, host};

const CPUS: usize = 3;

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

fn on<R>(n: usize, f: impl FnOnce() -> R) -> R {
    let _cpu = host::enter(cpu(n)).unwrap();
    f()
}

/// What the ref is to. A use and the release are exclusive accesses to one cell: loom complains
/// unless the release comes after.
struct Object {
    used: [model::UnsafeCell<u8>; CPUS],
    releases: Arc<AtomicUsize>,
}

// SAFETY: nothing is in the cells, and loom sees to it that they are used one after the other.
unsafe impl Sync for Object {}

impl Object {
    fn is_used_by(&self, cpu: usize) {
        self.used[cpu].get();
    }
}

impl Release for Object {
    fn release(&self) {
        (0..CPUS).for_each(|cpu| self.is_used_by(cpu));
        self.releases.fetch_add(1, Relaxed);
    }
}

type Ref = PercpuRef<Object>;

/// A ref in which the words of the `open` CPUs are open. With two of them each has a balance of 0, so
/// that the shared count has nothing to spare.
fn new(flags: RefFlags, open: &[usize]) -> (Ref, Arc<AtomicUsize>) {
    let releases = Arc::new(AtomicUsize::new(0));
    let object =
        Object { used: [const { model::UnsafeCell::new(0) }; CPUS], releases: releases.clone() };
    let object = PercpuRef::new(object, flags).unwrap();
    match *open {
        [a, b] => {
            let guard = on(a, || object.get());
            on(b, || drop(guard));
        }
        _ => open.iter().for_each(|&n| on(n, || drop(object.get()))),
    }
    (object, releases)
}

/// What a context of a CPU does, or a thread that is none.
type Context<W> = (usize, fn(&W));

/// No CPU.
const NONE: usize = usize::MAX;

/// Does all of `contexts` at once, and gives the ref back.
fn at_once<W: Send + Sync + 'static>(object: W, contexts: &[Context<W>]) -> W {
    let object = Arc::new(object);
    model::start();
    let start = |&(n, work): &Context<W>| {
        let object = object.clone();
        spawn(move || {
            if n != NONE {
                // SAFETY: the CPU's other contexts use what is safe against interrupts only.
                unsafe { arch::set_offset(area::offset(cpu(n))) };
            }
            work(&object);
        })
    };
    let threads: Vec<_> = contexts.iter().map(start).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    model::stop();
    Arc::into_inner(object).expect("all threads are done")
}

/// All references, and the number of open words, seen from outside.
fn total(object: &Ref) -> (i64, usize) {
    let view = std::ptr::with_exposed_provenance::<RefView>(object.view_address());
    // SAFETY: the ref is there, and all threads are done.
    let view = unsafe { view.read() };
    let words = PerCpuPtr::<i64>::from_raw(view.words as usize);
    // SAFETY: as above.
    let words = cpu::booted_once().iter().map(|cpu| unsafe { words.read_on(cpu) });
    let open: Vec<_> = words.filter(|&word| word >= 0).collect();
    let bias = if view.shared & REF_PERCPU != 0 { REF_BIAS } else { 0 };
    let balance: i64 = open.iter().map(|word| word - REF_OPEN).sum();
    (ref_count(view.shared) - bias + balance, open.len())
}

fn use_if_live(object: &Ref, n: usize) {
    if let Some(guard) = object.tryget_live() {
        guard.is_used_by(n);
    }
}

#[test]
fn a_kill_releases_once_and_after_the_last_use() {
    let _system = system();
    explore(3, || kill_beside_two_users(&[0, 2]));
    explore(2, || kill_beside_two_users(&[0]));
    explore(2, || kill_beside_two_users(&[]));
}

fn kill_beside_two_users(open: &[usize]) {
    let (object, releases) = new(RefFlags::NONE, open);
    let object = at_once(
        object,
        &[
            (0, |object| use_if_live(object, 0)),
            (1, |object| object.kill().unwrap()),
            (2, |object| use_if_live(object, 2)),
        ],
    );
    assert_eq!((total(&object), releases.load(Relaxed)), ((0, 0), 1));
}

#[test]
fn a_thread_that_is_no_cpu_counts_with_those_that_are() {
    let _system = system();
    explore(3, || {
        let (object, releases) = new(RefFlags::NONE, &[0]);
        let object = at_once(
            object,
            &[
                (0, |object| use_if_live(object, 0)),
                (1, |object| object.kill().unwrap()),
                (NONE, |object| use_if_live(object, 2)),
            ],
        );
        assert_eq!((total(&object), releases.load(Relaxed)), ((0, 0), 1));
    });
    // It takes what a CPU gives back.
    explore(3, || {
        let (object, releases) = new(RefFlags::NONE, &[0, 1]);
        object.get().into_raw();
        let object = at_once(
            object,
            &[
                (0, |object| {
                    // SAFETY: the reference was taken above.
                    let guard = unsafe { RefGuard::from_raw(object) };
                    guard.is_used_by(0);
                }),
                (NONE, |object| object.kill().unwrap()),
            ],
        );
        assert_eq!((total(&object), releases.load(Relaxed)), ((0, 0), 1));
    });
}

#[test]
fn an_interrupt_between_get_and_put_changes_nothing() {
    let _system = system();
    explore(2, || {
        let (object, releases) = new(RefFlags::NONE, &[0]);
        let object = at_once(
            object,
            &[
                (0, |object| use_if_live(object, 0)),
                // Interrupts it.
                (0, |object| use_if_live(object, 1)),
                (1, |object| object.kill().unwrap()),
            ],
        );
        assert_eq!((total(&object), releases.load(Relaxed)), ((0, 0), 1));
    });
}

#[test]
fn a_reference_that_is_given_back_elsewhere_is_counted() {
    let _system = system();
    explore(3, || {
        let (object, releases) = new(RefFlags::NONE, &[0, 1]);
        on(0, || {
            object.get().into_raw();
        });
        let object = at_once(
            object,
            &[
                (0, |object| use_if_live(object, 0)),
                (1, |object| {
                    // SAFETY: the reference was taken above.
                    let guard = unsafe { RefGuard::from_raw(object) };
                    guard.is_used_by(1);
                }),
                (2, |object| object.kill().unwrap()),
            ],
        );
        assert_eq!((total(&object), releases.load(Relaxed)), ((0, 0), 1));
    });
}

#[test]
fn no_reference_to_a_live_ref_is_had_after_the_confirmation() {
    let _system = system();
    for open in [true, false] {
        explore(3, if open { || confirm(&[0, 1]) } else { || confirm(&[1]) });
    }
}

fn confirm(open: &[usize]) {
    use std::sync::atomic::Ordering::{Acquire, Release};

    let (object, releases) = new(RefFlags::NONE, open);
    // One reference stays: the ref is dead, but there.
    on(1, || {
        object.get().into_raw();
    });
    let confirmed = model::AtomicBool::new(false);
    let (object, _) = at_once(
        (object, confirmed),
        &[
            (0, |(object, confirmed)| {
                for _ in 0..2 {
                    let late = confirmed.load(Acquire);
                    let live = object.tryget_live();
                    assert!(!late || live.is_none(), "a reference after the confirmation");
                }
            }),
            (1, |(object, confirmed)| {
                let mut count = 0;
                let killed = object.kill_and_confirm(|| {
                    count = shared_count(object);
                    confirmed.store(true, Release);
                });
                killed.unwrap();
                // The first one has gone, and none comes that was asked for before.
                let now = shared_count(object);
                assert!(now < count, "{now} references after {count}");
            }),
        ],
    );
    assert_eq!((total(&object), releases.load(Relaxed)), ((1, 0), 0));
}

/// The shared count, while others change it.
fn shared_count(object: &Ref) -> i64 {
    let shared = object.view_address() + std::mem::offset_of!(RefView, shared);
    let shared = std::ptr::with_exposed_provenance::<model::AtomicU64>(shared);
    // SAFETY: the ref is there, and its shared word is such an atomic.
    ref_count(unsafe { &*shared }.load(Relaxed))
}

#[test]
fn of_two_kills_one_gives_the_first_reference_back() {
    fn kill(object: &Ref) {
        match object.kill() {
            Ok(()) | Err(RefError::Dead) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn two_kills(contexts: &[Context<Ref>]) {
        let (object, releases) = new(RefFlags::NONE, &[0, 1]);
        let object = at_once(object, contexts);
        assert_eq!((total(&object), releases.load(Relaxed)), ((0, 0), 1));
    }

    let _system = system();
    explore(2, || two_kills(&[(0, kill), (1, kill)]));
    explore(1, || two_kills(&[(0, kill), (1, kill), (2, |object| use_if_live(object, 2))]));
}

#[test]
fn a_resurrection_beside_the_last_put_keeps_one_reference() {
    let _system = system();
    explore(3, || {
        let (object, releases) = new(RefFlags::ALLOW_REINIT, &[0]);
        on(0, || {
            object.get().into_raw();
        });
        on(1, || object.kill()).unwrap();
        let object = at_once(
            object,
            &[
                (0, |object| {
                    // SAFETY: the reference was taken above.
                    let guard = unsafe { RefGuard::from_raw(object) };
                    guard.is_used_by(0);
                    drop(guard);
                    use_if_live(object, 1);
                }),
                (1, |object| object.resurrect().unwrap()),
            ],
        );
        // Either the put was the last of the first life, or none of this one.
        let before = releases.load(Relaxed);
        assert_eq!((total(&object).0, object.is_percpu(), object.is_dying()), (1, true, false));
        assert!(before <= 1);
        on(2, || object.kill()).unwrap();
        assert_eq!((total(&object), releases.load(Relaxed)), ((0, 0), before + 1));
    });
}

#[test]
fn a_kill_beside_a_resurrection_ends_alive_or_released() {
    let _system = system();
    explore(2, || {
        let (object, releases) = new(RefFlags::ALLOW_REINIT, &[0, 1]);
        let object = at_once(
            object,
            &[
                (0, |object| {
                    if let Some(guard) = object.tryget() {
                        drop(guard.clone());
                    }
                }),
                (1, |object| object.kill().unwrap()),
                (2, |object| match object.resurrect() {
                    Ok(()) | Err(RefError::Alive) => {}
                    Err(error) => panic!("{error}"),
                }),
            ],
        );
        let alive = !object.is_dying();
        assert_eq!(total(&object).0, i64::from(alive));
        assert!(alive || releases.load(Relaxed) == 1);
        let before = releases.load(Relaxed);
        if alive {
            on(0, || object.kill()).unwrap();
            assert_eq!((total(&object), releases.load(Relaxed)), ((0, 0), before + 1));
        }
    });
}

#[test]
fn no_word_is_opened_behind_the_one_who_closes_them() {
    let _system = system();
    explore(3, || {
        let twice: fn(&Ref) = |object| (0..2).for_each(|_| drop(object.get()));
        words_are_closed(&[(0, twice), (1, PercpuRef::switch_to_atomic)]);
    });
    // An interrupt handler that opens what it has interrupted the opening of.
    explore(2, || {
        let once: fn(&Ref) = |object| drop(object.get());
        words_are_closed(&[(0, once), (0, once), (1, PercpuRef::switch_to_atomic)]);
    });
}

fn words_are_closed(contexts: &[Context<Ref>]) {
    let (object, releases) = new(RefFlags::NONE, &[]);
    let object = at_once(object, contexts);
    assert_eq!((total(&object), releases.load(Relaxed)), ((1, 0), 0));
}

#[test]
fn switching_to_per_cpu_mode_and_back_loses_nothing() {
    let _system = system();
    explore(3, || {
        let (object, releases) = new(RefFlags::INIT_ATOMIC, &[]);
        let object = at_once(
            object,
            &[
                (0, |object| (0..2).for_each(|_| use_if_live(object, 0))),
                (1, |object| {
                    object.switch_to_percpu();
                    object.switch_to_atomic();
                }),
            ],
        );
        assert_eq!((total(&object), releases.load(Relaxed)), ((1, 0), 0));
        on(0, || object.kill()).unwrap();
        assert_eq!(releases.load(Relaxed), 1);
    });
}
