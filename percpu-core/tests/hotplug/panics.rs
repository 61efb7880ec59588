//! Callbacks that panic, or break what a callback must keep: everything stays whole, and the next CPU
//! goes up and down as if nothing had happened.

use std::mem::forget;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

use percpu_core::counter::PercpuCounter;
use percpu_core::cpu::CpuId;
use percpu_core::host;
use percpu_core::hotplug::{self, HotplugError, RegisterError, Section, StepError};
use percpu_core::{irq, preempt};

use super::steps::{PREPARE, STEPS, Steps, downs, ups};
use super::{CPUS, assert_down, assert_up, cpu, log, system, take_log, victim};

const SECTIONS: [Section; 3] = [Section::Prepare, Section::Starting, Section::Online];

/// What [`bad_up`] and [`bad_down`] do for the victim, or on every CPU: a [`Deed`]; 0 for nothing.
static UP: AtomicUsize = AtomicUsize::new(0);
static DOWN: AtomicUsize = AtomicUsize::new(0);

/// What a callback does that it must not.
const DEEDS: [fn(); 8] = [
    || (),
    || panic!("a callback panics, as the test wants it"),
    || forget(preempt::disable()),
    || forget(irq::disable()),
    || _ = hotplug::register(Section::Online, "nested", None, None),
    || _ = hotplug::cpu_up(victim()),
    || drop(hotplug::cpus_read_lock()),
    || hotplug::unregister_nocalls(hotplug::steps().next().unwrap().0),
];
const NOTHING: usize = 0;
const PANIC: usize = 1;
const PREEMPT_GUARD: usize = 2;
const IRQ_GUARD: usize = 3;
const MASKS: usize = 6;

/// Once: a second panic while one unwinds would end the process, as in any destructor.
fn act(deed: &AtomicUsize, cpu: CpuId) {
    if cpu == victim() {
        DEEDS[deed.swap(NOTHING, SeqCst)]();
    }
}

fn bad_up(cpu: CpuId) -> Result<(), StepError> {
    act(&UP, cpu);
    log(format!("bad up {cpu}"));
    Ok(())
}

fn bad_down(cpu: CpuId) {
    log(format!("bad down {cpu}"));
    act(&DOWN, cpu);
}

fn set(up: usize, down: usize) {
    UP.store(up, SeqCst);
    DOWN.store(down, SeqCst);
}

fn panics<R>(f: impl FnOnce() -> R) -> bool {
    catch_unwind(AssertUnwindSafe(|| drop(f()))).is_err()
}

/// Ups and downs work, steps run in their order, and no guard is left on the CPU.
fn assert_whole() {
    set(NOTHING, NOTHING);
    assert_up(victim());
    take_log();
    let numbered = |log: Vec<String>| -> Vec<String> {
        log.into_iter().filter(|entry| !entry.starts_with("bad")).collect()
    };
    hotplug::cpu_down(victim()).unwrap();
    assert_eq!(numbered(take_log()), downs(0..STEPS));
    assert_down(victim());
    hotplug::cpu_up(victim()).unwrap();
    assert_eq!(numbered(take_log()), ups(0..STEPS));
    assert_up(victim());
    drop(hotplug::cpus_read_lock());
    let _cpu = host::enter_when_free(victim()).unwrap();
    assert_eq!(preempt::count(), 0);
}

#[test]
fn a_start_up_that_panics_at_registration_leaves_no_step() {
    let _system = system();
    let _steps = Steps::register();
    let before = hotplug::steps().count();
    for section in SECTIONS {
        set(PANIC, NOTHING);
        let register = || hotplug::register(section, "bad", Some(bad_up), Some(bad_down));
        if section == Section::Prepare {
            assert!(panics(register), "it unwinds through the thread that registers");
        } else {
            let error = StepError::PANICKED;
            assert_eq!(register(), Err(RegisterError::Step { cpu: victim(), error }));
        }
        // On those before, the latest first; not on those behind.
        assert_eq!(take_log(), ["bad up 0", "bad up 1", "bad down 1", "bad down 0"]);
        assert_eq!(hotplug::steps().count(), before);
        assert_whole();
    }
}

