//! CPUs coming and going.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use percpu_core::alloc::{self, AllocFlags, PerCpuBox};
use percpu_core::cpu::{self, CpuId};
use percpu_core::hotplug::{self, Section, StepId};
use percpu_core::platform::Platform;
use percpu_core::var::PerCpuPtr;
use percpu_core::{area, percpu};
use percpu_guest::abi::PlugError;

use percpu_guest::kernel::Kernel;
use percpu_guest::kernel::arch::{lapic, tsc};
use percpu_guest::kernel::mem::PAGE;
use percpu_guest::kernel::testing::run_on;
use percpu_guest::kernel::{cpus, sched, tick};

#[percpu_guest::test(cpus = 2, possible = 3)]
fn a_cpu_goes_down_and_comes_up_again() {
    let one = CpuId::new(1).expect("possible");
    run_on(0, || {
        for _ in 0..5 {
            assert_eq!(cpus::down(1), Ok(()));
            assert_eq!(cpus::up(1), Ok(()));
        }
        assert_eq!(cpus::up(2), Ok(()));
    });
    assert!(cpu::online().contains(one) && cpu::active().contains(one));
    assert_eq!(cpu::online().count(), 3);
    assert_eq!(cpu::dying().count(), 0);
}

#[percpu_guest::test(cpus = 2, possible = 2)]
fn impossible_orders_are_refused() {
    run_on(0, || {
        assert_eq!(cpus::up(1), Err(PlugError::AlreadyThere));
        assert_eq!(cpus::up(7), Err(PlugError::NoSuchCpu));
        assert_eq!(cpus::down(0), Err(PlugError::Busy));
        assert_eq!(cpus::down(1), Ok(()));
        assert_eq!(cpus::down(1), Err(PlugError::AlreadyThere));
    });
    assert_eq!(cpu::online().count(), 1);
}

#[percpu_guest::test(cpus = 1, possible = 2)]
fn a_failing_step_is_rolled_back() {
    let count = hotplug::steps().count();
    assert!(count >= 3, "only {count} steps");
    for n in 0..count {
        let (step, ..) = hotplug::steps().nth(n).expect("counted");
        hotplug::inject_failure(step, CpuId::new(1).expect("possible"));
        run_on(0, || assert_eq!(cpus::up(1), Err(PlugError::StepFailed)));
        assert_eq!(cpu::online().count(), 1);
    }
    run_on(0, || assert_eq!(cpus::up(1), Ok(())));
    assert_eq!(cpu::online().count(), 2);
}

percpu! {
    /// What each CPU finds here at first is the template's.
    static GREETING: PerCpu<u64> = 0x1234;
}

/// Calls of the box's initialiser for each CPU.
static MADE: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];

#[percpu_guest::test(cpus = 2, possible = 3)]
fn a_first_bring_up_gives_a_cpu_its_memory() {
    const LARGE: usize = 32 << 10;
    let two = CpuId::new(2).expect("possible");
    let numbers = || cpu::booted_once().iter().fold(0, |set, cpu| set | 1 << cpu.index());
    assert_eq!(numbers(), 0b011);
    assert_eq!(area::try_offset(two), None);
    // In the first chunk and in others, dirtied on the CPUs that are there.
    let areas = [8, 100, LARGE, LARGE, LARGE].map(|size| {
        let pointer = alloc::global().alloc(size, 8, AllocFlags::NONE).expect("memory");
        for cpu in cpu::booted_once().iter() {
            // SAFETY: the area is ours and has this size.
            unsafe { pointer.on(cpu).write_bytes(0xa5, size) };
        }
        assert_eq!(pointer.try_on(two), None);
        (pointer, size)
    });
    let made: PerCpuBox<AtomicU32> = PerCpuBox::try_new_with(|cpu| {
        MADE[cpu.index()].fetch_add(1, Ordering::Relaxed);
        AtomicU32::new(100 + cpu.index() as u32)
    })
    .expect("memory");
    GREETING.write(1);

    run_on(0, || assert_eq!(cpus::up(2), Ok(())));
    assert_eq!(numbers(), 0b111);
    assert_eq!(GREETING.read_on(two), 0x1234);
    assert_eq!(made.remote(two).load(Ordering::Relaxed), 102);
    let is_zero = |pointer: PerCpuPtr<u8>, size: usize| {
        // SAFETY: the area is ours and has this size.
        (0..size).all(|i| unsafe { pointer.on(two).add(i).read_volatile() } == 0)
    };
    for (pointer, size) in areas {
        assert!(is_zero(pointer, size), "{size} bytes are not zero on the new CPU");
    }
    // The next life finds all as it was, and the initialiser is not called again.
    made.remote(two).store(7, Ordering::Relaxed);
    run_on(2, || GREETING.add(1));
    run_on(0, || {
        assert_eq!(cpus::down(2), Ok(()));
        assert_eq!(cpus::up(2), Ok(()));
    });
    assert_eq!((GREETING.read_on(two), made.remote(two).load(Ordering::Relaxed)), (0x1235, 7));
    assert!(MADE.iter().all(|calls| calls.load(Ordering::Relaxed) == 1));
    for (pointer, _) in areas {
        // SAFETY: ours, and not used again.
        unsafe { alloc::global().free(pointer) }.expect("just allocated");
    }
}

