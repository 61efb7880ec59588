//! `PercpuRef`, with threads as CPUs: the release comes once and last, `tryget_live` ends with the
//! confirmation, modes, further lives, and CPUs that come and go.

#[path = "common/scale.rs"]
mod scale;
#[path = "common/threads.rs"]
mod threads;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use percpu_core::alloc::{self, AllocError};
use percpu_core::cpu::{self, CpuId};
use percpu_core::platform::{Global, Platform};
use percpu_core::refcount::{PercpuRef, RefError, RefFlags, RefGuard, Release};
use percpu_core::var::PerCpuPtr;
use percpu_core::view::{REF_BIAS, REF_DEAD, REF_OPEN, REF_PERCPU, RefView, ref_count};
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
#[cfg_attr(miri, ignore = "takes a hundred thousand rounds")]
fn many_references_that_travel_do_not_fill_a_word_up() {
    let _system = system();
    const MANY: u32 = u32::MAX;
    const NEAR: i64 = (1 << 48) + (1 << 34);
    let (object, state) = new(RefFlags::NONE);
    let near = |what: &str| {
        for word in words(&object) {
            let centre = if word < 0 { -REF_OPEN } else { REF_OPEN };
            assert!((word - centre).abs() < NEAR, "{what}: {word:#x}");
        }
    };
    for (mode, rounds) in [("open", 70_000), ("closed", 70_000)] {
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