#[test]
fn a_start_up_that_panics_is_rolled_back_as_one_that_fails() {
    let _system = system();
    let _steps = Steps::register();
    let sum = PercpuCounter::new(0).unwrap();
    for section in SECTIONS {
        let step = hotplug::register(section, "bad", Some(bad_up), Some(bad_down)).unwrap();
        hotplug::cpu_down(victim()).unwrap();
        take_log();
        set(PANIC, NOTHING);
        if section == Section::Prepare {
            assert!(panics(|| hotplug::cpu_up(victim())));
        } else {
            let (name, error) = ("bad", StepError::PANICKED);
            let failed = HotplugError::Step { id: step, name, error };
            assert_eq!(hotplug::cpu_up(victim()), Err(failed));
        }
        assert_down(victim());
        let done = match section {
            Section::Prepare => PREPARE,
            Section::Starting => 2 * PREPARE,
            Section::Online => STEPS,
        };
        assert_eq!(take_log(), [ups(0..done), downs(0..done)].concat());
        set(NOTHING, NOTHING);
        hotplug::cpu_up(victim()).unwrap();
        assert_whole();
        hotplug::unregister(step);
    }
    assert_eq!(sum.sum(), 0);
}

#[test]
fn a_tear_down_that_panics_is_done() {
    let _system = system();
    let _steps = Steps::register();
    let sum = PercpuCounter::new(0).unwrap();
    for section in SECTIONS {
        let step = hotplug::register(section, "bad", Some(bad_up), Some(bad_down)).unwrap();
        host::on_each_cpu(|_| sum.add(1));
        take_log();
        set(NOTHING, PANIC);
        // The CPU goes down all the same, and is down when the panic unwinds.
        let down = panics(|| assert_eq!(hotplug::cpu_down(victim()), Ok(())));
        assert_eq!(down, section == Section::Prepare);
        assert_down(victim());
        let log: Vec<_> = take_log().into_iter().filter(|entry| entry != "bad down 2").collect();
        assert_eq!(log, downs(0..STEPS), "all others, too");
        set(NOTHING, NOTHING);
        hotplug::cpu_up(victim()).unwrap();

        set(NOTHING, PANIC);
        take_log();
        let taken_out = panics(|| hotplug::unregister(step));
        assert_eq!(taken_out, section == Section::Prepare);
        assert_eq!(take_log(), ["bad down 0", "bad down 1", "bad down 2", "bad down 3"]);
        assert!(hotplug::steps().all(|other| other.0 != step));
        assert_whole();
    }
    assert_eq!(sum.sum(), 3 * CPUS as i64, "what the dead CPU had counted");
}

