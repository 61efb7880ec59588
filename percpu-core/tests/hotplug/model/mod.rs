//! Random steps, instances, failures and plugs, against a reference that says which callbacks run,
//! in which order, and with what outcome.

mod reference;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use percpu_core::cpu::CpuId;
use percpu_core::hotplug::{
    self, CpuState, HotplugError, Instance, InstanceStartup, InstanceTeardown, MultiStep,
    RegisterError, Section, Startup, StepError, StepId, Teardown,
};
use proptest::prelude::*;

use super::scale::{cases, scaled};
use super::{CPUS, cpu, log, system, take_log};
use reference::{Callbacks, Kind, Reference, Step};

const SECTIONS: [Section; 3] = [Section::Prepare, Section::Starting, Section::Online];
/// Steps with one pair of callbacks that there can be at a time.
const SINGLES: usize = 4;
/// What a callback that refuses says.
const REFUSED: StepError = StepError(-1);

/// CPUs for which the start-up of a single step refuses, a bit each.
static REFUSES: [AtomicU32; SINGLES] = [const { AtomicU32::new(0) }; SINGLES];

fn entry(what: &str, name: &str, cpu: CpuId) -> String {
    format!("{what} {name} on {cpu}")
}

/// What every start-up does: logs, and refuses where it was told to.
fn start(name: &str, refuses: &AtomicU32, cpu: CpuId) -> Result<(), StepError> {
    let refuse = refuses.load(Relaxed) & 1 << cpu.index() != 0;
    log(entry(if refuse { "refused" } else { "up" }, name, cpu));
    if refuse { Err(REFUSED) } else { Ok(()) }
}

fn single<const N: usize>() -> (Startup, Teardown) {
    (
        |cpu| start(&format!("s{N}"), &REFUSES[N], cpu),
        |cpu| log(entry("down", &format!("s{N}"), cpu)),
    )
}

const CALLBACKS: [fn() -> (Startup, Teardown); SINGLES] =
    [single::<0>, single::<1>, single::<2>, single::<3>];

/// An instance.
#[derive(Debug)]
struct Tagged {
    name: String,
    refuses: Arc<AtomicU32>,
}

const STARTUP: InstanceStartup<Tagged> = |cpu, it| start(&it.name, &it.refuses, cpu);
const TEARDOWN: InstanceTeardown<Tagged> = |cpu, it| log(entry("down", &it.name, cpu));

#[derive(Clone, Debug)]
enum Op {
    Register { section: usize, calls: bool },
    RegisterMulti { section: usize },
    Unregister { step: usize, calls: bool },
    Add { step: usize, calls: bool },
    Remove { step: usize, instance: usize, calls: bool },
    FailStep { step: usize, cpu: usize },
    FailInstance { step: usize, nth: usize, cpu: usize },
    Refuse { step: usize, instance: usize, cpu: usize, on: bool },
    Up(usize),
    Down(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let step = 0..8usize;
    let cpus = 0..CPUS;
    // The boot CPU mostly stays: a system with several CPUs shows more.
    let plugged = prop_oneof![8 => 1..CPUS, 1 => Just(0)];
    let calls = prop::bool::weighted(0.8);
    prop_oneof![
        2 => (0..3usize, calls).prop_map(|(section, calls)| Op::Register { section, calls }),
        2 => (0..3usize).prop_map(|section| Op::RegisterMulti { section }),
        1 => (step.clone(), calls).prop_map(|(step, calls)| Op::Unregister { step, calls }),
        6 => (step.clone(), calls).prop_map(|(step, calls)| Op::Add { step, calls }),
        2 => (step.clone(), 0..4usize, calls)
            .prop_map(|(step, instance, calls)| Op::Remove { step, instance, calls }),
        3 => (step.clone(), cpus.clone()).prop_map(|(step, cpu)| Op::FailStep { step, cpu }),
        3 => (step.clone(), 0..4usize, cpus.clone())
            .prop_map(|(step, nth, cpu)| Op::FailInstance { step, nth, cpu }),
        3 => (step, 0..4usize, cpus, any::<bool>())
            .prop_map(|(step, instance, cpu, on)| Op::Refuse { step, instance, cpu, on }),
        6 => plugged.clone().prop_map(Op::Up),
        8 => plugged.prop_map(Op::Down),
    ]
}

type Names = MultiStep<Tagged>;

/// What is really there of a step with instances. They end before it.
struct Multi {
    id: StepId,
    instances: Vec<Instance<'static, Tagged>>,
    step: *mut Names,
}

impl Multi {
    fn register(section: Section) -> Self {
        let step = hotplug::register_multi(section, "multi", Some(STARTUP), Some(TEARDOWN));
        let step = Box::new(step.unwrap());
        Self { id: step.id(), instances: Vec::new(), step: Box::into_raw(step) }
    }

