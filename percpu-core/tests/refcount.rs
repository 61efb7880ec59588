//! `PercpuRef`, with threads as CPUs: the release comes once and last, `tryget_live` ends with the
//! confirmation, modes, further lives, and CPUs that come and go.

#[path = "common/scale.rs"]
mod scale;
#[path = "common/threads.rs"]
mod threads;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use percpu_core::alloc::{self, AllocError};
use percpu_core::cpu::{self, CpuId};
use percpu_core::platform::{Global, Platform};
use percpu_core::refcount::{PercpuRef, RefError, RefFlags, RefGuard, Release};
use percpu_core::var::PerCpuPtr;
use percpu_core::view::{REF_BIAS, REF_DEAD, REF_ONE, REF_OPEN, REF_PERCPU, RefView, ref_count};
use percpu_core::{host, hotplug, preempt};
use scale::scaled;
use threads::{Done, Meeting, wait_until};

const CPUS: usize = 4;
const ROUNDS: usize = scaled(300);

fn system() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    host::boot(CPUS).unwrap();
    guard
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

fn on_cpu<R>(n: usize, f: impl FnOnce() -> R) -> R {
    let _cpu = host::enter_when_free(cpu(n)).unwrap();
    f()
}

/// What a test sees of an object from outside.
#[derive(Default)]
struct State {
    users: AtomicI64,
    releases: AtomicUsize,
}

impl State {
    fn releases(&self) -> usize {
        self.releases.load(SeqCst)
    }
}

/// An object that complains when it is released with users, or used after a release.
struct Object(Arc<State>);

impl Release for Object {
    fn release(&self) {
        assert_eq!(self.0.users.load(SeqCst), 0, "released while it is used");
        self.0.releases.fetch_add(1, SeqCst);
    }
}

impl Object {
    fn in_use(&self) {
        self.0.users.fetch_add(1, SeqCst);
        let released = self.0.releases();
        std::hint::spin_loop();
        assert_eq!(self.0.releases(), released, "released under a reference");
        self.0.users.fetch_sub(1, SeqCst);
    }
}

fn new(flags: RefFlags) -> (PercpuRef<Object>, Arc<State>) {
    let state = Arc::new(State::default());
    (PercpuRef::new(Object(state.clone()), flags).unwrap(), state)
}

/// A ref as somebody sees it who reads its memory, while nobody changes it.
fn view<T: Release>(of: &PercpuRef<T>) -> RefView {
    let address = of.view_address();
    // SAFETY: the ref is there, and nobody changes it now; a view is integers.
    unsafe { std::ptr::with_exposed_provenance::<RefView>(address).read() }
}

fn words<T: Release>(of: &PercpuRef<T>) -> Vec<i64> {
    let words = PerCpuPtr::<i64>::from_raw(view(of).words as usize);
    // SAFETY: the ref is there.
    cpu::booted_once().iter().map(|cpu| unsafe { words.read_on(cpu) }).collect()
}

fn open_words<T: Release>(of: &PercpuRef<T>) -> usize {
    words(of).into_iter().filter(|&word| word >= 0).count()
}

/// All references, counted from outside.
fn total<T: Release>(of: &PercpuRef<T>) -> i64 {
    let shared = view(of).shared;
    let bias = if shared & REF_PERCPU != 0 { REF_BIAS } else { 0 };
    let balances = words(of).into_iter().filter(|&word| word >= 0).map(|word| word - REF_OPEN);
    ref_count(shared) - bias + balances.sum::<i64>()
}

/// Takes references on CPU 0 and gives them back on CPU 1.
fn move_references(of: &PercpuRef<Object>, count: usize) {
    let taken: Vec<RefGuard<'_, Object>> = on_cpu(0, || (0..count).map(|_| of.get()).collect());
    on_cpu(1, || drop(taken));
}

#[test]
fn operations_in_per_cpu_mode_stay_on_their_cpu() {
    let _system = system();
    let (object, _) = new(RefFlags::NONE);
    assert!(object.is_percpu() && !object.is_dying() && !object.is_zero());
    assert_eq!((open_words(&object), total(&object)), (0, 1));
    // The first operation of each CPU opens its word.
    on_cpu(0, || drop(object.get()));
    assert_eq!((open_words(&object), total(&object)), (1, 1));
    on_cpu(1, || drop(object.get()));
    let shared = view(&object).shared;
    move_references(&object, 10);
    assert_eq!(view(&object).shared, shared, "an operation went to the shared word");
    // What each CPU took first is in the shared word.
    assert_eq!((words(&object)[0] - REF_OPEN, words(&object)[1] - REF_OPEN), (9, -11));
    assert_eq!(total(&object), 1);
}

