//! Foreign code that the allocator calls: initialisers and destructors of values, accounts, visitors of
//! chunks, sites and leaks, what a report is written to. It may panic, and it may call back; whatever it
//! does, everything is whole behind it, and what would wait for itself panics with a sentence.

mod common;

use std::cell::Cell;
use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::fake::{Fake, NO_CACHE, use_cache_of};
use common::{Shape, World};
use percpu_core::alloc::{
    self, Accounting, AllocError, AllocFlags, Group, LeakTracker, PerCpuBox, Zeroable,
};
use percpu_core::area::{self, Config};
use percpu_core::cpu::{self, CpuId};
use percpu_core::host;
use percpu_core::hotplug::{self, HotplugError};

const CPUS: usize = 12;
/// CPUs that are up at first.
const UP: usize = 3;

/// One test at a time, in a program whose CPUs get their units when they come up.
fn system() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let config = Config { units_on_demand: true, ..Config::default() };
    host::boot_with(CPUS, UP, &config).unwrap();
    turn
}

fn live() -> u64 {
    alloc::global().statistics().live
}

/// A CPU that has no unit yet.
fn newcomer() -> CpuId {
    let mut all = cpu::possible().iter();
    all.find(|&cpu| !cpu::booted_once().contains(cpu)).expect("there are CPUs enough for all tests")
}

fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    let payload = catch_unwind(AssertUnwindSafe(|| drop(f()))).unwrap_err();
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.unwrap_or_else(|| *payload.downcast::<String>().unwrap())
}

const WAITS_FOR_ITSELF: &str = "this thread waits for a lock that it holds";
/// Said where it might wait for a thread that waits for it.
const MAY_WAIT_FOR_ITSELF: &str = "which may wait for the lock with which it was called";

/// Counts its drops; those that are told to panic.
struct Fragile {
    dropped: Arc<AtomicUsize>,
    panics: bool,
}

impl Drop for Fragile {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Relaxed);
        assert!(!self.panics, "a destructor panics");
    }
}

#[test]
fn values_behind_one_whose_destructor_panics_are_dropped() {
    let _system = system();
    let (before, units) = (live(), cpu::booted_once().count());
    for which in 0..units {
        let dropped = Arc::new(AtomicUsize::new(0));
        let of = dropped.clone();
        let make = move |cpu: CpuId| Fragile { dropped: of.clone(), panics: cpu.index() == which };
        let boxed = PerCpuBox::try_new_with(make).unwrap();
        assert_eq!(panic_of(|| drop(boxed)), "a destructor panics");
        assert_eq!(dropped.load(Relaxed), units, "value {which}");
        assert_eq!(Arc::strong_count(&dropped), 1, "the initialiser and the values are gone");
        assert_eq!(live(), before);
    }
    // An initialiser that panics for the last CPU, with a destructor in between: of the values that it
    // made, each is dropped. (One that panics while a panic unwinds ends the program.)
    let dropped = Arc::new(AtomicUsize::new(0));
    let of = dropped.clone();
    let make = move |cpu: CpuId| {
        assert!(cpu.index() + 1 < UP, "an initialiser panics");
        Fragile { dropped: of.clone(), panics: false }
    };
    assert_eq!(panic_of(|| PerCpuBox::try_new_with(make)), "an initialiser panics");
    assert_eq!((dropped.load(Relaxed), Arc::strong_count(&dropped)), (UP - 1, 1));
    assert_eq!(live(), before);
}

/// Begins as zero bytes.
struct Plain(Cell<u8>);

// SAFETY: a byte.
unsafe impl Zeroable for Plain {}

static PLAIN_DROPPED: AtomicUsize = AtomicUsize::new(0);

impl Drop for Plain {
    fn drop(&mut self) {
        PLAIN_DROPPED.fetch_add(1, Relaxed);
        assert!(self.0.get() == 0, "a destructor panics");
    }
}

#[test]
fn zeroes_behind_one_whose_destructor_panics_are_dropped() {
    let _system = system();
    let (before, units) = (live(), cpu::booted_once().count());
    for which in cpu::booted_once().iter() {
        let mut boxed = PerCpuBox::<Plain>::try_new_zeroed().unwrap();
        boxed.get_mut(which).0.set(1);
        let dropped = PLAIN_DROPPED.load(Relaxed);
        assert_eq!(panic_of(|| drop(boxed)), "a destructor panics");
        assert_eq!(PLAIN_DROPPED.load(Relaxed) - dropped, units);
        assert_eq!(live(), before);
    }
}

