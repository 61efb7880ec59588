//! CPUs that come and go, or do not: starts that fail, time-outs, waiting, what a life leaves.

use std::time::{Duration, Instant};

use percpu_core::cpu::CpuId;
use percpu_core::host::{self, StartFault};
use percpu_core::hotplug::{self, HotplugError, Section, StartError};

use super::steps::{PREPARE, STEPS, Steps, downs, ups};
use super::{CPUS, VICTIM, assert_down, assert_up, cpu, system, take_log, victim};

#[test]
fn a_cpu_goes_up_or_down_only_if_it_can() {
    let _system = system();
    assert_eq!(hotplug::cpu_up(victim()), Err(HotplugError::AlreadyOnline));
    for n in 1..CPUS {
        hotplug::cpu_down(cpu(n)).unwrap();
    }
    assert_eq!(hotplug::cpu_down(victim()), Err(HotplugError::NotOnline));
    assert_eq!(hotplug::cpu_down(cpu(0)), Err(HotplugError::LastCpu));
    assert_up(cpu(0));
    // The boot CPU is one like any other.
    hotplug::cpu_up(victim()).unwrap();
    hotplug::cpu_down(cpu(0)).unwrap();
    assert_down(cpu(0));
    for n in (0..CPUS).filter(|&n| n != VICTIM) {
        hotplug::cpu_up(cpu(n)).unwrap();
        assert_up(cpu(n));
    }
}

#[test]
fn a_start_that_is_lost_or_refused_is_rolled_back() {
    let _system = system();
    let _steps = Steps::register();
    hotplug::cpu_down(victim()).unwrap();
    take_log();
    host::set_arrival_timeout(Duration::from_millis(20));
    let refused = HotplugError::Start(StartError("a fault was injected"));
    for (fault, expected) in
        [(StartFault::Lost, HotplugError::TimedOut), (StartFault::Refused, refused)]
    {
        host::inject_start_fault(victim(), fault);
        let begin = Instant::now();
        assert_eq!(hotplug::cpu_up(victim()), Err(expected));
        if fault == StartFault::Lost {
            assert!(begin.elapsed() >= Duration::from_millis(20), "it had its time");
        }
        assert_eq!(take_log(), [ups(0..PREPARE), downs(0..PREPARE)].concat());
        assert_down(victim());
    }
    host::set_arrival_timeout(Duration::from_secs(10));
    hotplug::cpu_up(victim()).unwrap();
    assert_eq!(take_log(), ups(0..STEPS));
}

#[test]
fn a_cpu_that_arrives_too_late_is_sent_away() {
    let _system = system();
    let _steps = Steps::register();
    let late = Duration::from_millis(40);
    hotplug::cpu_down(victim()).unwrap();
    host::set_arrival_timeout(late / 4);
    for again_after in [Duration::ZERO, late, late * 2] {
        host::set_arrival_timeout(late / 4);
        loop {
            host::inject_start_fault(victim(), StartFault::Late(late));
            match hotplug::cpu_up(victim()) {
                Err(error) => break assert_eq!(error, HotplugError::TimedOut),
                // This thread was held up for longer than the CPU was.
                Ok(()) => hotplug::cpu_down(victim()).unwrap(),
            }
        }
        take_log();
        std::thread::sleep(again_after);
        assert_eq!(take_log(), [""; 0], "the late CPU ran a step");
        assert_down(victim());

        // Before, while and after it arrives, the next start works.
        host::set_arrival_timeout(Duration::from_secs(10));
        hotplug::cpu_up(victim()).unwrap();
        assert_eq!(take_log(), ups(0..STEPS));
        std::thread::sleep(late * 2 - again_after);
        assert_up(victim());
        hotplug::cpu_down(victim()).unwrap();
        assert_eq!(take_log(), downs(0..STEPS), "down once");
        assert_down(victim());
    }
    hotplug::cpu_up(victim()).unwrap();
}