#[test]
fn a_kill_collects_what_all_cpus_have_counted() {
    let _system = system();
    let (object, state) = new(RefFlags::NONE);
    move_references(&object, 7);
    let guards = [0, 2, 3].map(|n| on_cpu(n, || object.get()));
    on_cpu(2, || object.kill()).unwrap();
    assert!(object.is_dying() && !object.is_percpu());
    assert_eq!((open_words(&object), total(&object), state.releases()), (0, 3, 0));
    let [a, b, c] = guards;
    on_cpu(1, || drop((a, b)));
    assert_eq!((total(&object), state.releases()), (1, 0));
    // Dead, but there: a holder may share what he has.
    let (d, e) = on_cpu(3, || (c.clone(), object.get()));
    on_cpu(0, || {
        assert!(object.tryget_live().is_none());
        drop((c, d));
        assert_eq!(state.releases(), 0);
        drop(e);
    });
    assert_eq!((total(&object), state.releases()), (0, 1));
    assert!(object.is_zero());
    on_cpu(0, || assert!(object.tryget().is_none() && object.tryget_live().is_none()));
    assert_eq!(view(&object).shared, REF_DEAD);
}

#[test]
fn the_release_comes_once_and_last_whenever_the_ref_is_killed() {
    let _system = system();
    for round in 0..ROUNDS {
        let (object, state) = new(RefFlags::NONE);
        let (begin, over) = (Meeting::new(CPUS), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for n in 1..CPUS {
                let (object, begin, over) = (&object, &begin, &over);
                scope.spawn(move || {
                    on_cpu(n, || {
                        begin.wait();
                        while !over.load(SeqCst)
                            && let Some(guard) = object.tryget_live()
                        {
                            guard.in_use();
                            drop(guard.clone());
                            if let Some(other) = object.tryget() {
                                other.in_use();
                            }
                        }
                    });
                });
            }
            let _ending = Done(&over);
            begin.wait();
            for _ in 0..round * 7 % 500 {
                std::hint::spin_loop();
            }
            // This thread is no CPU: whoever kills need not be one.
            object.kill().unwrap();
        });
        assert_eq!((state.releases(), total(&object)), (1, 0));
    }
}

#[test]
fn no_reference_to_a_live_ref_is_had_after_the_confirmation() {
    let _system = system();
    for _ in 0..ROUNDS {
        let (object, state) = new(RefFlags::ALLOW_REINIT);
        let (begin, confirmed) = (Meeting::new(CPUS), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for n in 1..CPUS {
                let (object, begin, confirmed) = (&object, &begin, &confirmed);
                scope.spawn(move || {
                    on_cpu(n, || {
                        drop(object.get());
                        begin.wait();
                        loop {
                            let late = confirmed.load(SeqCst);
                            match object.tryget_live() {
                                Some(_) => assert!(!late, "a reference after the confirmation"),
                                None if late => break,
                                None => {}
                            }
                        }
                    });
                });
            }
            let confirming = Done(&confirmed);
            begin.wait();
            let killed = object.kill_and_confirm(|| {
                assert_eq!(state.releases(), 0, "released before the confirmation");
                assert!(object.is_dying() && !object.is_zero());
                drop(confirming);
                std::thread::sleep(Duration::from_micros(20));
            });
            killed.unwrap();
        });
        assert_eq!(state.releases(), 1);
    }
}

#[test]
fn of_many_kills_one_gives_the_first_reference_back() {
    let _system = system();
    for _ in 0..ROUNDS {
        let (object, state) = new(RefFlags::NONE);
        let guard = on_cpu(1, || object.get());
        let kills = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| match object.kill() {
                    Ok(()) => drop(kills.fetch_add(1, SeqCst)),
                    Err(error) => assert_eq!(error, RefError::Dead),
                });
            }
        });
        assert_eq!((kills.into_inner(), total(&object), state.releases()), (1, 1, 0));
        on_cpu(0, || drop(guard));
        assert_eq!(state.releases(), 1);
    }
}

#[test]
fn a_confirmation_that_panics_leaves_a_ref_that_is_released() {
    let _system = system();
    let (object, state) = new(RefFlags::ALLOW_REINIT);
    on_cpu(0, || {
        let kill = || object.kill_and_confirm(|| panic!("on purpose"));
        assert!(catch_unwind(AssertUnwindSafe(kill)).is_err());
        assert_eq!((object.is_dying(), total(&object), state.releases()), (true, 0, 1));
        // Nor is anything locked.
        object.reinit().unwrap();
        object.kill().unwrap();
    });
    assert_eq!(state.releases(), 2);
}

