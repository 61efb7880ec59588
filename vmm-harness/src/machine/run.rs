//! One run: the CPUs take turns as the scheduler says, timers, plugs and failures come at their
//! steps, and the judge looks.

use std::mem::offset_of;
use std::time::Duration;

use percpu_guest::abi::{
    BootParams, ControlBlock, CpuState, Doorbell, SHARED, SharedHeader, Stay, control_block,
};

use super::cpus::NEVER;
use super::scenario::{Plug, Scenario, Unit};
use super::schedule::Schedule;
use super::serial::Machine;
use super::trace::{Entry, Trace};
use crate::counts;
use crate::coverage::Features;
use crate::crash;
use crate::error::{Error, Status};
use crate::judge::{Judge, Quiescent, Signal, Violation};
use crate::memory::{Wild, write_view};
use crate::plug::{Injector, Order, Pending};
use crate::report;
use crate::vm::Crash;

/// Steps from the order to take a CPU down until the judge looks first; then four times as many, and so
/// on.
const LOOK: u64 = 2048;
/// Steps until the next look where the guest was not at rest yet, or had not said all.
const AGAIN: u64 = 2048;

/// How a run ended.
#[derive(Clone, Debug)]
pub enum Ending {
    /// All operations and plugs done, every invariant held.
    Held,
    /// The judge or the guest saw invariants broken.
    Broken(Vec<Violation>),
    /// The guest cannot go on.
    Crashed(report::Crash),
    /// It does not end.
    Hung(report::Crash),
}

impl Ending {
    /// The invariant that is broken, or what else happened, in a word: what a failure is known by.
    pub fn name(&self) -> &str {
        match self {
            Self::Held => "held",
            Self::Broken(violations) => violations.first().map_or("broken", |v| v.invariant),
            Self::Crashed(_) => "crash",
            Self::Hung(_) => "hang",
        }
    }
}

impl Ending {
    /// What to tell the caller.
    pub fn status(&self) -> Status {
        match self {
            Self::Held => Status::Held,
            Self::Broken(_) => Status::Broken,
            Self::Crashed(_) => Status::Crashed,
            Self::Hung(_) => Status::Hung,
        }
    }
}

/// How long a run took, as changes of a schedule are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// By the guest's clock: its steps, and those that were skipped because all CPUs waited.
    pub steps: u64,
    /// Points.
    pub points: u64,
}

impl Span {
    /// In this unit.
    pub fn of(self, unit: Unit) -> u64 {
        match unit {
            Unit::Steps => self.steps,
            Unit::Points => self.points,
        }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// What happened.
    pub trace: Trace,
    /// The schedule as far as it came.
    pub schedule: Schedule,
    /// Steps of all CPUs.
    pub steps: u64,
    /// Of which before operations on per-CPU copies and atomic read-modify-writes.
    pub points: u64,
    /// The CPU that ran last and, of a run that did not end well, where it stood then: return
    /// addresses, the innermost first.
    pub last: (u32, Vec<u64>),
    /// How long it took from its beginning on.
    pub length: Span,
    /// Exits to the host.
    pub bells: u64,
    /// Plugs and unplugs that the guest carried out.
    pub plugs: u64,
    /// Those that failed or were rolled back.
    pub failed_plugs: u64,
    /// Objects that were held against invariants.
    pub checks: u64,
    /// What it reached, boot included.
    pub features: Features,
    /// Time it took to put the guest back before the run.
    pub reset: Duration,
}

/// Why the guest stands still for good.
#[derive(Debug)]
pub(super) enum Stopped {
    Crash {
        cpu: u32,
        crash: Crash,
    },
    /// Every CPU waits for an interrupt that nobody will raise.
    Deadlock,
    /// It goes on for ever.
    Endless,
    Wild(Wild),
}

impl From<Wild> for Stopped {
    fn from(wild: Wild) -> Self {
        Self::Wild(wild)
    }
}

impl Stopped {
    /// Whether the guest would go on, if it were let, and lead nowhere.
    fn is_hang(&self) -> bool {
        matches!(self, Self::Deadlock | Self::Endless | Self::Crash { crash: Crash::Stuck(_), .. })
    }

    /// As a report.
    pub(super) fn describe(self, machine: &Machine<'_>) -> report::Crash {
        self.report(machine, None)
            .unwrap_or_else(|error| report::Crash { text: error.to_string(), cpus: Vec::new() })
    }

    fn report(self, machine: &Machine<'_>, judge: Option<&Judge>) -> Result<report::Crash, Error> {
        let scene = machine.scene(judge);
        match self {
            Self::Crash { cpu, crash } => crash::report(&scene, cpu, &crash),
            Self::Deadlock => {
                let text = "every CPU waits for an interrupt, and none is due";
                Ok(crash::hang(&scene, text, &[]))
            }
            Self::Endless => Ok(crash::hang(&scene, "the run does not end", &[])),
            Self::Wild(wild) => Err(wild.into()),
        }
    }
}

/// A run under way.
pub(super) struct Run<'m, 'a> {
    machine: &'m mut Machine<'a>,
    trace: Trace,
    bells: u64,
    /// What CPUs did since the last exit.
    stays: Vec<Stay>,
}

impl<'m, 'a> Run<'m, 'a> {
    pub(super) fn new(machine: &'m mut Machine<'a>) -> Self {
        Self { machine, trace: Trace::default(), bells: 0, stays: Vec::new() }
    }

