//! One run: the CPUs take turns as the scheduler says, timers, plugs and failures come at their
//! steps, and the judge looks.

use std::mem::offset_of;
use std::time::Duration;

use percpu_guest::abi::{
    BootParams, ControlBlock, CpuState, Doorbell, SHARED, SharedHeader, control_block,
};

use super::cpus::Standing;
use super::scenario::{Plug, Scenario};
use super::schedule::{NEVER, Scheduler, Turn};
use super::serial::Machine;
use super::trace::{Entry, Trace};
use crate::coverage::Features;
use crate::crash;
use crate::diag::{Symbols, backtrace};
use crate::error::{Error, Status};
use crate::judge::{Judge, Quiescent, Signal, Violation};
use crate::memory::{Wild, write_view};
use crate::plug::{Injector, Order, Pending};
use crate::report;
use crate::vm::{Crash, Machine as _};

/// The CPU that takes commands.
const CONTROL_CPU: u32 = 0;
/// Steps after which a run that has not ended counts as hung, for each that was expected.
const HANG: u64 = 200;
/// Bells likewise.
const MOST_BELLS: u64 = 100_000;
/// Bells between two looks at the event rings.
const BELLS_A_DRAIN: u64 = 64;

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

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// What happened.
    pub trace: Trace,
    /// The CPUs' turns, of which [`Strategy::Fixed`](super::Strategy::Fixed) makes the same run.
    pub turns: Vec<Turn>,
    /// Where each CPU stood when it rang, one for each [`Entry::Ran`], if that was asked for.
    pub places: Vec<String>,
    /// Steps of all CPUs.
    pub steps: u64,
    /// Of which before operations on per-CPU copies and atomic read-modify-writes.
    pub points: u64,
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
    Host(Error),
}

impl From<Wild> for Stopped {
    fn from(wild: Wild) -> Self {
        Self::Wild(wild)
    }
}

impl Stopped {
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
            Self::Host(error) => Err(error),
        }
    }
}

/// A run under way.
pub(super) struct Run<'m, 'a> {
    machine: &'m mut Machine<'a>,
    scheduler: Scheduler,
    trace: Trace,
    bells: u64,
    able: Vec<u32>,
    /// The last CPU was made to stop at a step.
    stopped: bool,
    /// The moment at which the host wants to be asked, whoever runs.
    wake_at: u64,
    /// To name places with, if they are asked for.
    symbols: Option<&'m Symbols>,
    places: Vec<String>,
}

impl<'m, 'a> Run<'m, 'a> {
    pub(super) fn new(machine: &'m mut Machine<'a>, scheduler: Scheduler) -> Self {
        let (trace, able) = (Trace::default(), Vec::new());
        let (symbols, places) = (None, Vec::new());
        Self {
            stopped: false,
            machine,
            scheduler,
            trace,
            bells: 0,
            able,
            wake_at: NEVER,
            symbols,
            places,
        }
    }

    /// Notes where each CPU stands when it rings.
    pub(super) fn name_places(mut self, symbols: Option<&'m Symbols>) -> Self {
        self.symbols = symbols;
        self
    }

    fn note_place(&mut self, cpu: u32) {
        let Some(symbols) = self.symbols else { return };
        let registers = self.machine.vm.registers();
        let place = registers.into_iter().find(|(n, _)| *n == cpu).and_then(|(_, registers)| {
            let regs = registers?.regs;
            // The caller of the step, or of the doorbell.
            let frames = backtrace(&self.machine.mem, regs.rip, regs.rbp, regs.rsp);
            let names = frames.iter().skip(1).take(2).map(|f| symbols.describe(f.lookup(false)));
            Some(names.collect::<Vec<_>>().join(" < "))
        });
        self.places.push(place.unwrap_or_default());
    }