#[test]
fn each_life_has_one_release() {
    let _system = system();
    let (object, state) = new(RefFlags::ALLOW_REINIT);
    let _cpu = host::enter_when_free(cpu(0)).unwrap();
    assert_eq!(object.reinit(), Err(RefError::Alive));
    assert_eq!(object.resurrect(), Err(RefError::Alive));
    for life in 1..4 {
        object.kill().unwrap();
        assert_eq!((object.kill(), state.releases()), (Err(RefError::Dead), life));
        object.reinit().unwrap();
        assert!(object.is_percpu() && !object.is_dying());
        drop(object.tryget_live().unwrap());
        assert_eq!((open_words(&object), total(&object)), (1, 1));
    }
    // With references left there is no further life, but the same one again.
    let guard = object.get();
    object.kill().unwrap();
    assert_eq!(object.reinit(), Err(RefError::InUse));
    assert_eq!((total(&object), state.releases()), (1, 3));
    object.resurrect().unwrap();
    assert_eq!((total(&object), state.releases()), (2, 3));
    drop(guard);
    assert_eq!(state.releases(), 3);
    object.kill().unwrap();
    assert_eq!(state.releases(), 4);
}

#[test]
fn a_ref_without_the_permission_is_killed_for_good() {
    let _system = system();
    let (object, state) = new(RefFlags::NONE);
    on_cpu(0, || object.kill()).unwrap();
    assert_eq!(object.reinit(), Err(RefError::Final));
    assert_eq!(object.resurrect(), Err(RefError::Final));
    assert_eq!((object.is_zero(), state.releases()), (true, 1));
}

#[test]
fn kills_and_resurrections_at_once_lose_no_reference() {
    let _system = system();
    let (object, state) = new(RefFlags::ALLOW_REINIT);
    let done = AtomicBool::new(false);
    let (kills, revivals) = std::thread::scope(|scope| {
        for n in 0..2 {
            let (object, done) = (&object, &done);
            scope.spawn(move || {
                on_cpu(n, || {
                    while !done.load(SeqCst) {
                        let a = object.tryget();
                        let b = object.tryget_live();
                        let c = a.clone();
                        drop((a, b, c));
                    }
                });
            });
        }
        let _ending = Done(&done);
        let kills = scope.spawn(|| (0..ROUNDS * 2).filter(|_| object.kill().is_ok()).count());
        let revivals = (0..ROUNDS * 2).filter(|_| object.resurrect().is_ok()).count();
        (kills.join().unwrap(), revivals)
    });
    assert!(kills == revivals + 1 || kills == revivals, "{kills} kills, {revivals} revivals");
    assert_eq!(total(&object), i64::from(kills == revivals));
    let releases = state.releases();
    assert!(releases <= kills, "{releases} releases of {kills} lives");
    if kills == revivals {
        object.kill().unwrap();
        assert_eq!(state.releases(), releases + 1);
    }
}

#[test]
fn atomic_mode_lasts_until_it_is_ended() {
    let _system = system();
    let _cpu = host::enter_when_free(cpu(0)).unwrap();
    let (object, state) = new(RefFlags::INIT_ATOMIC);
    let in_mode = |percpu: bool| {
        drop(object.get());
        assert_eq!((object.is_percpu(), open_words(&object) > 0), (percpu, percpu));
        assert_eq!(total(&object), 1);
    };
    in_mode(false);
    // Such a ref can be revived, and is what it was.
    object.kill().unwrap();
    object.reinit().unwrap();
    in_mode(false);
    object.switch_to_percpu();
    in_mode(true);
    object.switch_to_percpu();
    in_mode(true);
    object.kill().unwrap();
    object.reinit().unwrap();
    in_mode(true);
    object.switch_to_atomic();
    in_mode(false);
    object.switch_to_atomic();
    in_mode(false);
    object.kill().unwrap();
    object.reinit().unwrap();
    in_mode(false);
    // A dead ref switches when it is revived.
    object.kill().unwrap();
    object.switch_to_percpu();
    assert!(!object.is_percpu());
    object.reinit().unwrap();
    in_mode(true);
    object.kill().unwrap();
    object.switch_to_atomic();
    object.reinit().unwrap();
    in_mode(false);
    assert_eq!(state.releases(), 5);
}