/// A value that counts its instances.
#[derive(Debug)]
struct Counted(Arc<AtomicU32>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[test]
fn instances_with_callbacks_that_panic_are_undone_and_freed() {
    let _system = system();
    let _steps = Steps::register();
    for section in SECTIONS {
        let alive = Arc::new(AtomicU32::new(0));
        let counted = || {
            alive.fetch_add(1, SeqCst);
            Counted(alive.clone())
        };
        let step = hotplug::register_multi::<Counted>(
            section,
            "bad",
            Some(|cpu, _| bad_up(cpu)),
            Some(|cpu, _| bad_down(cpu)),
        )
        .unwrap();
        set(PANIC, NOTHING);
        if section == Section::Prepare {
            assert!(panics(|| step.add(counted())));
        } else {
            let refused = step.add(counted()).unwrap_err();
            let error = StepError::PANICKED;
            assert_eq!(refused.error, RegisterError::Step { cpu: victim(), error });
        }
        assert_eq!(take_log(), ["bad up 0", "bad up 1", "bad down 1", "bad down 0"]);
        assert_eq!(alive.load(SeqCst), 0, "its value is dropped");

        set(NOTHING, NOTHING);
        let [first, second] = [(), ()].map(|()| step.add(counted()).unwrap());
        take_log();
        // Of a start-up of several the ones before are undone, of a tear-down all are done.
        set(NOTHING, PANIC);
        let down = panics(|| hotplug::cpu_down(victim()).unwrap());
        assert_eq!(down, section == Section::Prepare);
        assert_down(victim());
        hotplug::cpu_up(victim()).unwrap();
        set(NOTHING, PANIC);
        assert_eq!(panics(|| drop(first)), section == Section::Prepare);
        assert_eq!(alive.load(SeqCst), 1);
        set(NOTHING, NOTHING);
        take_log();
        drop(second);
        assert_eq!(take_log(), ["bad down 0", "bad down 1", "bad down 2", "bad down 3"]);
        assert_eq!(alive.load(SeqCst), 0);
        assert_whole();
    }
}

#[test]
fn what_a_callback_must_not_do_is_found() {
    let _system = system();
    let _steps = Steps::register();
    for deed in 1..DEEDS.len() {
        for section in SECTIONS {
            // Guards that are forgotten on the thread that registers are that thread's.
            let here = section == Section::Prepare;
            if here && [PREEMPT_GUARD, IRQ_GUARD].contains(&deed) {
                continue;
            }
            set(deed, NOTHING);
            let mut registered = None;
            let refused = panics(|| {
                registered = Some(hotplug::register(section, "bad", Some(bad_up), Some(bad_down)));
            });
            set(NOTHING, NOTHING);
            match registered {
                None => assert!(here && refused, "deed {deed} in {section:?}"),
                Some(Err(RegisterError::Step { cpu, error })) => {
                    assert_eq!((cpu, error), (victim(), StepError::PANICKED), "{deed} {section:?}");
                    assert!(!here);
                }
                // Interrupts are masked by the thread, which ends. The masks stand still for a callback
                // of a registration anyway.
                Some(Ok(step)) => {
                    assert!(deed == IRQ_GUARD || deed == MASKS, "{deed} {section:?}");
                    hotplug::unregister(step);
                }
                Some(other) => panic!("{deed} {section:?}: {other:?}"),
            }
            assert_whole();
        }
    }
}

#[test]
fn a_callback_that_locks_the_masks_while_a_cpu_is_on_its_way_is_found() {
    let _system = system();
    let _steps = Steps::register();
    for section in SECTIONS {
        let step = hotplug::register(section, "bad", Some(bad_up), None).unwrap();
        hotplug::cpu_down(victim()).unwrap();
        set(MASKS, NOTHING);
        let up = catch_unwind(|| hotplug::cpu_up(victim()));
        set(NOTHING, NOTHING);
        assert_ne!(up.ok(), Some(Ok(())), "it would wait for itself");
        assert_down(victim());
        hotplug::cpu_up(victim()).unwrap();
        hotplug::unregister(step);
        assert_whole();
    }
}

#[test]
fn a_start_up_that_panics_when_a_take_down_is_rolled_back_is_remembered() {
    let _system = system();
    let steps = Steps::register();
    let bad = hotplug::register(Section::Online, "bad", Some(bad_up), Some(bad_down)).unwrap();
    let other = cpu(1);
    assert_ne!(other, victim());
    take_log();
    set(PANIC, NOTHING);
    // Torn down before the one that fails, and started again after that.
    let first_online =
        hotplug::steps().find(|step| step.2 == "numbered" && step.1 == Section::Online);
    hotplug::inject_failure(first_online.unwrap().0, victim());
    assert!(matches!(
        hotplug::cpu_down(victim()),
        Err(HotplugError::Step { error: StepError::INJECTED, .. })
    ));
    assert_up(victim());
    set(NOTHING, NOTHING);
    take_log();
    hotplug::cpu_down(victim()).unwrap();
    assert_eq!(take_log(), downs(0..STEPS), "what the CPU was up without is not torn down");
    hotplug::cpu_up(victim()).unwrap();
    assert_whole();
    hotplug::unregister(bad);
    drop(steps);
}