/// A destructor and an initialiser that panics of the closure that is the initialiser itself.
#[test]
fn an_initialiser_whose_own_destructor_panics_leaks_nothing() {
    let _system = system();
    let before = live();
    let dropped = Arc::new(AtomicUsize::new(0));
    let fragile = Fragile { dropped: dropped.clone(), panics: true };
    let boxed = PerCpuBox::try_new_with(move |cpu| {
        let _ = &fragile;
        cpu.index()
    })
    .unwrap();
    assert_eq!(panic_of(|| drop(boxed)), "a destructor panics");
    assert_eq!((dropped.load(Relaxed), Arc::strong_count(&dropped)), (1, 1));
    assert_eq!(live(), before);
}

#[test]
fn destructors_may_use_the_allocator_and_bring_cpus_up() {
    struct Busy;
    impl Drop for Busy {
        fn drop(&mut self) {
            let inner = PerCpuBox::try_new_with(|cpu| Arc::new(cpu.index())).unwrap();
            alloc::global().balance();
            alloc::global().for_each_chunk(|_| ());
            drop(inner);
            if cpu::booted_once().count() == UP_AT_LEAST.load(Relaxed) {
                hotplug::cpu_up(newcomer()).unwrap();
            }
        }
    }
    static UP_AT_LEAST: AtomicUsize = AtomicUsize::new(0);
    let _system = system();
    let before = live();
    UP_AT_LEAST.store(cpu::booted_once().count(), Relaxed);
    drop(PerCpuBox::try_new_with(|_| Busy).unwrap());
    assert_eq!(cpu::booted_once().count(), UP_AT_LEAST.load(Relaxed) + 1);
    assert_eq!(live(), before);
}

#[test]
fn an_initialiser_that_drops_its_own_box_is_refused() {
    type Own = Mutex<Option<PerCpuBox<usize>>>;
    static OWN: Own = Mutex::new(None);
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let _system = system();
    let boxed = PerCpuBox::try_new_with(|cpu| {
        CALLS.fetch_add(1, Relaxed);
        let own = OWN.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(own);
        cpu.index()
    })
    .unwrap();
    let ptr = boxed.ptr();
    *OWN.lock().unwrap() = Some(boxed);
    let (late, calls) = (newcomer(), CALLS.load(Relaxed));
    let panic = panic_of(|| hotplug::cpu_up(late));
    assert!(panic.contains("an initialiser drops the box that it is of"), "{panic}");
    assert!(!cpu::booted_once().contains(late) && !cpu::online().contains(late));
    // The box is leaked: its memory is not another's, and its initialiser goes on.
    hotplug::cpu_up(late).unwrap();
    assert_eq!(CALLS.load(Relaxed), calls + 2);
    // SAFETY: leaked, so it is still there; nobody writes it.
    assert_eq!(unsafe { *ptr.on(late) }, late.index());
}

#[test]
fn an_initialiser_may_drop_its_box_on_another_thread_which_waits() {
    static DROPPED: AtomicBool = AtomicBool::new(false);
    type Own = Arc<Mutex<Option<PerCpuBox<usize>>>>;
    let _system = system();
    let before = live();
    let own: Own = Arc::new(Mutex::new(None));
    let boxed = {
        let own = own.clone();
        PerCpuBox::try_new_with(move |cpu| {
            let taken = own.lock().unwrap().take();
            if let Some(taken) = taken {
                std::thread::spawn(|| {
                    drop(taken);
                    DROPPED.store(true, Relaxed);
                });
                std::thread::sleep(std::time::Duration::from_millis(30));
                assert!(!DROPPED.load(Relaxed), "the box went while its initialiser ran");
            }
            cpu.index()
        })
        .unwrap()
    };
    *own.lock().unwrap() = Some(boxed);
    hotplug::cpu_up(newcomer()).unwrap();
    while !DROPPED.load(Relaxed) {
        std::thread::yield_now();
    }
    assert_eq!((live(), Arc::strong_count(&own)), (before, 1));
}