#[test]
fn a_ref_may_begin_dead() {
    let _system = system();
    let _cpu = host::enter_when_free(cpu(0)).unwrap();
    for (flags, percpu) in
        [(RefFlags::INIT_DEAD, true), (RefFlags::INIT_DEAD | RefFlags::INIT_ATOMIC, false)]
    {
        let (object, state) = new(flags);
        assert!(object.is_dying() && object.is_zero() && !object.is_percpu());
        assert!(object.tryget().is_none() && object.tryget_live().is_none());
        assert_eq!((object.kill(), state.releases()), (Err(RefError::Dead), 0));
        object.reinit().unwrap();
        assert_eq!((object.is_percpu(), total(&object)), (percpu, 1));
        object.kill().unwrap();
        assert_eq!(state.releases(), 1);
    }
}

#[test]
fn switching_to_and_fro_loses_no_reference() {
    let _system = system();
    let (object, state) = new(RefFlags::NONE);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for n in 0..3 {
            let (object, done) = (&object, &done);
            scope.spawn(move || {
                on_cpu(n, || {
                    while !done.load(SeqCst) {
                        let guard = object.tryget_live().expect("nobody has killed it");
                        guard.in_use();
                        drop(guard.clone());
                    }
                });
            });
        }
        let _ending = Done(&done);
        for _ in 0..ROUNDS {
            object.switch_to_atomic();
            assert!(!object.is_zero());
            object.switch_to_percpu();
        }
    });
    assert_eq!((total(&object), state.releases()), (1, 0));
    object.kill().unwrap();
    assert_eq!(state.releases(), 1);
}

#[test]
fn a_cpu_that_is_down_is_counted_and_comes_back_with_a_closed_word() {
    let _system = system();
    let victim = cpu(3);
    for back_before_the_kill in [false, true] {
        let (object, state) = new(RefFlags::ALLOW_REINIT);
        let guards: Vec<_> = on_cpu(3, || (0..5).map(|_| object.get()).collect());
        hotplug::cpu_down(victim).unwrap();
        assert_eq!(total(&object), 6);
        if back_before_the_kill {
            hotplug::cpu_up(victim).unwrap();
        }
        object.kill().unwrap();
        assert_eq!((total(&object), open_words(&object)), (5, 0));
        if !back_before_the_kill {
            hotplug::cpu_up(victim).unwrap();
        }
        on_cpu(3, || {
            assert!(object.tryget_live().is_none());
            assert_eq!(state.releases(), 0);
            drop(guards);
        });
        assert_eq!((total(&object), state.releases()), (0, 1));
        // Revived while it is down.
        hotplug::cpu_down(victim).unwrap();
        object.reinit().unwrap();
        hotplug::cpu_up(victim).unwrap();
        on_cpu(3, || drop(object.tryget_live().unwrap()));
        assert_eq!((total(&object), open_words(&object)), (1, 1));
    }
}

#[test]
fn refs_are_killed_and_revived_while_cpus_come_and_go() {
    let _system = system();
    let (object, state) = new(RefFlags::ALLOW_REINIT);
    let done = AtomicBool::new(false);
    let lives = std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ending = Done(&done);
            for _ in 0..ROUNDS / 30 + 1 {
                for n in [2, 3] {
                    hotplug::cpu_down(cpu(n)).unwrap();
                    hotplug::cpu_up(cpu(n)).unwrap();
                }
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    // Given back on another CPU, perhaps after the one of before has gone.
                    let Ok(seat) = host::enter_any() else { continue };
                    let guard = object.tryget_live();
                    drop(seat);
                    let _seat = host::enter_any().unwrap();
                    if let Some(guard) = guard {
                        guard.in_use();
                    }
                }
            });
        }
        let mut lives = 1;
        while !done.load(SeqCst) {
            object.kill().unwrap();
            wait_until(|| object.is_zero());
            // Zero is before the release, which this object must see before it lives again.
            wait_until(|| state.releases() == lives);
            object.reinit().unwrap();
            lives += 1;
        }
        lives
    });
    object.kill().unwrap();
    assert_eq!((state.releases(), total(&object)), (lives, 0));
}

/// Many references at once, always taken on one CPU and given back on another: neither word fills
/// up, open or closed, and no reference is lost.
#[test]
fn many_references_that_travel_do_not_fill_a_word_up() {
    let _system = system();
    const MANY: u32 = u32::MAX;
    const NEAR: i64 = (1 << 40) + (1 << 34);
    let (object, state) = new(RefFlags::NONE);
    let near = |what: &str| {
        for word in words(&object) {
            let centre = if word < 0 { -REF_OPEN } else { REF_OPEN };
            assert!((word - centre).abs() < NEAR, "{what}: {word:#x}");
        }
    };
    for (mode, rounds) in [("open", 700), ("closed", 700)] {
        on_cpu(0, || (0..rounds).for_each(|_| object.get_many(MANY)));
        near(mode);
        assert_eq!(total(&object), 1 + rounds * i64::from(MANY));
        // SAFETY: these references were taken above.
        on_cpu(1, || (0..rounds).for_each(|_| unsafe { object.put_many(MANY) }));
        near(mode);
        assert_eq!((total(&object), state.releases()), (1, 0));
        object.switch_to_atomic();
    }
    on_cpu(0, || {
        assert!(object.tryget_many(3));
        // SAFETY: the guard takes one of the three references over.
        let guard = unsafe { RefGuard::from_raw(&object) };
        object.kill().unwrap();
        guard.into_raw();
        // SAFETY: the three of above.
        unsafe { object.put_many(2) };
        assert_eq!(state.releases(), 0);
        // SAFETY: the last of them.
        unsafe { object.put() };
    });
    assert_eq!(state.releases(), 1);
}

