//! Steps with instances.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use percpu_core::cpu::CpuId;
use percpu_core::hotplug::{
    self, AddError, HotplugError, MultiStep, RegisterError, Section, StepError,
};

use super::scale::scaled;
use super::{CPUS, VICTIM, assert_down, assert_up, cpu, log, system, take_log, victim};

const SECTIONS: [Section; 3] = [Section::Prepare, Section::Starting, Section::Online];

/// An instance that has a name.
type Named = &'static str;

fn start(_: CpuId, name: &Named) -> Result<(), StepError> {
    log(format!("up {name}"));
    Ok(())
}

fn stop(_: CpuId, name: &Named) {
    log(format!("down {name}"));
}

fn names(section: Section) -> MultiStep<Named> {
    hotplug::register_multi(section, "names", Some(start), Some(stop)).unwrap()
}

#[test]
fn instances_start_in_order_and_stop_in_reverse() {
    let _system = system();
    for section in SECTIONS {
        let step = names(section);
        let instances = ["a", "b", "c"].map(|name| step.add(name).unwrap());
        take_log();
        hotplug::cpu_down(victim()).unwrap();
        assert_eq!(take_log(), ["down c", "down b", "down a"]);
        hotplug::cpu_up(victim()).unwrap();
        assert_eq!(take_log(), ["up a", "up b", "up c"]);
        // What is in the middle can go, and the rest stays as it is.
        let [a, b, c] = instances;
        drop(b);
        assert_eq!(take_log(), ["down b"; CPUS]);
        let d = step.add("d").unwrap();
        drop(a);
        take_log();
        hotplug::cpu_down(victim()).unwrap();
        hotplug::cpu_up(victim()).unwrap();
        assert_eq!(take_log(), ["down d", "down c", "up c", "up d"]);
        drop((c, d));
    }
    take_log();
}

#[test]
fn of_a_failing_bring_up_only_completed_instances_are_undone() {
    let _system = system();
    fn before(_: CpuId) -> Result<(), StepError> {
        log("up before".into());
        Ok(())
    }
    for section in SECTIONS {
        let stop: hotplug::Teardown = |_| log("down before".into());
        let id = hotplug::register(section, "before", Some(before), Some(stop)).unwrap();
        let step = names(section);
        let _instances = ["a", "b", "c"].map(|name| step.add(name).unwrap());
        hotplug::cpu_down(victim()).unwrap();
        for (nth, expected) in [
            (0, &["up before", "down before"][..]),
            (1, &["up before", "up a", "down a", "down before"]),
            (2, &["up before", "up a", "up b", "down b", "down a", "down before"]),
        ] {
            take_log();
            hotplug::inject_instance_failure(step.id(), nth, victim());
            let error = hotplug::cpu_up(victim()).unwrap_err();
            let (id, name) = (step.id(), "names");
            assert_eq!(error, HotplugError::Step { id, name, error: StepError::INJECTED });
            assert_eq!(take_log(), expected, "{section:?}, instance {nth}");
            assert_down(victim());
        }
        hotplug::cpu_up(victim()).unwrap();
        assert_up(victim());
        hotplug::unregister(id);
    }
    take_log();
}

#[test]
fn of_a_failing_take_down_only_stopped_instances_start_again() {
    let _system = system();
    let step = names(Section::Online);
    let instances = ["a", "b", "c"].map(|name| step.add(name).unwrap());
    for (nth, expected) in
        [(2, &[][..]), (1, &["down c", "up c"]), (0, &["down c", "down b", "up b", "up c"])]
    {
        take_log();
        hotplug::inject_instance_failure(step.id(), nth, victim());
        hotplug::cpu_down(victim()).unwrap_err();
        assert_eq!(take_log(), expected, "instance {nth}");
        assert_up(victim());
    }
    drop(instances);
    take_log();
}

