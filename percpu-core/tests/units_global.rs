//! A program whose CPUs get their units when they first come up. One test, in the order in which a
//! machine lives: CPU 0 is up, the others have never been.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use percpu_core::alloc::{self, PerCpuBox};
use percpu_core::area::{self, Config};
use percpu_core::counter::PercpuCounter;
use percpu_core::cpu::{self, CpuId};
use percpu_core::host::{self, StartFault};
use percpu_core::hotplug::{self, HotplugError, Section, StepError};
use percpu_core::percpu;

percpu! {
    static GREETING: PerCpu<u64> = 0x1234;
    static SEEN: PerCpu<AtomicU32> = AtomicU32::new(7);
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

fn numbers(mask: &cpu::CpuMask) -> Vec<usize> {
    mask.iter().map(CpuId::index).collect()
}

/// What a call that must not come through says.
fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| drop(f()))).unwrap_err();
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

fn on_cpu<R>(cpu: CpuId, f: impl FnOnce() -> R) -> R {
    let _cpu = host::enter_when_free(cpu).unwrap();
    f()
}

#[test]
fn a_cpus_first_bring_up_gives_it_everything() {
    let config = Config { units_on_demand: true, ..Config::default() };
    host::boot_with(6, 1, &config).unwrap();
    assert_eq!(numbers(cpu::possible()), [0, 1, 2, 3, 4, 5]);
    assert_eq!(numbers(cpu::booted_once()), [0]);
    what_has_no_copy_is_not_reached();
    areas_and_statics_are_there_when_the_cpu_is();
    initialisers_run_for_each_cpu_once();
    initialisers_may_make_and_drop_boxes();
    an_initialiser_that_panics_leaves_the_cpu_down();
    what_fails_later_leaves_the_unit();
    assert_eq!(numbers(cpu::booted_once()), [0, 1, 2, 3, 4, 5]);
}

fn what_has_no_copy_is_not_reached() {
    let hits = PerCpuBox::<u64>::try_new_zeroed().unwrap();
    let mut shared = PerCpuBox::<AtomicU64>::try_new_zeroed().unwrap();
    let five = cpu(5);
    assert_eq!((area::try_offset(five), hits.ptr().try_on(five)), (None, None));
    assert!(area::try_offset(cpu(0)).is_some());
    for said in [
        panic_of(|| GREETING.read_on(five)),
        panic_of(|| GREETING.on(five)),
        panic_of(|| SEEN.remote(five).load(Ordering::Relaxed)),
        panic_of(|| hits.read_on(five)),
        panic_of(|| hits.write_on(five, 1)),
        panic_of(|| shared.remote(five).load(Ordering::Relaxed)),
        panic_of(|| shared.get_mut(five).store(1, Ordering::Relaxed)),
        panic_of(|| area::offset(five)),
    ] {
        assert_eq!(said, "CPU 5 has no per-CPU area: it was never brought up");
    }
    // Failures can be ordered for it all the same; see `what_fails_later_leaves_the_unit`.
    assert_eq!(hotplug::cpu_down(five), Err(HotplugError::NotOnline));
}

fn areas_and_statics_are_there_when_the_cpu_is() {
    let one = cpu(1);
    let counter = PercpuCounter::new(100).unwrap();
    // So many that there is a second chunk.
    let boxes: Vec<PerCpuBox<[u64; 512]>> =
        (0..20).map(|_| PerCpuBox::try_new_zeroed().unwrap()).collect();
    on_cpu(cpu(0), || {
        GREETING.write(1);
        counter.add(5);
        // SAFETY: elements of a live box, used as scalars only.
        boxes.iter().for_each(|b| unsafe { b.element(511).write(3) });
    });
    hotplug::cpu_up(one).unwrap();
    assert_eq!(numbers(cpu::booted_once()), [0, 1]);
    assert_eq!((GREETING.read_on(cpu(0)), GREETING.read_on(one)), (1, 0x1234));
    assert_eq!(SEEN.remote(one).load(Ordering::Relaxed), 7);
    for b in &boxes {
        // SAFETY: as above; H3: whatever was in the memory before, the new copy is zero.
        let copies = [0, 1].map(|n| unsafe { *b.on(cpu(n)) });
        assert_eq!((copies[0][511], copies[1]), (3, [0; 512]));
    }
    assert!(panic_of(|| boxes[0].element(512)).contains("element 512 of 512"));
    assert_eq!(counter.sum(), 105);
    on_cpu(one, || {
        assert_eq!(cpu::current(), one);
        counter.add(-7);
        GREETING.add(1);
        // SAFETY: as above.
        unsafe { boxes[0].element(0).write(9) };
    });
    assert_eq!(counter.sum(), 98);
    // The next life finds the unit as it was.
    hotplug::cpu_down(one).unwrap();
    assert_eq!((GREETING.read_on(one), counter.sum()), (0x1235, 98));
    hotplug::cpu_up(one).unwrap();
    assert_eq!(GREETING.read_on(one), 0x1235);
    // SAFETY: as above.
    assert_eq!(unsafe { boxes[0].element(0).read_on(one) }, 9);
    assert_eq!(numbers(cpu::booted_once()), [0, 1]);
}