/// The largest number of references that the shared word takes.
const LIMIT: i64 = 1 << 59;

const TOO_MANY: &str = "there are too many references: they are taken and never given back";

/// Adds to the shared count, as if references had been taken by years of operations.
fn as_if_taken<T: Release>(of: &PercpuRef<T>, references: i64) {
    let address = of.view_address() + std::mem::offset_of!(RefView, shared);
    let shared = std::ptr::with_exposed_provenance::<AtomicU64>(address);
    // SAFETY: the ref is there, and its shared word is such an atomic.
    unsafe { &*shared }.fetch_add((references as u64).wrapping_mul(REF_ONE), SeqCst);
}

/// Writes what CPU `n`'s open word is more than one without references.
fn set_balance<T: Release>(of: &PercpuRef<T>, n: usize, balance: i64) {
    let words = PerCpuPtr::<i64>::from_raw(view(of).words as usize);
    // SAFETY: the ref is there, and no CPU uses it now.
    unsafe { words.write_on(cpu(n), REF_OPEN + balance) };
}

fn said<R>(f: impl FnOnce() -> R) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).map(drop).unwrap_err();
    (*panic.downcast_ref::<&str>().expect("a sentence")).to_owned()
}

/// Runs `f` on CPU `n`, or on a thread that is no CPU.
fn on<R>(n: Option<usize>, f: impl FnOnce() -> R) -> R {
    let _cpu = n.map(|n| host::enter_when_free(cpu(n)).unwrap());
    f()
}

/// However many are asked for, on a CPU or not, in whatever mode, there is a panic before the count
/// is no count any more. Nothing is released, and all that were taken can be given back.
#[test]
fn too_many_references_are_refused_aloud() {
    let _system = system();
    const MANY: i64 = u32::MAX as i64;
    // What CPUs have in their own words is not looked at.
    const SLACK: i64 = (1 << 40) + (1 << 34);
    for flags in [RefFlags::NONE, RefFlags::INIT_ATOMIC] {
        for place in [Some(0), None] {
            let (object, state) = new(flags);
            on(place, || {
                let guard = object.get();
                let before = LIMIT - SLACK;
                as_if_taken(&object, before);
                let refused = said(|| {
                    loop {
                        object.get_many(u32::MAX);
                    }
                });
                assert_eq!(refused, TOO_MANY);
                let mut taken = total(&object) - 2 - before;
                assert_eq!(taken % MANY, 0, "the refused ones were taken");
                assert!((LIMIT - MANY..LIMIT + SLACK).contains(&total(&object)));
                let percpu = object.is_percpu() && place.is_some();
                if !percpu {
                    assert!(total(&object) <= LIMIT);
                    as_if_taken(&object, LIMIT - total(&object));
                    taken = LIMIT - 2 - before;
                    for refused in
                        [said(|| guard.clone()), said(|| object.get()), said(|| object.tryget())]
                    {
                        assert_eq!(refused, TOO_MANY);
                    }
                }
                // Again and again: it does not add up.
                for _ in 0..3 {
                    assert_eq!(said(|| object.tryget_many(u32::MAX)), TOO_MANY);
                }
                assert_eq!(total(&object), 2 + before + taken);
                object.kill().unwrap();
                assert_eq!((total(&object), state.releases()), (1 + before + taken, 0));
                if total(&object) >= LIMIT {
                    assert_eq!(said(|| object.get()), TOO_MANY);
                }
                while taken > 0 {
                    let amount = taken.min(MANY);
                    // SAFETY: they were taken above.
                    unsafe { object.put_many(amount as u32) };
                    taken -= amount;
                }
                as_if_taken(&object, -before);
                assert_eq!((total(&object), state.releases()), (1, 0));
                drop(guard);
            });
            assert_eq!((total(&object), state.releases()), (0, 1));
        }
    }
}