    fn step(&self) -> &'static Names {
        // SAFETY: dropped at this one's end only, after the instances.
        unsafe { &*self.step }
    }
}

impl Drop for Multi {
    fn drop(&mut self) {
        self.instances.drain(..).for_each(drop);
        // SAFETY: made by `Box::into_raw`; nobody borrows it any more.
        drop(unsafe { Box::from_raw(self.step) });
    }
}

/// The reference, and what it is a reference of.
struct World {
    reference: Reference,
    multis: Vec<Multi>,
    instances: usize,
}

impl World {
    fn new() -> Self {
        let up = (1 << CPUS) - 1;
        let reference = Reference { up, ..Reference::default() };
        Self { reference, multis: Vec::new(), instances: 0 }
    }

    fn multi(&mut self, id: StepId) -> &mut Multi {
        self.multis.iter_mut().find(|multi| multi.id == id).unwrap()
    }

    /// The step that an operation's number means.
    fn pick(&self, step: usize) -> Option<usize> {
        step.checked_rem(self.reference.steps.len())
    }

    /// Likewise, of those with instances, with the number of these.
    fn pick_multi(&self, step: usize) -> Option<(usize, usize)> {
        let multis = self.reference.steps.iter().enumerate().filter_map(|(n, step)| {
            let Kind::Multi(list) = &step.kind else { return None };
            Some((n, list.len()))
        });
        let multis: Vec<_> = multis.collect();
        multis.get(step.checked_rem(multis.len())?).copied()
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Register { section, calls } => self.register(SECTIONS[section], calls),
            Op::RegisterMulti { section } => {
                let multi = Multi::register(SECTIONS[section]);
                self.push(multi.id, SECTIONS[section], Kind::Multi(Vec::new()));
                self.multis.push(multi);
            }
            Op::Unregister { step, calls } => {
                let Some(n) = self.pick(step) else { return };
                self.unregister(n, calls);
            }
            Op::Add { step, calls } => {
                let Some((n, len)) = self.pick_multi(step) else { return };
                if len < 4 {
                    self.add(n, calls);
                }
            }
            Op::Remove { step, instance, calls } => {
                let Some((n, len)) = self.pick_multi(step) else { return };
                let Some(instance) = instance.checked_rem(len) else { return };
                self.reference.remove(n, instance, calls);
                let id = self.reference.steps[n].id;
                let instance = self.multi(id).instances.remove(instance);
                if calls { drop(instance) } else { instance.remove_nocalls() }
            }
            Op::FailStep { step, cpu } => {
                let Some(n) = self.pick(step) else { return };
                self.reference.steps[n].fails |= 1 << cpu;
                hotplug::inject_failure(self.reference.steps[n].id, super::cpu(cpu));
            }
            Op::FailInstance { step, nth, cpu } => {
                let Some((n, _)) = self.pick_multi(step) else { return };
                let id = self.reference.steps[n].id;
                self.reference.fails[cpu] = Some((id, nth));
                hotplug::inject_instance_failure(id, nth, super::cpu(cpu));
            }
            Op::Refuse { step, instance, cpu, on } => {
                let Some(n) = self.pick(step) else { return };
                self.refuse(n, instance, cpu, on);
            }
            Op::Up(n) => {
                let expected = self.reference.cpu_up(n);
                compare(expected, hotplug::cpu_up(cpu(n)), HotplugError::AlreadyOnline);
            }
            Op::Down(n) => {
                let last = self.reference.up == 1 << n;
                let refused = if last { HotplugError::LastCpu } else { HotplugError::NotOnline };
                let expected = self.reference.cpu_down(n);
                compare(expected, hotplug::cpu_down(cpu(n)), refused);
            }
        }
    }

    fn push(&mut self, id: StepId, section: Section, kind: Kind) {
        self.reference.steps.push(Step { id, section, kind, fails: 0, missing: 0 });
    }

    fn register(&mut self, section: Section, calls: bool) {
        let taken =
            |n| self.reference.steps.iter().any(|s| matches!(s.kind, Kind::Single(m, _) if m == n));
        let Some(n) = (0..SINGLES).find(|&n| !taken(n)) else { return };
        let (startup, teardown) = CALLBACKS[n]();
        // It is there, and what was told to the one before counts.
        let callbacks = Callbacks { name: format!("s{n}"), refuses: REFUSES[n].load(Relaxed) };
        let register = if calls { hotplug::register } else { hotplug::register_nocalls };
        let result = register(section, "single", Some(startup), Some(teardown));
        let caught_up = match calls {
            true => self.reference.catch_up(|this, cpu| this.call_start(&callbacks, cpu)),
            false => Ok(()),
        };
        match caught_up {
            Ok(()) => self.push(result.unwrap(), section, Kind::Single(n, callbacks)),
            Err((failed, error)) => {
                let before = |cpu: &usize| *cpu < failed;
                for cpu in self.reference.cpus_up().into_iter().filter(before).rev() {
                    self.reference.saw("down", &callbacks, cpu);
                }
                assert_eq!(result, Err(RegisterError::Step { cpu: cpu(failed), error }));
            }
        }
    }

    fn unregister(&mut self, n: usize, calls: bool) {
        let step = self.reference.steps[n].clone();
        match step.kind {
            Kind::Single(..) => {
                self.reference.unregister(n, calls);
                let unregister =
                    if calls { hotplug::unregister } else { hotplug::unregister_nocalls };
                unregister(step.id);
            }
            Kind::Multi(list) => {
                list.iter().for_each(|_| self.reference.remove(n, 0, true));
                self.reference.unregister(n, false);
                self.multis.retain(|multi| multi.id != step.id);
            }
        }
    }

    fn add(&mut self, n: usize, calls: bool) {
        self.instances += 1;
        let name = format!("i{}", self.instances);
        let expected = self.reference.add(n, Callbacks { name: name.clone(), refuses: 0 }, calls);
        let id = self.reference.steps[n].id;
        let multi = self.multi(id);
        let value = Tagged { name, refuses: Arc::default() };
        let added = if calls { multi.step().add(value) } else { multi.step().add_nocalls(value) };
        match (expected, added) {
            (Ok(()), Ok(instance)) => multi.instances.push(instance),
            (Err((failed, error)), Err(refused)) => {
                assert_eq!(refused.error, RegisterError::Step { cpu: cpu(failed), error });
            }
            (expected, added) => panic!("{expected:?} was expected, and is {added:?}"),
        }
    }

    fn refuse(&mut self, n: usize, instance: usize, cpu: usize, on: bool) {
        let set = |bits: u32| bits & !(1 << cpu) | u32::from(on) << cpu;
        let id = self.reference.steps[n].id;
        let nth = match &mut self.reference.steps[n].kind {
            Kind::Single(number, callbacks) => {
                callbacks.refuses = set(callbacks.refuses);
                REFUSES[*number].store(callbacks.refuses, Relaxed);
                return;
            }
            Kind::Multi(list) => {
                let Some(nth) = instance.checked_rem(list.len()) else { return };
                list[nth].refuses = set(list[nth].refuses);
                nth
            }
        };
        let refuses = &self.multi(id).instances[nth].refuses;
        refuses.store(set(refuses.load(Relaxed)), Relaxed);
    }

    fn check(&mut self, op: &Op) {
        assert_eq!(take_log(), std::mem::take(&mut self.reference.log), "after {op:?}");
        for n in 0..CPUS {
            let up = self.reference.up & 1 << n != 0;
            let state = if up { CpuState::Online } else { CpuState::Offline };
            assert_eq!(hotplug::state(cpu(n)), state);
            if up { super::assert_up(cpu(n)) } else { super::assert_down(cpu(n)) }
        }
        let order = self.reference.order();
        let expected = order.into_iter().map(|n| self.reference.steps[n].id);
        let own = |s: &(StepId, Section, &str)| ["single", "multi"].contains(&s.2);
        assert!(hotplug::steps().filter(own).map(|s| s.0).eq(expected));
    }
}