#[percpu_guest::test(cpus = 1, possible = 16)]
fn every_possible_cpu_comes_up() {
    run_on(0, || {
        for cpu in 1..16 {
            assert_eq!(cpus::up(cpu), Ok(()), "CPU {cpu}");
        }
        for cpu in (1..16).rev() {
            assert_eq!(cpus::down(cpu), Ok(()), "CPU {cpu}");
        }
    });
    assert_eq!(cpu::online().count(), 1);
}

/// A page of the chunk space whose translation CPU 2 remembers on its way.
static PLACE: AtomicUsize = AtomicUsize::new(0);
/// CPU 2 is on its way and remembers it.
static REMEMBERED: AtomicBool = AtomicBool::new(false);
/// The flush after that is over.
static FLUSHED: AtomicBool = AtomicBool::new(false);
/// The page has been given back.
static GONE: AtomicBool = AtomicBool::new(false);
/// The flush was over while CPU 2 still remembered.
static TOO_EARLY: AtomicBool = AtomicBool::new(false);
/// Longer than a flush takes that does not wait.
const LONG_NS: u64 = 100_000_000;
/// Longer than one takes once nobody is on his way.
const PATIENCE_NS: u64 = 2_000_000_000;

/// What a hotplug step of CPU 2 might do with interrupts masked: it uses an area, and takes its
/// time. The LAPIC is off as it is for steps that come before the LAPIC's own, so no IPI gets
/// through.
fn remember(cpu: CpuId) {
    if cpu.index() != 2 {
        return;
    }
    lapic::disable();
    let place = core::ptr::with_exposed_provenance::<u64>(PLACE.load(Ordering::Relaxed));
    // SAFETY: the page is the test's and is mapped until `REMEMBERED` is set.
    unsafe { place.read_volatile() };
    REMEMBERED.store(true, Ordering::Release);
    let until = tsc::now_ns() + LONG_NS;
    while tsc::now_ns() < until && !FLUSHED.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    TOO_EARLY.fetch_or(FLUSHED.load(Ordering::Acquire), Ordering::Relaxed);
    lapic::enable();
    tick::arm();
}

/// Takes the page away while CPU 2 is on its way, as the allocator does.
fn take_away(_: usize) {
    while !REMEMBERED.load(Ordering::Acquire) {
        sched::yield_now();
    }
    let place = PLACE.load(Ordering::Relaxed);
    // SAFETY: the test's page, which was populated and which nobody reads after `REMEMBERED`.
    unsafe { Kernel::unmap(place, 1) };
    Kernel::flush_tlb(place, PAGE);
    FLUSHED.store(true, Ordering::Release);
    // SAFETY: unmapped and flushed.
    unsafe { Kernel::free_pages(place, 1) };
    GONE.store(true, Ordering::Release);
}

#[percpu_guest::test(cpus = 2, possible = 3)]
fn a_flush_waits_for_a_cpu_on_its_way() {
    // ONLINE steps would send the CPU an IPI, and so make up for one that it lost before. percpu-core's
    // own stay, and send none.
    for slot in 0..hotplug::MAX_STEPS {
        let in_slot = |&(step, section, _): &(StepId, Section, _)| {
            section == Section::Online && step.index() == slot
        };
        if let Some((step, ..)) = hotplug::steps().find(in_slot) {
            hotplug::unregister(step);
        }
    }
    let place = Kernel::reserve(PAGE, PAGE).expect("addresses");
    PLACE.store(place, Ordering::Relaxed);
    let start_up: hotplug::Startup = |cpu| {
        remember(cpu);
        Ok(())
    };
    let step =
        hotplug::register(Section::Starting, "test:remember", Some(start_up), Some(remember))
            .expect("a place for a step");
    let ways: [fn(); 2] =
        [|| assert_eq!(cpus::up(2), Ok(())), || assert_eq!(cpus::down(2), Ok(()))];
    // A flush from another CPU, and from that of the thread which brings the CPU there.
    for flusher in [1, 0] {
        for way in ways {
            REMEMBERED.store(false, Ordering::Relaxed);
            FLUSHED.store(false, Ordering::Relaxed);
            GONE.store(false, Ordering::Relaxed);
            // SAFETY: the range is the test's, and its last page was given back.
            unsafe { Kernel::populate(place, 1, 2) }.expect("memory");
            sched::spawn_bound(take_away, flusher);
            run_on(0, way);
            let until = tsc::now_ns() + PATIENCE_NS;
            while !GONE.load(Ordering::Acquire) {
                assert!(tsc::now_ns() < until, "the CPU has arrived and does not answer");
                sched::yield_now();
            }
            let early = TOO_EARLY.load(Ordering::Relaxed);
            assert!(!early, "the flush did not wait for the CPU on its way");
        }
    }
    hotplug::unregister(step);
    // SAFETY: the test's range, without memory.
    unsafe { Kernel::release(place, PAGE) };
}