#[test]
fn if_an_instance_does_not_come_back_the_cpu_is_without_the_step() {
    struct Stubborn(&'static str, AtomicU32);
    let start: hotplug::InstanceStartup<Stubborn> = |_, it| match it.1.load(Relaxed) {
        0 => {
            log(format!("up {}", it.0));
            Ok(())
        }
        _ => {
            log(format!("refuses {}", it.0));
            Err(StepError(1))
        }
    };
    let _system = system();
    let stop: hotplug::InstanceTeardown<Stubborn> = |_, it| log(format!("down {}", it.0));
    let step =
        hotplug::register_multi(Section::Online, "stubborn", Some(start), Some(stop)).unwrap();
    let [a, b, c] =
        ["a", "b", "c"].map(|name| step.add(Stubborn(name, AtomicU32::new(0))).unwrap());
    take_log();
    c.1.store(1, Relaxed);
    hotplug::inject_instance_failure(step.id(), 0, victim());
    hotplug::cpu_down(victim()).unwrap_err();
    assert_eq!(take_log(), ["down c", "down b", "up b", "refuses c", "down b", "down a"]);
    assert_up(victim());

    // A further one runs for the other CPUs only, there and back.
    let d = step.add(Stubborn("d", AtomicU32::new(0))).unwrap();
    assert_eq!(take_log(), ["up d"; CPUS - 1]);
    drop(b);
    assert_eq!(take_log(), ["down b"; CPUS - 1]);
    hotplug::cpu_down(victim()).unwrap();
    assert_eq!(take_log(), [""; 0]);
    c.1.store(0, Relaxed);
    hotplug::cpu_up(victim()).unwrap();
    assert_eq!(take_log(), ["up a", "up c", "up d"]);
    drop((a, c, d));
    take_log();
}

#[test]
fn adding_catches_up_with_the_cpus_that_are_up() {
    let start: hotplug::InstanceStartup<Arc<u32>> = |cpu, refused| {
        log(format!("up {cpu}"));
        if cpu.index() == **refused as usize { Err(StepError(7)) } else { Ok(()) }
    };
    let stop: hotplug::InstanceTeardown<Arc<u32>> = |cpu, _| log(format!("down {cpu}"));
    let _system = system();
    hotplug::cpu_down(victim()).unwrap();
    for section in SECTIONS {
        let step = hotplug::register_multi(section, "catch up", Some(start), Some(stop)).unwrap();
        let value = Arc::new(3);
        let AddError { error, instance } = step.add(value.clone()).unwrap_err();
        assert_eq!(error, RegisterError::Step { cpu: cpu(3), error: StepError(7) });
        assert!(Arc::ptr_eq(&instance, &value), "the value comes back");
        drop(instance);
        assert_eq!(Arc::strong_count(&value), 1, "no copy stays");
        assert_eq!(take_log(), ["up 0", "up 1", "up 3", "down 1", "down 0"], "in reverse");

        // So does an ordered failure of the one that is added, and of the whole step.
        let nobody = Arc::new(99);
        let first = step.add(nobody.clone()).unwrap();
        take_log();
        hotplug::inject_instance_failure(step.id(), 1, cpu(1));
        let refused = step.add(nobody.clone()).unwrap_err();
        let injected = RegisterError::Step { cpu: cpu(1), error: StepError::INJECTED };
        assert_eq!((refused.error, take_log()), (injected, vec!["up 0".into(), "down 0".into()]));
        hotplug::inject_failure(step.id(), cpu(1));
        assert_eq!(step.add(nobody.clone()).unwrap_err().error, injected);
        take_log();

        hotplug::cpu_up(victim()).unwrap();
        assert_eq!(take_log(), ["up 2"], "what was not added does not run");
        hotplug::cpu_down(victim()).unwrap();
        take_log();
        drop(first);
        assert_eq!(take_log(), ["down 0", "down 1", "down 3"]);
    }
    hotplug::cpu_up(victim()).unwrap();
}

#[test]
fn without_calls_instances_come_and_go_unseen() {
    let _system = system();
    take_log();
    let step = names(Section::Online);
    let instance = step.add_nocalls("a").unwrap();
    assert_eq!(take_log(), [""; 0]);
    hotplug::cpu_down(victim()).unwrap();
    hotplug::cpu_up(victim()).unwrap();
    assert_eq!(take_log(), ["down a", "up a"]);
    instance.remove_nocalls();
    assert_eq!(take_log(), [""; 0]);
    hotplug::cpu_down(victim()).unwrap();
    hotplug::cpu_up(victim()).unwrap();
    assert_eq!(take_log(), [""; 0]);
}

#[test]
fn an_instances_callbacks_run_where_the_section_says() {
    let look: hotplug::InstanceStartup<()> = |cpu, ()| {
        let own = std::thread::current().name() == Some(&format!("cpu{cpu}"));
        if own {
            assert_eq!(cpu::current(), cpu);
        }
        log(if own { "its own thread" } else { "the control thread" }.into());
        Ok(())
    };
    let _system = system();
    for (section, place) in SECTIONS.into_iter().zip(["the control", "its own", "its own"]) {
        let step = hotplug::register_multi(section, "place", Some(look), None).unwrap();
        let instance = step.add(()).unwrap();
        hotplug::cpu_down(victim()).unwrap();
        hotplug::cpu_up(victim()).unwrap();
        assert_eq!(take_log(), vec![format!("{place} thread"); CPUS + 1]);
        drop(instance);
    }
}

#[test]
fn a_value_is_dropped_once_whichever_way_it_goes() {
    /// How many CPUs have it started, and a word that says that it was dropped.
    struct Counted(Arc<Mutex<(i32, u32)>>);
    impl Drop for Counted {
        fn drop(&mut self) {
            let mut it = self.0.lock().unwrap();
            assert_eq!(it.0, 0, "dropped while a CPU has it started");
            it.1 += 1;
        }
    }
    let _system = system();
    let step = hotplug::register_multi::<Counted>(
        Section::Online,
        "counted",
        Some(|_, it| {
            it.0.lock().unwrap().0 += 1;
            Ok(())
        }),
        Some(|_, it| it.0.lock().unwrap().0 -= 1),
    )
    .unwrap();
    let states: Vec<_> = (0..4).map(|_| Arc::new(Mutex::new((0, 0)))).collect();
    let add = |n: usize| step.add(Counted(states[n].clone())).unwrap();
    let state = |n: usize| *states[n].lock().unwrap();
    drop(add(0));
    let one = add(1);
    assert_eq!(one.0.lock().unwrap().0, CPUS as i32);
    std::mem::forget(add(2));
    std::mem::forget(add(3));
    assert_eq!([0, 1, 2, 3].map(state), [(0, 1), (4, 0), (4, 0), (4, 0)]);
    drop(one);
    hotplug::cpu_down(victim()).unwrap();
    let id = step.id();
    hotplug::unregister(id);
    hotplug::unregister_nocalls(id);
    assert!(hotplug::steps().any(|s| s.0 == id), "its owner takes it out");
    drop(step);
    assert_eq!([0, 1, 2, 3].map(state), [(0, 1); 4], "also what was forgotten");
    assert!(hotplug::steps().all(|s| s.0 != id));
    hotplug::cpu_up(victim()).unwrap();
}

#[test]
fn instances_come_and_go_while_cpus_do() {
    /// One bit for each CPU that has it started.
    #[derive(Default)]
    struct Started(AtomicU32);
    let start: hotplug::InstanceStartup<Started> = |cpu, it| {
        let before = it.0.fetch_or(1 << cpu.index(), Relaxed);
        assert_eq!(before & 1 << cpu.index(), 0, "started twice on {cpu:?}");
        Ok(())
    };
    let stop: hotplug::InstanceTeardown<Started> = |cpu, it| {
        let before = it.0.fetch_and(!(1 << cpu.index()), Relaxed);
        assert_ne!(before & 1 << cpu.index(), 0, "stopped twice on {cpu:?}");
    };
    let _system = system();
    let rounds = scaled(40);
    let steps = SECTIONS
        .map(|section| hotplug::register_multi(section, "storm", Some(start), Some(stop)).unwrap());
    std::thread::scope(|scope| {
        for step in &steps {
            scope.spawn(move || {
                for round in 0..rounds {
                    let instances = [(); 3].map(|()| step.add(Started::default()).unwrap());
                    {
                        let _still = hotplug::cpus_read_lock();
                        let online = cpu::online().iter().fold(0, |set, c| set | 1 << c.index());
                        for instance in &instances {
                            assert_eq!(instance.0.load(Relaxed), online, "round {round}");
                        }
                    }
                    let [a, b, c] = instances;
                    drop(b);
                    drop((a, c));
                }
            });
        }
        for _ in 0..rounds {
            for n in [VICTIM, VICTIM + 1] {
                hotplug::cpu_down(cpu(n)).unwrap();
                hotplug::cpu_up(cpu(n)).unwrap();
            }
        }
    });
}