/// What single operations of many CPUs have taken in years is looked at when the words are closed.
#[test]
fn more_references_than_can_be_counted_leak() {
    let _system = system();
    // The sum is 2 in as many bits as the shared count has; in 64 bits.
    for balances in [[1 << 61, 1 << 61, 1, 0], [(1 << 62) - 1; CPUS]] {
        for switch_first in [false, true] {
            let (object, state) = new(RefFlags::ALLOW_REINIT);
            let guard = on_cpu(0, || object.get());
            balances.into_iter().enumerate().for_each(|(n, balance)| {
                on_cpu(n, || drop(object.get()));
                set_balance(&object, n, balance);
            });
            if switch_first {
                assert_eq!(said(|| object.switch_to_atomic()), TOO_MANY);
                assert_eq!(said(|| object.switch_to_percpu()), TOO_MANY);
            }
            assert_eq!(said(|| object.kill()), TOO_MANY);
            assert_eq!((object.is_dying(), object.is_percpu()), (!switch_first, false));
            let alive = || {
                assert!(!object.is_zero() && open_words(&object) == 0);
                assert_eq!(state.releases(), 0, "released under a guard");
                guard.in_use();
            };
            alive();
            for n in 0..CPUS {
                on_cpu(n, || {
                    for _ in 0..1000 {
                        // SAFETY: of what the words had.
                        unsafe { object.put_many(u32::MAX) };
                    }
                    alive();
                    assert_eq!(said(|| object.tryget()), TOO_MANY);
                    assert_eq!(said(|| object.tryget_many(3)), TOO_MANY);
                    assert_eq!(said(|| guard.clone()), TOO_MANY);
                });
            }
            // There is no other life either, nor is anything locked.
            let dead = !switch_first;
            let (again, error) = if dead {
                (Some(RefError::Dead), RefError::InUse)
            } else {
                (None, RefError::Alive)
            };
            assert_eq!((object.reinit(), object.resurrect()), (Err(error), Err(error)));
            match again {
                Some(error) => assert_eq!(object.kill(), Err(error)),
                None => assert_eq!(said(|| object.kill()), TOO_MANY),
            }
            drop(guard);
            assert_eq!(state.releases(), 0);
        }
    }
}

/// A thread that is no CPU does all that a CPU does.
#[test]
fn references_are_counted_on_threads_that_are_no_cpus() {
    let _system = system();
    for first_on_a_cpu in [false, true] {
        let (object, state) = new(RefFlags::ALLOW_REINIT);
        for life in 1..3 {
            if first_on_a_cpu {
                on_cpu(1, || drop(object.get()));
            }
            let open = open_words(&object);
            let guards = [object.get(), object.tryget().unwrap(), object.tryget_live().unwrap()];
            assert!(object.tryget_many(3));
            // SAFETY: the three were taken above.
            unsafe {
                object.put_many(2);
                object.put();
            }
            let clone = guards[0].clone();
            assert_eq!((total(&object), open_words(&object)), (5, open));
            // To a CPU, and from there.
            let (clone, other) = on_cpu(2, || (clone, object.get()));
            object.switch_to_atomic();
            assert_eq!((total(&object), open_words(&object)), (6, 0));
            object.switch_to_percpu();
            std::thread::scope(|scope| {
                scope.spawn(|| drop((guards, clone)));
                object.kill().unwrap();
            });
            assert!(object.tryget_live().is_none() && !object.is_zero());
            assert_eq!((total(&object), state.releases()), (1, life - 1));
            drop(other);
            assert_eq!((total(&object), state.releases()), (0, life));
            assert!(object.tryget().is_none() && !object.tryget_many(2));
            object.reinit().unwrap();
        }
    }
}

#[test]
fn threads_that_are_no_cpus_and_cpus_count_together() {
    let _system = system();
    for round in 0..ROUNDS {
        let (object, state) = new(RefFlags::NONE);
        let begin = Barrier::new(CPUS);
        std::thread::scope(|scope| {
            for n in 1..CPUS {
                let (object, begin) = (&object, &begin);
                scope.spawn(move || {
                    // The thread of CPU 1 is none every other time.
                    let place = (n != 1 || round % 2 == 0).then_some(n);
                    let last = on(place, || {
                        begin.wait();
                        let mut last = None;
                        while let Some(guard) = object.tryget_live() {
                            guard.in_use();
                            last.replace(guard.clone());
                        }
                        last
                    });
                    // Given back on a thread that is no CPU any more.
                    drop(last);
                });
            }
            begin.wait();
            for _ in 0..round * 7 % 500 {
                std::hint::spin_loop();
            }
            object.kill().unwrap();
        });
        assert_eq!((state.releases(), total(&object)), (1, 0));
    }
}