    /// Lets the guest run until it calls the host.
    pub(super) fn advance(&mut self) -> Result<Doorbell, Stopped> {
        let machine = &mut *self.machine;
        let rang = machine.vm.run();
        let cpu = machine.cpus.running()?;
        self.bells += 1;
        machine.cpus.take_stays(&mut self.stays)?;
        for stay in self.stays.drain(..) {
            self.trace.push(Entry::Stay(stay));
        }
        let (bell, argument) = rang.map_err(|crash| Stopped::Crash { cpu, crash })?;
        let steps = machine.clock.steps()?;
        self.trace.push(Entry::Rang { cpu, steps, bell, argument });
        let crash = match bell {
            Doorbell::Hello | Doorbell::Event | Doorbell::Ready => return Ok(bell),
            Doorbell::Switch if argument == 0 => return Ok(bell),
            Doorbell::Switch => return Err(Stopped::Deadlock),
            Doorbell::Exception => Crash::Exception(argument),
            Doorbell::Panic => Crash::Panic(argument),
            _ => Crash::BadDoorbell(argument << 8 | bell as u64),
        };
        Err(Stopped::Crash { cpu, crash })
    }

    /// Goes through the scenario, from the moment at which the guest has booted.
    pub(super) fn complete(
        mut self,
        scenario: &Scenario,
        mut schedule: Schedule,
    ) -> Result<Outcome, Error> {
        self.give_orders(scenario)?;
        let machine = &*self.machine;
        let (now, points) = (machine.clock.now()?, machine.clock.points()?);
        machine.cpus.follow(&schedule, now, points)?;
        let mut judge = Judge::new(machine.mem.clone(), machine.topology.possible)?
            .with_checks_of(machine.image);
        judge.record();
        let mut plugs = Plugs::new(Injector::new(machine.mem.clone()), scenario, now);
        judge.drain();
        let stopped = self.drive(scenario, &mut judge, &mut plugs)?;
        judge.drain();
        self.note_events(&mut judge);
        let ending = match stopped {
            _ if !judge.violations().is_empty() => Ending::Broken(judge.violations().to_vec()),
            None => Ending::Held,
            Some(stopped) if stopped.is_hang() => {
                Ending::Hung(stopped.report(self.machine, Some(&judge))?)
            }
            Some(stopped) => Ending::Crashed(stopped.report(self.machine, Some(&judge))?),
        };
        let clock = &self.machine.clock;
        let last = match ending {
            Ending::Held => (self.machine.cpus.running()?, Vec::new()),
            _ => (self.machine.cpus.running()?, self.machine.stands()),
        };
        // Whatever the guest says.
        let length = Span {
            steps: clock.now()?.saturating_sub(now),
            points: clock.points()?.saturating_sub(points),
        };
        schedule.changes.truncate(self.machine.cpus.changes_done()? as usize);
        Ok(Outcome {
            ending,
            steps: self.machine.clock.steps()?,
            points: self.machine.clock.points()?,
            last,
            length,
            bells: self.bells,
            plugs: plugs.done,
            failed_plugs: plugs.failed,
            checks: counts::total(judge.checks().values().copied()),
            features: Features::new(),
            reset: Duration::ZERO,
            trace: self.trace,
            schedule,
        })
    }

    /// Tells the guest what the scenario asks of it.
    fn give_orders(&self, scenario: &Scenario) -> Result<(), Error> {
        let at = SHARED + offset_of!(SharedHeader, boot) as u64;
        let before: BootParams = self.machine.mem.read(at)?;
        let boot = BootParams {
            seed: scenario.seed,
            workloads: self.machine.image.workloads().bits(&scenario.workloads),
            threads: scenario.threads,
            operations: scenario.operations,
            tick_us: scenario.tick_us,
            ..before
        };
        write_view(self.machine.vm.memory(), at, &boot)
    }