fn initialisers_run_for_each_cpu_once() {
    let live = alloc::global().statistics().live;
    let (token, calls) = (Arc::new(()), Arc::new(AtomicUsize::new(0)));
    let boxed = {
        let (token, calls) = (token.clone(), calls.clone());
        PerCpuBox::try_new_with(move |cpu| {
            calls.fetch_add(1, Ordering::Relaxed);
            (cpu.index() * 10, token.clone())
        })
        .unwrap()
    };
    let gone = {
        let token = token.clone();
        PerCpuBox::try_new_with(move |_| token.clone()).unwrap()
    };
    // A value for each of the CPUs 0 and 1, twice, and two initialisers.
    assert_eq!((calls.load(Ordering::Relaxed), Arc::strong_count(&token)), (2, 1 + 4 + 2));
    drop(gone);
    assert_eq!(Arc::strong_count(&token), 1 + 2 + 1);

    let two = cpu(2);
    hotplug::cpu_up(two).unwrap();
    assert_eq!((calls.load(Ordering::Relaxed), boxed.remote(two).0), (3, 20));
    hotplug::cpu_down(two).unwrap();
    hotplug::cpu_up(two).unwrap();
    area::add_unit(two).unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 3, "the value stays from life to life");

    // Values written by hand, a CPU at a time.
    let mut later = PerCpuBox::<Option<Arc<()>>>::try_new_uninit().unwrap();
    for cpu in cpu::booted_once().iter() {
        later.get_mut(cpu).write(Some(token.clone()));
    }
    // SAFETY: all copies that there are were written; zero bytes, with which others would begin,
    // are `None`.
    let later = unsafe { later.assume_init() };
    assert_eq!(Arc::strong_count(&token), 1 + (3 + 1) + 3);
    drop((boxed, later));
    assert_eq!(Arc::strong_count(&token), 1, "every value is dropped once");
    assert_eq!(alloc::global().statistics().live, live);
}

fn initialisers_may_make_and_drop_boxes() {
    type Inner = PerCpuBox<AtomicU64>;
    let live = alloc::global().statistics().live;
    let outer = PerCpuBox::try_new_with(|cpu| {
        drop(Inner::try_new_with(|_| AtomicU64::new(1)).unwrap());
        let n = cpu.index() as u64;
        Mutex::new(Inner::try_new_with(move |cpu| AtomicU64::new(100 * n + cpu.index() as u64)))
    })
    .unwrap();
    let three = cpu(3);
    hotplug::cpu_up(three).unwrap();
    for of in cpu::booted_once().iter() {
        // SAFETY: a live box's copy, which nobody changes now.
        let inner = unsafe { &*outer.on(of) }.lock().unwrap();
        for on in cpu::booted_once().iter() {
            let value = inner.as_ref().unwrap().remote(on).load(Ordering::Relaxed);
            assert_eq!(value, (100 * of.index() + on.index()) as u64);
        }
    }
    drop(outer);
    assert_eq!(alloc::global().statistics().live, live);
}

fn an_initialiser_that_panics_leaves_the_cpu_down() {
    let live = alloc::global().statistics().live;
    let token = Arc::new(());
    let held = token.clone();
    let before = PerCpuBox::try_new_with(move |_| held.clone()).unwrap();
    let other = Arc::new(());
    let held = other.clone();
    let kept = PerCpuBox::try_new_with(move |_| held.clone()).unwrap();
    let broken = Arc::new(AtomicBool::new(true));
    let (flag, held) = (broken.clone(), token.clone());
    let bad = PerCpuBox::try_new_with(move |cpu| {
        assert!(cpu.index() != 4 || !flag.load(Ordering::Relaxed), "on purpose");
        held.clone()
    })
    .unwrap();
    let four = cpu(4);
    assert!(catch_unwind(|| hotplug::cpu_up(four)).is_err());
    assert_eq!(area::try_offset(four), None);
    assert!(!cpu::booted_once().contains(four) && !cpu::online().contains(four));
    // Four CPUs have both; the one that failed has the first.
    assert_eq!(Arc::strong_count(&token), 1 + (4 + 1 + 1) + (4 + 1));
    drop(before);
    assert_eq!(Arc::strong_count(&token), 1 + (4 + 1), "its value for CPU 4 goes too");
    broken.store(false, Ordering::Relaxed);
    hotplug::cpu_up(four).unwrap();
    assert_eq!(Arc::strong_count(&token), 1 + (5 + 1));
    assert_eq!(Arc::strong_count(&other), 1 + (5 + 1), "a value that is there is not made again");
    // SAFETY: a live box's copy, which nobody changes now.
    assert_eq!(Arc::strong_count(unsafe { &*bad.on(four) }), 1 + (5 + 1));
    drop((bad, kept));
    assert_eq!(Arc::strong_count(&other), 1);
    assert_eq!((Arc::strong_count(&token), alloc::global().statistics().live), (1, live));
}

fn what_fails_later_leaves_the_unit() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let five = cpu(5);
    let startup = |cpu: CpuId| {
        // The unit comes before the first step.
        assert!(cpu::booted_once().contains(cpu));
        GREETING.read_on(cpu);
        CALLS.fetch_add(1, Ordering::Relaxed);
        Ok::<(), StepError>(())
    };
    let step = hotplug::register(Section::Prepare, "first", Some(startup), None).unwrap();
    assert_eq!(CALLS.load(Ordering::Relaxed), 5);
    // Ordered before the CPU has a unit.
    hotplug::inject_failure(step, five);
    assert!(matches!(hotplug::cpu_up(five), Err(HotplugError::Step { .. })));
    assert_eq!(numbers(cpu::booted_once()), [0, 1, 2, 3, 4, 5]);
    host::inject_start_fault(five, StartFault::Refused);
    assert!(matches!(hotplug::cpu_up(five), Err(HotplugError::Start(_))));
    host::set_arrival_timeout(Duration::from_millis(20));
    host::inject_start_fault(five, StartFault::Lost);
    assert_eq!(hotplug::cpu_up(five), Err(HotplugError::TimedOut));
    host::set_arrival_timeout(Duration::from_secs(10));
    let offset = area::offset(five);
    hotplug::cpu_up(five).unwrap();
    assert_eq!(area::offset(five), offset);
    assert_eq!(CALLS.load(Ordering::Relaxed), 8);
    hotplug::unregister(step);
}
