//! Steps with one pair of callbacks: order, roll-back, registration.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use percpu_core::cpu::CpuId;
use percpu_core::hotplug::{
    self, CpuState, HotplugError, RegisterError, Section, StepError, StepId,
};

use super::{CPUS, VICTIM, assert_down, assert_up, cpu, log, system, take_log, victim};

fn up<const N: usize>(_: CpuId) -> Result<(), StepError> {
    log(format!("up {N}"));
    Ok(())
}

fn down<const N: usize>(_: CpuId) {
    log(format!("down {N}"));
}

/// Three steps in each section, numbered in the order of start-up; taken out when dropped.
pub struct Steps(Vec<StepId>);

/// How many steps [`Steps`] has, and how many of them are PREPARE steps.
pub const STEPS: usize = 9;
pub const PREPARE: usize = 3;

impl Steps {
    pub fn register() -> Self {
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

pub fn ups(steps: impl Iterator<Item = usize>) -> Vec<String> {
    steps.map(|n| format!("up {n}")).collect()
}

pub fn downs(steps: impl DoubleEndedIterator<Item = usize>) -> Vec<String> {
    steps.rev().map(|n| format!("down {n}")).collect()
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
fn without_calls_a_step_counts_as_run() {
    let _system = system();
    take_log();
    let id = hotplug::register_nocalls(Section::Online, "quiet", Some(up::<0>), Some(down::<0>));
    assert_eq!(take_log(), [""; 0]);
    hotplug::cpu_down(victim()).unwrap();
    hotplug::cpu_up(victim()).unwrap();
    assert_eq!(take_log(), ["down 0", "up 0"]);
    hotplug::unregister_nocalls(id.unwrap());
    hotplug::cpu_down(victim()).unwrap();
    hotplug::cpu_up(victim()).unwrap();
    assert_eq!(take_log(), [""; 0], "it was taken out, and nothing was called");
}

#[test]
fn the_state_says_where_a_cpu_stands() {
    fn look(cpu: CpuId) {
        let state = hotplug::state(cpu);
        let step = match state {
            CpuState::GoingUp(step) | CpuState::GoingDown(step) => step,
            CpuState::Online | CpuState::Offline => None,
        };
        let name = hotplug::steps().find(|s| Some(s.0) == step).map(|s| s.2);
        let state = format!("{state:?}");
        log(format!("{} {}", state.split('(').next().unwrap(), name.unwrap_or("-")));
    }
    fn start(cpu: CpuId) -> Result<(), StepError> {
        look(cpu);
        Ok(())
    }

    let _system = system();
    let names = ["one", "two", "three"];
    let sections = [Section::Prepare, Section::Starting, Section::Online];
    let ids = [0, 1, 2].map(|n| {
        let id = hotplug::register(sections[n], names[n], Some(start), Some(look)).unwrap();
        assert_eq!(take_log(), ["Online -"; CPUS], "the CPUs stay what they are");
        id
    });
    assert_eq!(hotplug::state(victim()), CpuState::Online);
    hotplug::cpu_down(victim()).unwrap();
    assert_eq!(take_log(), ["GoingDown three", "GoingDown two", "GoingDown one"]);
    assert_eq!(hotplug::state(victim()), CpuState::Offline);
    hotplug::inject_failure(ids[2], victim());
    hotplug::cpu_up(victim()).unwrap_err();
    assert_eq!(take_log(), ["GoingUp one", "GoingUp two", "GoingDown two", "GoingDown one"]);
    assert_eq!(hotplug::state(victim()), CpuState::Offline);
    hotplug::cpu_up(victim()).unwrap();
    assert_eq!(take_log(), ["GoingUp one", "GoingUp two", "GoingUp three"]);
    assert_eq!(hotplug::state(victim()), CpuState::Online);
    ids.into_iter().for_each(hotplug::unregister);
    take_log();
}

#[test]
fn what_did_not_come_back_is_not_torn_down() {
    static REFUSES: AtomicBool = AtomicBool::new(false);

    fn start(_: CpuId) -> Result<(), StepError> {
        let refuses = REFUSES.load(Relaxed);
        log(if refuses { "refuses".into() } else { "up 1".into() });
        if refuses { Err(StepError(5)) } else { Ok(()) }
    }

    let _system = system();
    let first = hotplug::register(Section::Online, "first", Some(up::<0>), Some(down::<0>));
    let second = hotplug::register(Section::Online, "second", Some(start), Some(down::<1>));
    let (first, second) = (first.unwrap(), second.unwrap());
    take_log();
    let fail_down = || {
        hotplug::inject_failure(first, victim());
        hotplug::cpu_down(victim()).unwrap_err();
        assert_up(victim());
        take_log()
    };
    REFUSES.store(true, Relaxed);
    assert_eq!(fail_down(), ["down 1", "refuses"]);
    assert_eq!(fail_down(), ["refuses"], "not torn down, but tried again");
    REFUSES.store(false, Relaxed);
    assert_eq!(fail_down(), ["up 1"]);
    assert_eq!(fail_down(), ["down 1", "up 1"]);
    REFUSES.store(true, Relaxed);
    assert_eq!(fail_down(), ["down 1", "refuses"]);
    hotplug::cpu_down(victim()).unwrap();
    assert_eq!(take_log(), ["down 0"]);
    REFUSES.store(false, Relaxed);
    hotplug::cpu_up(victim()).unwrap();
    assert_eq!(take_log(), ["up 0", "up 1"], "a new life has it all");

    // The step's end is one more tear-down.
    REFUSES.store(true, Relaxed);
    fail_down();
    hotplug::unregister(second);
    assert_eq!(take_log(), vec!["down 1"; CPUS - 1]);
    hotplug::unregister(first);
    take_log();
}