/// A guard in a thread-local is dropped when the thread ends, and is no CPU any more.
#[test]
fn a_reference_may_outlive_the_cpu_that_its_thread_was() {
    static OBJECT: std::sync::OnceLock<PercpuRef<Object>> = std::sync::OnceLock::new();
    std::thread_local! {
        static KEPT: std::cell::RefCell<Vec<RefGuard<'static, Object>>> = const { std::cell::RefCell::new(Vec::new()) };
    }

    let _system = system();
    let (object, state) = new(RefFlags::NONE);
    let object = OBJECT.get_or_init(|| object);
    let thread = std::thread::spawn(move || {
        on_cpu(1, || KEPT.with_borrow_mut(|kept| kept.extend([object.get(), object.get()])));
    });
    thread.join().unwrap();
    assert_eq!(total(object), 1);
    object.kill().unwrap();
    assert_eq!(state.releases(), 1);
}

/// What `release` does to its own ref, called wherever the last reference is given back.
#[test]
fn a_release_may_use_its_ref() {
    static REF: std::sync::OnceLock<PercpuRef<fn()>> = std::sync::OnceLock::new();
    static RELEASES: AtomicUsize = AtomicUsize::new(0);

    fn release() {
        let object = REF.get().unwrap();
        assert!(object.tryget().is_none() && object.tryget_live().is_none());
        assert!(object.is_zero() && object.is_dying());
        assert_eq!(object.kill(), Err(RefError::Dead));
        object.switch_to_atomic();
        object.switch_to_percpu();
        object.reinit().unwrap();
        drop(object.tryget_live().unwrap());
        assert_eq!(object.resurrect(), Err(RefError::Alive));
        RELEASES.fetch_add(1, SeqCst);
    }

    let _system = system();
    let object = PercpuRef::new(release as fn(), RefFlags::ALLOW_REINIT).unwrap();
    let object = REF.get_or_init(|| object);
    for (n, place) in [Some(0), None, Some(2)].into_iter().enumerate() {
        on(place, || {
            object.kill().unwrap();
            assert_eq!((RELEASES.load(SeqCst), total(object)), (2 * n + 1, 1));
            let guard = object.get();
            object.kill().unwrap();
            assert_eq!(RELEASES.load(SeqCst), 2 * n + 1);
            drop(guard);
            assert_eq!((RELEASES.load(SeqCst), total(object)), (2 * n + 2, 1));
        });
    }
}

#[test]
fn a_release_that_panics_has_been() {
    let _system = system();
    let releases = AtomicUsize::new(0);
    let release = || {
        releases.fetch_add(1, SeqCst);
        panic!("on purpose");
    };
    let object = PercpuRef::new(release, RefFlags::ALLOW_REINIT).unwrap();
    for (n, place) in [Some(0), None].into_iter().enumerate() {
        on(place, || {
            // In a drop, in a put, and in the kill itself.
            let guard = object.get();
            object.kill().unwrap();
            assert_eq!(said(|| drop(guard)), "on purpose");
            assert!(object.is_zero() && object.tryget().is_none());
            object.reinit().unwrap();
            object.get_many(2);
            object.kill().unwrap();
            // SAFETY: the two were taken above.
            assert_eq!(said(|| unsafe { object.put_many(2) }), "on purpose");
            object.reinit().unwrap();
            assert_eq!(said(|| object.kill()), "on purpose");
            assert_eq!((total(&object), releases.load(SeqCst)), (0, 3 * (n + 1)));
            object.reinit().unwrap();
            assert_eq!((total(&object), object.is_percpu()), (1, true));
        });
    }
}

#[test]
fn of_many_revivals_one_begins_the_next_life() {
    let _system = system();
    for round in 0..ROUNDS {
        let (object, _) = new(RefFlags::ALLOW_REINIT);
        object.kill().unwrap();
        let (revivals, begin) = (AtomicUsize::new(0), Barrier::new(3));
        std::thread::scope(|scope| {
            for n in 0..3 {
                let (object, revivals, begin) = (&object, &revivals, &begin);
                scope.spawn(move || {
                    begin.wait();
                    let revive = [PercpuRef::reinit, PercpuRef::resurrect][(n + round) % 2];
                    match revive(object) {
                        Ok(()) => drop(revivals.fetch_add(1, SeqCst)),
                        Err(error) => assert_eq!(error, RefError::Alive),
                    }
                });
            }
        });
        assert_eq!((revivals.into_inner(), total(&object)), (1, 1));
    }
}