    /// Lets one CPU run until it rings, and does what it asks for.
    pub(super) fn advance(&mut self) -> Result<(Doorbell, u32), Stopped> {
        let Turn { cpu, interrupted, .. } = self.choose()?;
        let machine = &mut *self.machine;
        if let Some(vector) = machine.cpus.wake(cpu, interrupted)? {
            let steps = machine.clock.steps()?;
            self.trace.push(Entry::Raised { cpu, steps, vector });
        }
        machine.cpus.set(cpu, Standing::Ready);
        let (switch, point) = self.scheduler.next_switch();
        let mut moment = switch.min(self.wake_at);
        for other in machine.cpus.all() {
            if other == cpu {
                let timer = machine.cpus.timer(cpu)?;
                moment = moment.min(if timer == 0 { NEVER } else { timer });
            } else if let Standing::Waiting(until) = machine.cpus.standing(other)
                && self.scheduler.precedes(other, cpu)
            {
                moment = moment.min(until);
            }
        }
        machine.clock.ask_at(moment, point)?;
        let (bell, argument) =
            machine.vm.run(cpu).map_err(|crash| Stopped::Crash { cpu, crash })?;
        self.bells += 1;
        self.stopped = bell == Doorbell::Switch;
        let steps = machine.clock.steps()?;
        self.trace.push(Entry::Ran { cpu, steps, bell, argument });
        self.note_place(cpu);
        let machine = &mut *self.machine;
        let standing = match bell {
            Doorbell::Yield => Standing::Waiting(machine.clock.now()? + self.scheduler.wait()),
            Doorbell::Idle => Standing::Idle(machine.clock.now()? + self.scheduler.wait()),
            Doorbell::Dead => Standing::Off,
            Doorbell::StartCpu => {
                let started = u32::try_from(argument).unwrap_or(u32::MAX);
                machine.vm.start(started).map_err(Stopped::Host)?;
                machine.cpus.set(started, Standing::Ready);
                Standing::Ready
            }
            Doorbell::Exception => {
                return Err(Stopped::Crash { cpu, crash: Crash::Exception(argument) });
            }
            Doorbell::Panic => return Err(Stopped::Crash { cpu, crash: Crash::Panic(argument) }),
            Doorbell::Exit | Doorbell::Restored => {
                let value = argument << 8 | bell as u64;
                return Err(Stopped::Crash { cpu, crash: Crash::BadDoorbell(value) });
            }
            Doorbell::Hello | Doorbell::Event | Doorbell::Switch | Doorbell::Ready => {
                Standing::Ready
            }
        };
        machine.cpus.set(cpu, standing);
        Ok((bell, cpu))
    }

    /// The CPU that runs next. If none can, time passes until one can.
    fn choose(&mut self) -> Result<Turn, Stopped> {
        loop {
            let machine = &mut *self.machine;
            let (now, steps) = (machine.clock.now()?, machine.clock.steps()?);
            let trace = &mut self.trace;
            machine.cpus.raise_timers(now, |cpu, vector| {
                trace.push(Entry::Raised { cpu, steps, vector })
            })?;
            machine.cpus.able(now, &mut self.able)?;
            if !self.able.is_empty() {
                return Ok(self.scheduler.pick(
                    &self.able,
                    now,
                    machine.clock.points()?,
                    self.stopped,
                ));
            }
            let next = machine.cpus.next_moment()?.ok_or(Stopped::Deadlock)?;
            machine.clock.skip(next.saturating_sub(now).max(1))?;
        }
    }