/// The reference knows an error's reason where that is a step.
fn compare(
    expected: Result<(), Option<(StepId, StepError)>>,
    result: Result<(), HotplugError>,
    refused: HotplugError,
) {
    match (expected, result) {
        (Err(Some(expected)), Err(HotplugError::Step { id, error, .. })) => {
            assert_eq!((id, error), expected);
        }
        (Err(None), result) => assert_eq!(result, Err(refused)),
        (expected, result) => assert!(
            expected.is_ok() && result.is_ok(),
            "{expected:?} was expected, and is {result:?}"
        ),
    }
}

impl Drop for World {
    /// Leaves the system as it was.
    fn drop(&mut self) {
        REFUSES.iter().for_each(|refuses| refuses.store(0, Relaxed));
        for step in &self.reference.steps {
            // Does nothing if it has instances.
            hotplug::unregister(step.id);
        }
        self.multis.clear();
        for n in 0..CPUS {
            if hotplug::state(cpu(n)) == CpuState::Offline {
                hotplug::cpu_up(cpu(n)).unwrap();
            }
        }
        take_log();
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(100),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn callbacks_run_as_the_reference_says(ops in prop::collection::vec(op(), 1..scaled(60))) {
        let _system = system();
        let mut world = World::new();
        take_log();
        for op in &ops {
            world.apply(op);
            world.check(op);
        }
    }
}