/// References that are asked for in vain are added to a closed word all the same: it never becomes
/// what an open one looks like.
#[test]
fn what_is_refused_does_not_open_a_word() {
    let _system = system();
    let (object, state) = new(RefFlags::NONE);
    on_cpu(0, || {
        object.kill().unwrap();
        // As a billion refusals of as many references as there can be would leave it.
        let zero = CpuId::new(0).unwrap();
        let words = PerCpuPtr::<i64>::from_raw(view(&object).words as usize);
        // SAFETY: the ref is alive, and its words are only accessed like this.
        unsafe { words.write_on(zero, -3 * i64::from(u32::MAX)) };
        for _ in 0..8 {
            assert!(!object.tryget_many(u32::MAX));
            assert!(object.tryget().is_none() && object.tryget_live().is_none());
        }
    });
    assert_eq!((state.releases(), total(&object)), (1, 0));
}

#[test]
fn a_reference_to_what_was_released_is_refused_aloud() {
    let _system = system();
    let (object, _) = new(RefFlags::INIT_DEAD);
    on_cpu(0, || {
        let get: fn(&PercpuRef<Object>) = |of| drop(of.get());
        let get_many: fn(&PercpuRef<Object>) = |of| of.get_many(2);
        for ask in [get, get_many] {
            let panic = catch_unwind(AssertUnwindSafe(|| ask(&object))).unwrap_err();
            let said = panic.downcast_ref::<&str>().unwrap();
            assert_eq!(*said, "a reference was asked for after the ref had been released");
        }
        assert!(!object.tryget_many(2));
    });
    assert_eq!(total(&object), 0);
}

#[test]
#[cfg(debug_assertions)]
fn what_was_never_taken_is_not_given_back_unnoticed() {
    let _system = system();
    let (object, state) = new(RefFlags::INIT_DEAD);
    on_cpu(0, || {
        // SAFETY: it is not: that is noticed before anything comes of it.
        let put = || unsafe { object.put() };
        let panic = catch_unwind(AssertUnwindSafe(put)).unwrap_err();
        let said = panic.downcast_ref::<&str>().unwrap();
        assert_eq!(*said, "more references are given back than were taken");
    });
    assert_eq!(state.releases(), 0);
    let (object, _) = new(RefFlags::NONE);
    on_cpu(0, || {
        // SAFETY: as above.
        unsafe { object.put_many(2) };
        assert!(catch_unwind(AssertUnwindSafe(|| object.kill())).is_err());
    });
}

std::thread_local! {
    /// Whether this thread's allocations fail.
    static NO_MEMORY: Cell<bool> = const { Cell::new(false) };
}

struct Scarce;

// SAFETY: the system's allocator, or nothing.
unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match NO_MEMORY.get() {
            true => std::ptr::null_mut(),
            // SAFETY: passed on to the caller.
            false => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: passed on to the caller.
        unsafe { System.dealloc(ptr, layout) };
    }
}

#[global_allocator]
static SCARCE: Scarce = Scarce;

#[test]
fn without_memory_there_is_no_ref_and_nothing_is_lost() {
    let _system = system();
    let object = || Object(Arc::default());
    // So that there are pages with room.
    drop(PercpuRef::new(object(), RefFlags::NONE).unwrap());
    let (live, object) = (alloc::global().statistics().live, object());
    NO_MEMORY.set(true);
    let refused = PercpuRef::new(object, RefFlags::NONE).map(drop);
    NO_MEMORY.set(false);
    assert_eq!(refused, Err(AllocError::NoMemory));
    assert_eq!(alloc::global().statistics().live, live);
}

#[test]
fn a_function_runs_on_the_cpu_that_is_named() {
    static SEEN: Mutex<Vec<(usize, u32)>> = Mutex::new(Vec::new());
    fn look(arg: usize) {
        SEEN.lock().unwrap().push((arg, cpu::this_cpu_raw()));
    }

    let _system = system();
    let _cpus = hotplug::cpus_read_lock();
    // From a thread that is no CPU, from the CPU itself, from another one; one CPU is taken.
    Global::run_on_cpu(2, look, 7);
    on_cpu(1, || {
        Global::run_on_cpu(1, look, 8);
        Global::run_on_cpu(3, look, 9);
        assert_eq!(preempt::disable().cpu(), cpu(1));
    });
    let (taken, left) = (Meeting::new(2), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            on_cpu(0, || {
                taken.wait();
                std::thread::sleep(Duration::from_millis(5));
                left.store(true, SeqCst);
            });
        });
        taken.wait();
        Global::run_on_cpu(0, look, 10);
        assert!(left.load(SeqCst), "two threads were one CPU");
    });
    assert_eq!(*SEEN.lock().unwrap(), [(7, 2), (8, 1), (9, 3), (10, 0)]);
}
