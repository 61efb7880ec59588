//! The hotplug state machine, with threads as CPUs.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use percpu_core::cpu::{self, CpuId};
use percpu_core::host::{self, EnterError, StartFault};
use percpu_core::hotplug::{
    self, HotplugError, RegisterError, Section, StartError, StepError, StepId,
};

const CPUS: usize = 4;
/// The CPU that comes and goes.
const VICTIM: usize = 2;

/// What the steps' callbacks saw.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn system() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    host::boot(CPUS).unwrap();
    guard
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

fn victim() -> CpuId {
    cpu(VICTIM)
}

fn log(entry: String) {
    LOG.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
}

fn take_log() -> Vec<String> {
    std::mem::take(&mut *LOG.lock().unwrap_or_else(PoisonError::into_inner))
}

fn up<const N: usize>(_: CpuId) -> Result<(), StepError> {
    log(format!("up {N}"));
    Ok(())
}

fn down<const N: usize>(_: CpuId) {
    log(format!("down {N}"));
}

/// Three steps in each section, numbered in the order of start-up; taken out when dropped.
struct Steps(Vec<StepId>);

/// How many steps [`Steps`] has, and how many of them are PREPARE steps.
const STEPS: usize = 9;
const PREPARE: usize = 3;

impl Steps {
    fn register() -> Self {
        fn step<const N: usize>() -> (usize, StepId) {
            let section = [Section::Prepare, Section::Starting, Section::Online][N / 3];
            (N, hotplug::register(section, "numbered", Some(up::<N>), Some(down::<N>)).unwrap())
        }
        // Not in the order in which they run.
        let mut steps = [
            step::<6>(),
            step::<0>(),
            step::<3>(),
            step::<7>(),
            step::<1>(),
            step::<4>(),
            step::<2>(),
            step::<5>(),
            step::<8>(),
        ];
        steps.sort_by_key(|step| step.0);
        take_log();
        Self(steps.map(|step| step.1).into())
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        for &id in &self.0 {
            hotplug::unregister(id);
        }
        take_log();
    }
}

fn ups(steps: impl Iterator<Item = usize>) -> Vec<String> {
    steps.map(|n| format!("up {n}")).collect()
}

fn downs(steps: impl DoubleEndedIterator<Item = usize>) -> Vec<String> {
    steps.rev().map(|n| format!("down {n}")).collect()
}

fn assert_up(cpu: CpuId) {
    assert!(cpu::online().contains(cpu) && cpu::active().contains(cpu));
    assert!(!cpu::dying().contains(cpu));
    assert_eq!(host::enter(cpu).map(drop), Ok(()));
}

fn assert_down(cpu: CpuId) {
    assert!(!cpu::online().contains(cpu) && !cpu::active().contains(cpu));
    assert!(!cpu::dying().contains(cpu), "a dying bit that stays");
    assert_eq!(host::enter(cpu).map(drop), Err(EnterError::Offline));
}

#[test]
fn steps_run_in_order_and_down_in_reverse() {
    let _system = system();
    let _steps = Steps::register();
    hotplug::cpu_down(victim()).unwrap();
    assert_eq!(take_log(), downs(0..STEPS));
    assert_down(victim());
    hotplug::cpu_up(victim()).unwrap();
    assert_eq!(take_log(), ups(0..STEPS));
    assert_up(victim());
}

#[test]
fn each_section_runs_where_it_says() {
    fn look(name: &str, cpu: CpuId) {
        let thread = std::thread::current();
        let place = match thread.name() {
            Some(name) if name == format!("cpu{cpu}") => "its own thread",
            _ => "the control thread",
        };
        if place == "its own thread" {
            assert_eq!(cpu::current(), cpu);
        }
        let member = |mask: &cpu::CpuMask, name| if mask.contains(cpu) { name } else { "" };
        log(format!(
            "{name} on {place}:{}{}{}",
            member(cpu::online(), " online"),
            member(cpu::active(), " active"),
            member(cpu::dying(), " dying"),
        ));
    }
    fn start<const N: usize>(cpu: CpuId) -> Result<(), StepError> {
        look(["prepare", "starting", "online"][N], cpu);
        Ok(())
    }
    fn stop<const N: usize>(cpu: CpuId) {
        look(["dead", "dying", "offline"][N], cpu);
    }

    let _system = system();
    let ids = [
        hotplug::register(Section::Prepare, "prepare", Some(start::<0>), Some(stop::<0>)),
        hotplug::register(Section::Starting, "starting", Some(start::<1>), Some(stop::<1>)),
        hotplug::register(Section::Online, "online", Some(start::<2>), Some(stop::<2>)),
    ];
    take_log();
    hotplug::cpu_down(victim()).unwrap();
    hotplug::cpu_up(victim()).unwrap();
    assert_eq!(
        take_log(),
        [
            "offline on its own thread: online",
            "dying on its own thread: dying",
            "dead on the control thread: dying",
            "prepare on the control thread:",
            "starting on its own thread:",
            "online on its own thread: online",
        ]
    );
    for id in ids {
        hotplug::unregister(id.unwrap());
    }
    take_log();
}