    /// Runs until the scenario is over, or the guest stops before.
    fn drive(
        &mut self,
        scenario: &Scenario,
        judge: &mut Judge,
        plugs: &mut Plugs,
    ) -> Result<Option<Stopped>, Error> {
        let most_steps = self.machine.clock.now()?.saturating_add(scenario.most_steps());
        // The moment at which what was not there yet may be.
        let mut again = NEVER;
        loop {
            let now = self.machine.clock.now()?;
            if let Some(entry) = plugs.give(self.machine, judge)? {
                self.trace.push(entry);
            }
            let look = plugs.next_look(now);
            self.machine.cpus.ask_at(look.min(again).min(most_steps))?;
            let bell = match self.advance() {
                Ok(bell) => bell,
                Err(stopped) => return Ok(Some(stopped)),
            };
            let now = self.machine.clock.now()?;
            again = NEVER;
            if bell == Doorbell::Event || judge.waits() {
                let signals = judge.drain();
                self.note_events(judge);
                for signal in signals {
                    plugs.take(signal, judge, now);
                }
                // A CPU was stopped between an event's number and the event: nobody will ring for it.
                if judge.waits() {
                    again = now.saturating_add(AGAIN);
                }
            }
            if plugs.unplug_is_under_way() {
                judge.during_unplug();
            }
            if !judge.violations().is_empty() {
                return Ok(None);
            }
            if plugs.are_over() && self.workload_is_over(scenario)? {
                let quiescent = judge.check_quiescent();
                self.note_events(judge);
                if quiescent == Quiescent::Checked {
                    return Ok(None);
                }
                again = now.saturating_add(AGAIN);
            }
            if now >= most_steps {
                return Ok(Some(Stopped::Endless));
            }
        }
    }

    fn note_events(&mut self, judge: &mut Judge) {
        for event in judge.take_recorded() {
            self.trace.push(Entry::Event(event));
        }
    }

    /// Whether all operations are done and all threads have ended.
    fn workload_is_over(&self, scenario: &Scenario) -> Result<bool, Wild> {
        let mem = &self.machine.mem;
        let at = |offset: usize| SHARED + offset as u64;
        Ok(mem.load_u64(at(offset_of!(SharedHeader, operations_done)))? >= scenario.operations
            && mem.load_u32(at(offset_of!(SharedHeader, threads)))? == 0)
    }
}

/// The scenario's plugs, as they go.
struct Plugs {
    injector: Injector,
    left: std::vec::IntoIter<Plug>,
    /// The next one, and when it is due.
    next: Option<(Plug, u64)>,
    /// The moment at which the latest order was due.
    ordered: u64,
    done: u64,
    failed: u64,
}

impl Plugs {
    fn new(injector: Injector, scenario: &Scenario, now: u64) -> Self {
        let left = scenario.plugs.clone().into_iter();
        let mut plugs = Self { injector, left, next: None, ordered: now, done: 0, failed: 0 };
        plugs.prepare(now);
        plugs
    }

    fn prepare(&mut self, now: u64) {
        self.next = self.left.next().map(|plug| (plug, now.saturating_add(plug.after)));
    }

    fn are_over(&self) -> bool {
        self.injector.pending().is_none() && self.next.is_none()
    }

    /// Gives the next order if the one before was answered, and says so. The guest finds it when it is
    /// due: until then nothing happens that has to do with plugs.
    fn give(&mut self, machine: &Machine<'_>, judge: &mut Judge) -> Result<Option<Entry>, Error> {
        if self.injector.pending().is_some() {
            return Ok(None);
        }
        let Some((plug, due)) = self.next else { return Ok(None) };
        judge.before_plug();
        if let Some(step) = plug.fail {
            self.injector.fail_step(plug.cpu, step)?;
        }
        let state = control_block(plug.cpu) + offset_of!(ControlBlock, state) as u64;
        let online = machine.mem.load_u32(state)? == CpuState::Online as u32;
        let order = if online { Order::Unplug(plug.cpu) } else { Order::Plug(plug.cpu) };
        self.injector.post(order)?;
        self.ordered = due;
        machine.cpus.command_at(due)?;
        let steps = machine.clock.steps()?;
        let Plug { after, cpu, fail } = plug;
        Ok(Some(Entry::Ordered { steps, after, up: !online, cpu, fail }))
    }

    fn unplug_is_under_way(&self) -> bool {
        matches!(self.injector.pending(), Some(Pending { order: Order::Unplug(_), .. }))
    }

    /// The moment after `now` at which the judge is to look, if a CPU goes down.
    fn next_look(&self, now: u64) -> u64 {
        if !self.unplug_is_under_way() {
            return NEVER;
        }
        let passed = now.saturating_sub(self.ordered);
        let mut look = LOOK;
        while look <= passed {
            look = look.saturating_mul(4);
        }
        self.ordered.saturating_add(look)
    }

    /// Follows what the guest announces, and has the answer to an order judged.
    fn take(&mut self, signal: Signal, judge: &mut Judge, now: u64) {
        let (result, command) = match signal {
            Signal::PlugDone { cpu, result, command } => {
                judge.after_plug(cpu, result);
                (result, command)
            }
            Signal::UnplugDone { cpu, result, command } => {
                judge.after_unplug(cpu, result);
                (result, command)
            }
            _ => return,
        };
        if self.injector.answered(command).is_some() {
            judge.check_instant();
            self.done += u64::from(result.is_ok());
            self.failed += u64::from(result.is_err());
            self.prepare(now);
        }
    }
}