#[test]
fn an_initialiser_that_brings_a_cpu_up_is_refused_while_one_comes_up() {
    static ACTIVE: AtomicBool = AtomicBool::new(false);
    let _system = system();
    let before = live();
    let boxed = PerCpuBox::try_new_with(|cpu| {
        if ACTIVE.load(Relaxed) {
            let mut all = cpu::possible().iter();
            let other = all.find(|&n| n != cpu && !cpu::booted_once().contains(n)).unwrap();
            area::add_unit(other).unwrap();
        }
        cpu.index()
    })
    .unwrap();
    let late = newcomer();
    ACTIVE.store(true, Relaxed);
    let panic = panic_of(|| hotplug::cpu_up(late));
    assert!(panic.contains(WAITS_FOR_ITSELF), "{panic}");
    assert!(!cpu::booted_once().contains(late));
    ACTIVE.store(false, Relaxed);
    hotplug::cpu_up(late).unwrap();
    assert_eq!(*boxed.remote_value(late), late.index());
    drop(boxed);
    // While a box is made its initialiser may, and runs for that CPU, too.
    let other = newcomer();
    let boxed = PerCpuBox::try_new_with(move |cpu| match hotplug::cpu_up(other) {
        Ok(()) | Err(HotplugError::AlreadyOnline) => cpu.index(),
        Err(error) => panic!("{error}"),
    })
    .unwrap();
    assert_eq!(*boxed.remote_value(other), other.index());
    drop(boxed);
    assert_eq!(live(), before);
}

/// A copy of a box that nobody changes.
trait RemoteValue {
    fn remote_value(&self, cpu: CpuId) -> &usize;
}

impl RemoteValue for PerCpuBox<usize> {
    fn remote_value(&self, cpu: CpuId) -> &usize {
        // SAFETY: the copy lives as long as the box, and the tests here do not write it.
        unsafe { &*self.on(cpu) }
    }
}

/// Accounts that do what they are told to.
struct Accounts {
    charged: AtomicUsize,
    charge_panics: AtomicBool,
    uncharge_panics: AtomicBool,
    call_back: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Accounts {
    fn leaked() -> &'static Self {
        Box::leak(Box::new(Self {
            charged: AtomicUsize::new(0),
            charge_panics: AtomicBool::new(false),
            uncharge_panics: AtomicBool::new(false),
            call_back: Mutex::new(None),
        }))
    }

    fn call_back(&self) {
        // Not while it calls back already.
        if let Ok(call_back) = self.call_back.try_lock()
            && let Some(call_back) = &*call_back
        {
            call_back();
        }
    }
}

impl Accounting for Accounts {
    fn charge(&self, _: Group, bytes: usize) -> bool {
        self.call_back();
        assert!(!self.charge_panics.load(Relaxed), "a charge panics");
        self.charged.fetch_add(bytes, Relaxed);
        true
    }

    fn uncharge(&self, _: Group, bytes: usize) {
        self.call_back();
        self.charged.fetch_sub(bytes, Relaxed);
        assert!(!self.uncharge_panics.load(Relaxed), "an uncharge panics");
    }
}

#[test]
fn accounts_that_panic_leave_the_allocator_whole() {
    for cache in [NO_CACHE, 1] {
        use_cache_of(cache);
        let world = World::new(&Shape::default());
        let accounts = Accounts::leaked();
        assert!(world.allocator.set_accounting(accounts));
        world.allocator.leak_tracker().start().unwrap();
        let group = Group::new(7).unwrap();
        let alloc = || world.allocator.alloc_accounted(16, 8, AllocFlags::NONE, group);
        let kept = alloc().unwrap().raw();
        let charged = accounts.charged.load(Relaxed);
        accounts.charge_panics.store(true, Relaxed);
        assert_eq!(panic_of(alloc), "a charge panics");
        let tracked = || world.allocator.leak_tracker().statistics().areas;
        assert_eq!((accounts.charged.load(Relaxed), live_in(&world), tracked()), (charged, 1, 1));
        // Refused before there is anything to be charged.
        let refused = |size, align| {
            world.allocator.alloc_accounted(size, align, AllocFlags::NONE, group).unwrap_err()
        };
        assert_eq!(refused(0, 8), AllocError::Size(0));
        assert_eq!(refused(usize::MAX, 8), AllocError::Size(usize::MAX));
        assert_eq!(refused(8, 3), AllocError::Align(3));
        accounts.charge_panics.store(false, Relaxed);

        accounts.uncharge_panics.store(true, Relaxed);
        assert_eq!(panic_of(|| world.free_raw(kept)), "an uncharge panics");
        assert_eq!((accounts.charged.load(Relaxed), live_in(&world), tracked()), (0, 0, 0));
        // An allocation that fails takes its charge back.
        world.fake.lock().fail_at = Some(0);
        world.fake.lock().fail_from_then_on = true;
        let large = || world.allocator.alloc_accounted(32 << 10, 8, AllocFlags::NONE, group);
        assert_eq!(panic_of(large), "an uncharge panics");
        world.fake.stop_failing();
        accounts.uncharge_panics.store(false, Relaxed);
        assert_eq!((accounts.charged.load(Relaxed), live_in(&world), tracked()), (0, 0, 0));
        let again = alloc().unwrap().raw();
        assert_eq!(accounts.charged.load(Relaxed), charged);
        world.free_raw(again).unwrap();
        world.allocator.balance();
        world.check();
        use_cache_of(NO_CACHE);
    }
}