#[test]
fn a_bring_up_that_fails_at_any_step_is_rolled_back() {
    let _system = system();
    let steps = Steps::register();
    hotplug::cpu_down(victim()).unwrap();
    for (n, &id) in steps.0.iter().enumerate() {
        take_log();
        hotplug::inject_failure(id, victim());
        let error = hotplug::cpu_up(victim()).unwrap_err();
        let HotplugError::Step { id: failed, error, .. } = error else { panic!("{error}") };
        assert_eq!((failed, error), (id, StepError::INJECTED));
        assert_eq!(take_log(), [ups(0..n), downs(0..n)].concat(), "step {n}");
        assert_down(victim());
    }
    // Each failure happened once.
    hotplug::cpu_up(victim()).unwrap();
    assert_eq!(take_log(), ups(0..STEPS));
    assert_up(victim());
}

#[test]
fn a_take_down_that_fails_at_any_online_step_is_rolled_back() {
    let _system = system();
    let steps = Steps::register();
    for n in 6..STEPS {
        take_log();
        hotplug::inject_failure(steps.0[n], victim());
        let error = hotplug::cpu_down(victim()).unwrap_err();
        assert!(matches!(error, HotplugError::Step { id, .. } if id == steps.0[n]), "{error}");
        assert_eq!(take_log(), [downs(n + 1..STEPS), ups(n + 1..STEPS)].concat(), "step {n}");
        assert_up(victim());
    }
}

#[test]
fn past_the_point_of_no_return_a_take_down_does_not_fail() {
    let _system = system();
    let steps = Steps::register();
    for n in 0..6 {
        hotplug::inject_failure(steps.0[n], victim());
        hotplug::cpu_down(victim()).unwrap();
        // The failure waits for the start-up.
        hotplug::cpu_up(victim()).unwrap_err();
        hotplug::cpu_up(victim()).unwrap();
    }
}

#[test]
fn a_step_says_by_itself_why_it_fails() {
    fn refuse(cpu: CpuId) -> Result<(), StepError> {
        if cpu.index() == VICTIM { Err(StepError(-12)) } else { Ok(()) }
    }
    let _system = system();
    hotplug::cpu_down(victim()).unwrap();
    let id = hotplug::register(Section::Prepare, "refuse", Some(refuse), None).unwrap();
    let error = hotplug::cpu_up(victim()).unwrap_err();
    assert_eq!(error, HotplugError::Step { id, name: "refuse", error: StepError(-12) });
    assert_eq!(error.to_string(), "step refuse failed: error -12");
    hotplug::unregister(id);
    hotplug::cpu_up(victim()).unwrap();
}

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
fn registering_catches_up_with_the_cpus_that_are_up() {
    fn start(cpu: CpuId) -> Result<(), StepError> {
        log(format!("up {cpu}"));
        if cpu.index() == 3 { Err(StepError(7)) } else { Ok(()) }
    }
    fn stop(cpu: CpuId) {
        log(format!("down {cpu}"));
    }

    let _system = system();
    hotplug::cpu_down(victim()).unwrap();
    for section in [Section::Prepare, Section::Starting, Section::Online] {
        let before = hotplug::steps().count();
        let error = hotplug::register(section, "fails on 3", Some(start), Some(stop));
        assert_eq!(error, Err(RegisterError::Step { cpu: cpu(3), error: StepError(7) }));
        let mut entries = take_log();
        assert_eq!(entries[..3], ["up 0", "up 1", "up 3"]);
        entries[3..].sort();
        assert_eq!(entries[3..], ["down 0", "down 1"], "undone where it was done");
        assert_eq!(hotplug::steps().count(), before);
    }
    hotplug::cpu_up(victim()).unwrap();
    assert!(take_log().is_empty(), "it is not registered");
}

#[test]
fn the_table_of_steps_is_in_order_and_can_be_full() {
    let _system = system();
    let mut ids = Vec::new();
    for n in 0.. {
        let section = [Section::Online, Section::Prepare, Section::Starting][n % 3];
        match hotplug::register(section, "filler", None, None) {
            Ok(id) => ids.push(id),
            Err(error) => {
                assert_eq!(error, RegisterError::Full);
                break;
            }
        }
    }
    assert_eq!(hotplug::steps().count(), hotplug::MAX_STEPS);
    assert!(hotplug::steps().map(|s| s.1).is_sorted());
    // In a section, by registration.
    let order = |section| {
        let mine = |&(id, s, _): &(StepId, _, _)| s == section && ids.contains(&id);
        hotplug::steps().filter(mine).map(|s| s.0).collect::<Vec<_>>()
    };
    let expected: Vec<_> = ids.iter().copied().skip(1).step_by(3).collect();
    assert_eq!(order(Section::Prepare), expected);
    hotplug::cpu_down(victim()).unwrap();
    hotplug::cpu_up(victim()).unwrap();
    for id in ids {
        assert_eq!(StepId::from_index(id.index()), Some(id));
        hotplug::unregister(id);
        assert_eq!(StepId::from_index(id.index()), None);
    }
    assert_eq!(
        hotplug::steps().map(|s| s.2).collect::<Vec<_>>(),
        ["counter:dead", "alloc:dead", "counter:online"]
    );
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