#[test]
fn a_take_down_waits_for_the_thread_that_is_the_cpu() {
    let _system = system();
    let stay = Duration::from_millis(20);
    let entered = host::enter_when_free(victim()).unwrap();
    std::thread::scope(|scope| {
        let begin = Instant::now();
        let down = scope.spawn(move || {
            hotplug::cpu_down(victim()).unwrap();
            begin.elapsed()
        });
        std::thread::sleep(stay);
        assert!(cpu::online().contains(victim()), "not behind the thread's back");
        drop(entered);
        assert!(down.join().unwrap() >= stay);
    });
    assert_down(victim());
    hotplug::cpu_up(victim()).unwrap();
}

#[test]
fn a_reader_keeps_the_online_mask_still() {
    let _system = system();
    let stay = Duration::from_millis(20);
    let guards =
        (hotplug::cpus_read_lock(), std::thread::spawn(|| drop(hotplug::cpus_read_lock())));
    guards.1.join().unwrap();
    std::thread::scope(|scope| {
        let begin = Instant::now();
        let down = scope.spawn(move || {
            hotplug::cpu_down(victim()).unwrap();
            begin.elapsed()
        });
        std::thread::sleep(stay);
        assert_up(victim());
        drop(guards.0);
        assert!(down.join().unwrap() >= stay);
    });
    drop(hotplug::cpus_read_lock());
    hotplug::cpu_up(victim()).unwrap();
}

#[test]
fn a_new_life_begins_with_preemption_on() {
    let _system = system();
    // What ran last, with its last breath, held a guard.
    fn hold(cpu: CpuId) {
        if cpu.index() == VICTIM {
            std::mem::forget(percpu_core::preempt::disable());
            percpu_core::preempt::set_need_resched();
        }
    }
    let id = hotplug::register(Section::Starting, "hold", None, Some(hold)).unwrap();
    hotplug::cpu_down(victim()).unwrap();
    hotplug::cpu_up(victim()).unwrap();
    {
        let _cpu = host::enter_when_free(victim()).unwrap();
        assert_eq!(percpu_core::preempt::count(), 0);
        assert!(!percpu_core::preempt::need_resched());
    }
    hotplug::cpu_down(victim()).unwrap();
    hotplug::unregister(id);
    hotplug::cpu_up(victim()).unwrap();
}

#[test]
fn what_waits_in_a_dead_cpus_cache_goes_back() {
    use percpu_core::alloc;
    use percpu_core::view::{AllocatorView, CacheView, roots};
    use std::ptr::with_exposed_provenance;

    /// Granules that wait in the victim's cache.
    fn held() -> u32 {
        let view = with_exposed_provenance::<AllocatorView>(roots().allocator as usize);
        // SAFETY: the tests run one at a time, and nobody allocates now.
        let table = unsafe { (*view).caches } as usize;
        let entry = with_exposed_provenance::<usize>(table + VICTIM * size_of::<usize>());
        // SAFETY: the table has an entry for each CPU, and the victim was up, so it has a cache.
        unsafe { (*with_exposed_provenance::<CacheView>(*entry)).held }
    }

    let _system = system();
    {
        let _victim = host::enter_when_free(victim()).unwrap();
        let area = alloc::alloc_percpu(48, 8).unwrap();
        // SAFETY: nobody has used it.
        unsafe { alloc::free_percpu(area) }.unwrap();
    }
    assert_ne!(held(), 0);
    hotplug::cpu_down(victim()).unwrap();
    assert_eq!(held(), 0);
    hotplug::cpu_up(victim()).unwrap();
}

#[test]
fn a_second_death_finds_nothing_to_fold() {
    use percpu_core::counter::{self, PercpuCounter};

    let _system = system();
    let counter = PercpuCounter::new(100).unwrap();
    let count = || {
        let _victim = host::enter_when_free(victim()).unwrap();
        counter.add(7);
    };
    count();
    // The same CPU dies twice, once with something to fold and once without; and its death is
    // reported twice.
    for sum in [107, 107] {
        hotplug::cpu_down(victim()).unwrap();
        assert_eq!((counter.read(), counter.sum()), (sum, sum));
        counter::cpu_dead(victim());
        assert_eq!((counter.read(), counter.sum()), (sum, sum));
        hotplug::cpu_up(victim()).unwrap();
        assert_eq!(counter.sum(), sum);
    }
    count();
    assert_eq!((counter.read(), counter.sum()), (107, 114));
}