fn live_in(world: &World) -> u64 {
    world.allocator.statistics().live
}

#[test]
fn accounts_may_use_the_allocator() {
    let world = Arc::new(World::new(&Shape::default()));
    let accounts = Accounts::leaked();
    assert!(world.allocator.set_accounting(accounts));
    let (other, calls) = (world.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = calls.clone();
    *accounts.call_back.lock().unwrap() = Some(Box::new(move || {
        counted.fetch_add(1, Relaxed);
        other.fake.adopt();
        let ptr = other.allocator.alloc(24, 8, AllocFlags::NONE).unwrap().raw();
        other.allocator.balance();
        other.allocator.statistics();
        other.allocator.for_each_chunk(|_| ());
        other.free_raw(ptr).unwrap();
    }));
    let group = Group::new(u32::MAX).unwrap();
    let ptr = world.allocator.alloc_accounted(16, 8, AllocFlags::NONE, group).unwrap().raw();
    world.free_raw(ptr).unwrap();
    assert_eq!((calls.load(Relaxed), accounts.charged.load(Relaxed), live_in(&world)), (2, 0, 0));
    accounts.call_back.lock().unwrap().take();
    world.check();
}

/// Its name, and a function that calls the callback that it is given.
type Caller<'a> = (&'static str, Box<dyn Fn(&mut dyn FnMut()) + 'a>);

/// What calls a callback with the growth lock or the scan lock held.
fn callers(world: &World) -> [Caller<'_>; 5] {
    struct Sink<'a>(&'a mut dyn FnMut(), bool);
    impl Write for Sink<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            // The growth lock is held since the table's head.
            self.1 |= text.contains("empty");
            if self.1 && text.contains("full") {
                (self.0)();
            }
            Ok(())
        }
    }
    let tracker = world.allocator.leak_tracker();
    [
        ("chunks", Box::new(|f| world.allocator.for_each_chunk(|_| f()))),
        ("report", Box::new(|f| write!(Sink(f, false), "{}", world.allocator.report()).unwrap())),
        ("sites", Box::new(move |f| tracker.sites(|_| f()).unwrap())),
        (
            "roots",
            Box::new(move |f| {
                let roots = std::iter::from_fn(|| {
                    f();
                    None
                });
                // SAFETY: no roots.
                unsafe { tracker.scan(roots, |_| ()) }.unwrap();
            }),
        ),
        (
            "leaks",
            Box::new(move |f| {
                // SAFETY: no roots.
                unsafe { tracker.scan([], |_| f()) }.unwrap();
            }),
        ),
    ]
}

/// Its name, the callers whose callbacks may not call it, and the call.
type Refused<'a> = (&'static str, &'static [&'static str], Box<dyn Fn() + 'a>);