    /// Goes through the scenario, from the moment at which the guest has booted.
    pub(super) fn complete(mut self, scenario: &Scenario) -> Result<Outcome, Error> {
        self.give_orders(scenario)?;
        let machine = &*self.machine;
        let mut judge = Judge::new(machine.mem.clone(), machine.topology.possible)?;
        judge.record();
        let mut plugs =
            Plugs::new(Injector::new(machine.mem.clone()), scenario, machine.clock.now()?);
        judge.drain();
        let stopped = self.drive(scenario, &mut judge, &mut plugs)?;
        judge.drain();
        self.note_events(&mut judge);
        let ending = match stopped {
            _ if !judge.violations().is_empty() => Ending::Broken(judge.violations().to_vec()),
            None => Ending::Held,
            Some(stopped @ (Stopped::Deadlock | Stopped::Endless)) => {
                Ending::Hung(stopped.report(self.machine, Some(&judge))?)
            }
            Some(stopped) => Ending::Crashed(stopped.report(self.machine, Some(&judge))?),
        };
        Ok(Outcome {
            ending,
            steps: self.machine.clock.steps()?,
            points: self.machine.clock.points()?,
            bells: self.bells,
            plugs: plugs.done,
            failed_plugs: plugs.failed,
            checks: judge.checks().values().sum(),
            features: Features::new(),
            reset: Duration::ZERO,
            trace: self.trace,
            turns: self.scheduler.into_turns(),
            places: self.places,
        })
    }

    /// Tells the guest what the scenario asks of it.
    fn give_orders(&self, scenario: &Scenario) -> Result<(), Error> {
        let at = SHARED + offset_of!(SharedHeader, boot) as u64;
        let before: BootParams = self.machine.mem.read(at)?;
        let boot = BootParams {
            seed: scenario.seed,
            workloads: scenario.workloads.iter().map(|w| w.bit()).sum(),
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
        let most_steps = self.machine.clock.now()? + scenario.expected_steps() * HANG;
        loop {
            let now = self.machine.clock.now()?;
            if let Some(vector) = plugs.give(self.machine, judge, now)? {
                let steps = self.machine.clock.steps()?;
                self.trace.push(Entry::Raised { cpu: CONTROL_CPU, steps, vector });
            }
            self.wake_at = plugs.due();
            let bell = match self.advance() {
                Ok((bell, _)) => bell,
                Err(stopped) => return Ok(Some(stopped)),
            };
            if bell == Doorbell::Event || self.bells.is_multiple_of(BELLS_A_DRAIN) {
                let signals = judge.drain();
                self.note_events(judge);
                let now = self.machine.clock.now()?;
                for signal in signals {
                    plugs.take(signal, judge, now);
                }
            } else if plugs.unplug_is_under_way() {
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
            }
            if self.bells > MOST_BELLS || self.machine.clock.now()? > most_steps {
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
    /// The next one, and the moment from which it may be given.
    next: Option<(Plug, u64)>,
    done: u64,
    failed: u64,
}

impl Plugs {
    fn new(injector: Injector, scenario: &Scenario, now: u64) -> Self {
        let left = scenario.plugs.clone().into_iter();
        let mut plugs = Self { injector, left, next: None, done: 0, failed: 0 };
        plugs.prepare(now);
        plugs
    }

    fn prepare(&mut self, now: u64) {
        self.next = self.left.next().map(|plug| (plug, now + plug.after));
    }

    /// The moment at which the next order is due.
    fn due(&self) -> u64 {
        match (self.injector.pending(), self.next) {
            (None, Some((_, due))) => due,
            _ => NEVER,
        }
    }

    fn are_over(&self) -> bool {
        self.injector.pending().is_none() && self.next.is_none()
    }

    /// Gives the next order if it is due; the interrupt that announces it.
    fn give(
        &mut self,
        machine: &Machine<'_>,
        judge: &mut Judge,
        now: u64,
    ) -> Result<Option<u8>, Error> {
        let Some((plug, _)) = self.next.filter(|_| now >= self.due()) else { return Ok(None) };
        judge.before_plug();
        if let Some(step) = plug.fail {
            self.injector.fail_step(plug.cpu, step)?;
        }
        let state = control_block(plug.cpu) + offset_of!(ControlBlock, state) as u64;
        let online = machine.mem.load_u32(state)? == CpuState::Online as u32;
        let order = if online { Order::Unplug(plug.cpu) } else { Order::Plug(plug.cpu) };
        self.injector.post(order)?;
        Ok(Some(machine.cpus.raise_command(CONTROL_CPU)?))
    }

    fn unplug_is_under_way(&self) -> bool {
        matches!(self.injector.pending(), Some(Pending { order: Order::Unplug(_), .. }))
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