/// What takes one of those locks.
fn refused(world: &World) -> [Refused<'_>; 8] {
    const GROWTH: &[&str] = &["chunks", "report", "roots"];
    const EITHER: &[&str] = &["chunks", "report", "sites", "roots", "leaks"];
    let allocator = &world.allocator;
    let tracker = allocator.leak_tracker();
    [
        // The world's areas leave no room for it.
        ("grow", GROWTH, Box::new(|| _ = allocator.alloc(32 << 10, 8, AllocFlags::NONE))),
        ("balance", GROWTH, Box::new(|| _ = allocator.balance())),
        ("unit", GROWTH, Box::new(|| _ = allocator.add_unit(0))),
        ("visit", GROWTH, Box::new(|| allocator.for_each_chunk(|_| ()))),
        ("report", GROWTH, Box::new(|| _ = allocator.report().to_string())),
        (
            "scan",
            EITHER,
            Box::new(move || {
                // SAFETY: no roots.
                unsafe { tracker.scan([], |_| ()) }.unwrap();
            }),
        ),
        ("sites", EITHER, Box::new(move || tracker.sites(|_| ()).unwrap())),
        ("stop", EITHER, Box::new(move || tracker.stop())),
    ]
}

fn busy_world() -> World {
    let mut world = World::new(&Shape::default());
    world.allocator.leak_tracker().start().unwrap();
    world.fill_up();
    world
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn callbacks_that_would_wait_for_themselves_panic_and_leave_everything_whole() {
    let world = busy_world();
    let (mut tried, areas) = (0, world.allocator.leak_tracker().statistics().areas);
    for (caller, call) in callers(&world) {
        for (name, of, refused) in refused(&world) {
            if !of.contains(&caller) {
                continue;
            }
            let panic = panic_of(|| call(&mut || refused()));
            let is_refused =
                panic.contains(WAITS_FOR_ITSELF) || panic.contains(MAY_WAIT_FOR_ITSELF);
            assert!(is_refused, "{caller} calls {name}: {panic}");
            check_whole(&world, areas);
            tried += 1;
        }
    }
    assert_eq!(tried, 5 * 3 + 3 * 5);
}

/// Not where the scan lock is held: there the tracker is on, and a start changes nothing.
#[test]
fn a_callback_that_starts_the_tracker_is_refused_where_the_growth_lock_is_held() {
    let world = World::new(&Shape::default());
    let kept = world.allocator.alloc(8, 8, AllocFlags::NONE).unwrap().raw();
    let (usage, tracker) = (world.fake.usage(), world.allocator.leak_tracker());
    let before = tracker.statistics();
    let starts: [fn(LeakTracker<'_, Fake>); 2] =
        [|tracker| tracker.start().unwrap(), |tracker| tracker.log_early()];
    for start in starts {
        let panic = panic_of(|| world.allocator.for_each_chunk(|_| start(tracker)));
        assert!(panic.contains(MAY_WAIT_FOR_ITSELF), "{panic}");
        assert_eq!((tracker.statistics(), world.fake.usage()), (before, usage.clone()));
    }
    tracker.start().unwrap();
    assert_eq!((tracker.statistics().areas, tracker.statistics().missed), (0, 1));
    world.free_raw(kept).unwrap();
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn callbacks_that_panic_leave_everything_whole() {
    let world = busy_world();
    let areas = world.allocator.leak_tracker().statistics().areas;
    for (caller, call) in callers(&world) {
        // At the first call and, where there are several, at a later one.
        for at in [0, 1] {
            let mut calls = 0;
            let panics = catch_unwind(AssertUnwindSafe(|| {
                call(&mut || {
                    assert!(calls != at, "a callback panics");
                    calls += 1;
                })
            }));
            assert!(panics.is_err() || at > 0, "{caller} calls nothing");
            check_whole(&world, areas);
        }
    }
}

/// Everything works as if nothing had been.
fn check_whole(world: &World, areas: u64) {
    let tracker = world.allocator.leak_tracker();
    assert_eq!(tracker.statistics().areas, areas);
    let ptr = world.allocator.alloc(8, 8, AllocFlags::NONE).unwrap().raw();
    world.allocator.balance();
    world.allocator.report().to_string();
    let mut leaks = 0;
    // SAFETY: no roots.
    let scan = unsafe { tracker.scan([], |_| leaks += 1) }.unwrap();
    assert_eq!((scan.areas, scan.leaks, leaks), (areas + 1, areas + 1, areas + 1));
    tracker.sites(|_| ()).unwrap();
    world.free_raw(ptr).unwrap();
    assert_eq!(tracker.statistics().areas, areas);
    common::fake::assert_may_sleep("the next test");
}
