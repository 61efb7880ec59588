//! The side of the thread that brings a CPU up or down.
//!
//! What is undone when a step fails is undone by the drop of a guard, so that the same happens when
//! foreign code panics: [`GoingUp`], [`GoingDown`], [`Dying`].

use core::mem::{self, ManuallyDrop};
use core::ops::Range;

use super::instances::InstanceRef;
use super::readers;
use super::record::{Phase, Request, record};
use super::standing::{CpuState, set_state};
use super::steps::{self, Callbacks, Owner, Section, Step, StepError};
use super::{CpuOps, HotplugError, RegisterError, callback, has_work};
use crate::area;
use crate::cpu::{self, CpuId, MASKS};
use crate::platform::{Global, NoMemory, Platform};
use crate::preempt;
use crate::sync::{Mutex, MutexGuard, SpinLock};
use crate::unwind::{AtEnd, for_each_to_the_end};

/// Held by the one thread that changes a mask, the steps or their instances. Linux:
/// `cpu_add_remove_lock` and `cpuhp_state_mutex`.
static CONTROL: Mutex<()> = Mutex::new(());

static OPS: SpinLock<Option<&'static dyn CpuOps>> = SpinLock::new(None);

fn try_ops() -> Option<&'static dyn CpuOps> {
    *OPS.lock()
}

fn ops() -> &'static dyn CpuOps {
    try_ops().expect("hotplug::init was not called yet")
}

/// Returns whether the kernel takes the calling thread for `cpu`'s hotplug thread.
pub(super) fn is_hotplug_thread(cpu: CpuId) -> bool {
    try_ops().is_none_or(|ops| ops.is_hotplug_thread(cpu))
}

/// Takes the control lock.
///
/// # Panics
///
/// If that would wait for ever, because the holder waits for this thread.
#[track_caller]
pub(super) fn lock() -> MutexGuard<'static, (), Global> {
    CONTROL.lock_unless(|| {
        callback::refuse();
        refuse_occupied();
    })
}

/// Refuses to wait for hotplug while hotplug waits for this thread's CPU.
///
/// # Panics
///
/// If a request waits for the hotplug thread of a CPU that this thread [occupies](CpuOps::occupied).
#[track_caller]
pub(super) fn refuse_occupied() {
    if let Some(cpu) = try_ops().and_then(CpuOps::occupied)
        && has_work(cpu)
    {
        panic!(
            "a thread that is {cpu:?} waits for hotplug, which waits until that thread leaves the \
             CPU: leave it first"
        );
    }
}

/// Refuses to run a step's callback on the CPUs that are up if this thread occupies one of them.
///
/// # Panics
///
/// If the request would wait until this thread leaves its CPU.
#[track_caller]
pub(super) fn refuse_to_visit_occupied(step: &Step, request: Request) {
    if let Some(cpu) = try_ops().and_then(CpuOps::occupied)
        && cpu::online().contains(cpu)
        && is_for_hotplug_thread(step, cpu, request, true)
    {
        occupied(cpu);
    }
}

#[track_caller]
fn occupied(cpu: CpuId) -> ! {
    panic!("a thread that is {cpu:?} waits for that CPU's hotplug thread: leave the CPU first");
}

/// Begins hotplug: the kernel runs on CPU `boot` alone. Linux: `boot_cpu_init`.
///
/// # Panics
///
/// If it is called twice, or if set-up was run by another CPU than `boot`; nothing has changed then.
pub fn init(ops: &'static dyn CpuOps, boot: CpuId) {
    assert!(
        cpu::online().contains(boot),
        "hotplug::init({boot:?}): set-up was run by another CPU, see area::Config::boot_cpu"
    );
    let is_first = {
        let mut slot = OPS.lock();
        let is_first = slot.is_none();
        slot.get_or_insert(ops);
        is_first
    };
    assert!(is_first, "hotplug::init is called once");
    record(boot).set_phase(Phase::Online);
    record(boot).set_early(true);
    set_state(boot, CpuState::Online);
    MASKS.present.set(boot, true);
    MASKS.active.set(boot, true);
    cpu::set_hotplug_has_begun();
}

/// Records that `cpu` is plugged in. Linux: `set_cpu_present`.
pub fn set_present(cpu: CpuId) {
    MASKS.present.set(cpu, true);
}

/// How long the control lock's holder waits before it gives up, or says so in the log.
pub(super) struct Patience {
    limit_ns: u64,
    since_ns: u64,
}

impl Patience {
    /// Begins to wait, for as long as the kernel's CPUs may take to [answer](CpuOps::answer_timeout_ns).
    pub(super) fn new() -> Self {
        let limit_ns = ops().answer_timeout_ns();
        Self { limit_ns, since_ns: if limit_ns == u64::MAX { 0 } else { Global::clock_ns() } }
    }

    /// Lets other threads run. Returns whether the time is over; it begins anew then.
    pub(super) fn is_exhausted(&mut self) -> bool {
        Global::yield_now();
        if self.limit_ns == u64::MAX {
            return false;
        }
        let now = Global::clock_ns();
        let exhausted = now.saturating_sub(self.since_ns) > self.limit_ns;
        if exhausted {
            self.since_ns = now;
        }
        exhausted
    }

    /// Says in the log what the wait is for.
    fn complain(&self, cpu: CpuId, step: &str) {
        let limit = self.limit_ns / 1_000_000;
        Global::log(format_args!("hotplug: CPU {cpu} has been at {step} for more than {limit} ms"));
    }
}

/// A CPU on its way up. Dropping it takes everything back that was done for the CPU so far.
struct GoingUp {
    cpu: CpuId,
    /// PREPARE steps that were started up.
    prepared: Range<usize>,
    /// It was announced that the CPU will run.
    announced: bool,
    /// ONLINE steps that were started up, on a CPU that is up.
    online: Option<Range<usize>>,
}

impl Drop for GoingUp {
    fn drop(&mut self) {
        let cpu = self.cpu;
        if let Some(online) = self.online.clone() {
            for_each_to_the_end(online.rev(), |position| {
                let step = steps::at(position);
                set_state(cpu, CpuState::GoingDown(Some(step.id)));
                undo(&step, cpu, None);
            });
            // Dropped at once if there is a CPU that dies.
            if ask_to_die(cpu).is_err() {
                Global::log(format_args!(
                    "hotplug: CPU {cpu} is up, but cannot be taken down: its hotplug thread does not \
                     answer"
                ));
            }
            return;
        }
        let announced = self.announced;
        let _end = AtEnd(|| {
            if announced {
                MASKS.starting.set(cpu, false);
            }
        });
        undo_prepare(cpu, self.prepared.clone());
    }
}

/// Brings a CPU up. Linux: `cpu_up`.
///
/// If it is the first time, the CPU gets its [unit](area::add_unit) before anything else is done.
///
/// The caller may sleep, holds no guard and no [`CpusReadGuard`](super::CpusReadGuard), and is no
/// step's callback. When this returns, all steps were run and the CPU is active. A CPU that does
/// not arrive is given up; one that did is waited for, however long its steps take.
///
/// # Errors
///
/// Everything done was undone, except that a unit stays; the CPU is down. Not so if the CPU is up and
/// its hotplug thread does not [answer](CpuOps::answer_timeout_ns): it stays up, but is not active,
/// without the ONLINE steps that are missing, until [`cpu_down`] finds it answering.
///
/// # Panics
///
/// If foreign code does that runs on this thread: a PREPARE step, an initialiser of a box,
/// [`CpuOps`]. Everything was undone as for an error. And, before anything is done, if this would wait
/// for ever: called by a step's callback, or by a thread that [occupies](CpuOps::occupied) a CPU for which
/// hotplug waits.
pub fn cpu_up(cpu: CpuId) -> Result<(), HotplugError> {
    let _control = lock();
    if !cpu::present().contains(cpu) {
        return Err(HotplugError::NotPresent);
    }
    if cpu::online().contains(cpu) {
        return Err(HotplugError::AlreadyOnline);
    }
    // The first of all: whatever is done for the CPU may want its per-CPU data. The unit stays when
    // something else fails; it is as good at the next try.
    area::add_unit(cpu).map_err(|NoMemory| HotplugError::NoMemory)?;
    let _writer = readers::write_lock()?;

    let prepare = steps::positions(Section::Prepare);
    let prepared = prepare.start..prepare.start;
    let mut way = GoingUp { cpu, prepared, announced: false, online: None };
    for position in prepare {
        start_up(cpu, position)?;
        way.prepared.end = position + 1;
    }
    // Its STARTING steps may make per-CPU values, which are to be folded if one of the steps fails.
    MASKS.starting.set(cpu, true);
    way.announced = true;
    kick(cpu)?;
    let online = steps::positions(Section::Online);
    for position in online.clone() {
        way.online = Some(online.start..position);
        match start_up(cpu, position) {
            Ok(()) => {}
            Err(error) if error.is_unresponsive() => {
                // Neither can it undo anything, nor go down.
                mem::forget(way);
                for missing in position..online.end {
                    steps::at(missing).give_up(cpu, StepError::UNRESPONSIVE);
                }
                return Err(error);
            }
            Err(error) => return Err(error),
        }
    }
    mem::forget(way);
    set_state(cpu, CpuState::Online);
    MASKS.active.set(cpu, true);
    Ok(())
}

/// Runs the start-up of the step at `position` for a CPU on its way up.
fn start_up(cpu: CpuId, position: usize) -> Result<(), HotplugError> {
    let step = steps::at(position);
    set_state(cpu, CpuState::GoingUp(Some(step.id)));
    run(&step, cpu, Request::StartUp, None).map_err(|error| failed(&step, error))
}

/// A CPU on its way down, of which ONLINE steps were undone. Dropping it does them again: the CPU is up,
/// unless it has died.
struct GoingDown {
    cpu: CpuId,
    /// The steps that were undone.
    undone: Range<usize>,
    /// Whether the CPU's hotplug thread answers, so that there is a point in asking.
    answers: bool,
}

impl Drop for GoingDown {
    fn drop(&mut self) {
        let (cpu, answers) = (self.cpu, self.answers);
        if !cpu::online().contains(cpu) {
            return;
        }
        let _end = AtEnd(|| {
            set_state(cpu, CpuState::Online);
            MASKS.active.set(cpu, true);
        });
        for_each_to_the_end(self.undone.clone(), |position| {
            let step = steps::at(position);
            set_state(cpu, CpuState::GoingUp(Some(step.id)));
            // It is remembered if the start-up fails.
            let answered = answers && run(&step, cpu, Request::Redo, None).is_ok();
            if !answered {
                step.give_up(cpu, StepError::UNRESPONSIVE);
            }
        });
    }
}

/// Takes a CPU down. Linux: `cpu_down`.
///
/// The caller may sleep, holds no guard and no [`CpusReadGuard`](super::CpusReadGuard), and is no
/// step's callback. When this returns, the CPU executes nothing more and all tear-downs were run.
///
/// # Errors
///
/// Everything undone was done again; the CPU is up. A step that could not be done again, because its
/// start-up failed or the CPU's hotplug thread does not [answer](CpuOps::answer_timeout_ns), is named in
/// the log; the CPU is up without it.
///
/// # Panics
///
/// If foreign code does that runs on this thread: a PREPARE step, [`CpuOps`]. The CPU is down if it was
/// dead by then, else up, as for an error. And, before anything is done, if this would wait for ever:
/// called by a step's callback, by a thread that [occupies](CpuOps::occupied) this CPU, or one for which
/// hotplug waits.
pub fn cpu_down(cpu: CpuId) -> Result<(), HotplugError> {
    let _control = lock();
    if !cpu::online().contains(cpu) {
        return Err(HotplugError::NotOnline);
    }
    if cpu::online().count() == 1 {
        return Err(HotplugError::LastCpu);
    }
    if ops().occupied() == Some(cpu) {
        occupied(cpu);
    }
    let _writer = readers::write_lock()?;

    MASKS.active.set(cpu, false);
    let online = steps::positions(Section::Online);
    let mut way = GoingDown { cpu, undone: online.end..online.end, answers: true };
    for position in online.rev() {
        let step = steps::at(position);
        set_state(cpu, CpuState::GoingDown(Some(step.id)));
        // A tear-down that panics is done.
        way.undone.start = position;
        if let Err(error) = run(&step, cpu, Request::TearDown, None) {
            way.undone.start = position + 1;
            way.answers = error != StepError::UNRESPONSIVE;
            return Err(failed(&step, error));
        }
    }
    way.answers = false;
    let dying = ask_to_die(cpu)?;
    mem::forget(way);
    drop(dying);
    Ok(())
}

/// Starts the CPU and waits until it is online.
fn kick(cpu: CpuId) -> Result<(), HotplugError> {
    let (ops, record) = (ops(), record(cpu));
    let timeout_ns = ops.arrival_timeout_ns();
    set_state(cpu, CpuState::GoingUp(None));
    preempt::reset(cpu);
    record.clear_request();
    record.set_phase(Phase::Kicked);
    // After that: a fold that still found the CPU down is over when this returns.
    cpu::count_again(cpu);
    let abandon = AtEnd(|| record.set_phase(Phase::Abandoned));
    ops.start(cpu).map_err(HotplugError::Start)?;
    mem::forget(abandon);
    record.set_phase(Phase::Go);
    let deadline = Global::clock_ns().saturating_add(timeout_ns);
    let mut patience = Patience::new();
    loop {
        match record.phase() {
            Phase::Online => return Ok(()),
            Phase::Failed => {
                let _end = AtEnd(|| record.set_phase(Phase::Offline));
                ops.reap(cpu);
                let (slot, error) = record.failed_step();
                let step = steps::in_slot(slot).expect("steps stay while a CPU is on its way");
                return Err(failed(&step, error));
            }
            Phase::Go
                if Global::clock_ns() > deadline && record.advance(Phase::Go, Phase::Abandoned) =>
            {
                return Err(HotplugError::TimedOut);
            }
            _ => {}
        }
        if patience.is_exhausted() && record.phase() == Phase::Starting {
            patience.complain(cpu, "its STARTING steps");
        }
    }
}

/// A CPU that has taken up the request to go down. Dropping it waits until the CPU is dead and ends its
/// life.
struct Dying(CpuId);

impl Drop for Dying {
    fn drop(&mut self) {
        let Self(cpu) = *self;
        let record = record(cpu);
        let mut patience = Patience::new();
        while record.phase() != Phase::Dead {
            if patience.is_exhausted() {
                patience.complain(cpu, "its STARTING tear-downs");
            }
        }
        // Not earlier: until here a step may have had per-CPU values to fold. Not later: a CPU that is
        // dying for ever would look so in its next life.
        let _end = AtEnd(|| {
            MASKS.dying.set(cpu, false);
            record.set_phase(Phase::Offline);
        });
        let _prepare = AtEnd(|| undo_prepare(cpu, steps::positions(Section::Prepare)));
        ops().reap(cpu);
    }
}

/// Asks an online CPU to go down, of which all ONLINE steps are undone, and waits until it takes that up.
///
/// An error says that the CPU's hotplug thread did not, and that the CPU is up.
fn ask_to_die(cpu: CpuId) -> Result<Dying, HotplugError> {
    // There is no answer for a drop to wait for: the CPU dies.
    let posted = ManuallyDrop::new(record(cpu).post(Request::Die, 0, None));
    // If this panics the CPU may have taken the request up already.
    let died = AtEnd(|| {
        if !posted.withdraw() {
            drop(Dying(cpu));
        }
    });
    ops().wake(cpu);
    mem::forget(died);
    let mut patience = Patience::new();
    while has_work(cpu) {
        if patience.is_exhausted() && posted.withdraw() {
            return Err(HotplugError::Unresponsive);
        }
    }
    Ok(Dying(cpu))
}

/// Runs PREPARE tear-downs in reverse for a CPU that is not up, which is down then.
fn undo_prepare(cpu: CpuId, positions: Range<usize>) {
    let _end = AtEnd(|| set_state(cpu, CpuState::Offline));
    for_each_to_the_end(positions.rev(), |position| {
        let step = steps::at(position);
        set_state(cpu, CpuState::GoingDown(Some(step.id)));
        callback::run(|| step.undo(cpu, None));
    });
}

/// Runs the start-up of a step, or of an instance that is about to be added, for the CPUs that are up, in
/// ascending order. If it fails or panics for one, it is undone for those before, the latest first.
pub(super) fn start_up_where_online(
    step: &Step,
    instance: Option<InstanceRef>,
) -> Result<(), RegisterError> {
    refuse_to_visit_occupied(step, Request::StartUp);
    for cpu in cpu::online().iter() {
        let undo_others = AtEnd(|| {
            let below = (0..cpu.index()).rev().filter_map(CpuId::new);
            let up = below.filter(|&done| cpu::online().contains(done));
            for_each_to_the_end(up, |done| undo(step, done, instance));
        });
        run(step, cpu, Request::StartUp, instance)
            .map_err(|error| RegisterError::Step { cpu, error })?;
        mem::forget(undo_others);
    }
    Ok(())
}

/// Returns whether a request is carried out by the CPU's hotplug thread, rather than here.
fn is_for_hotplug_thread(step: &Step, cpu: CpuId, request: Request, instance: bool) -> bool {
    // Without a callback all that is left is the injected failure, which needs no trip to the CPU.
    let has_callback = match step.callbacks {
        Callbacks::Single(startup, teardown) => match request {
            Request::StartUp | Request::Redo => startup.is_some(),
            _ => teardown.is_some(),
        },
        Callbacks::Multi(list) => instance || !list.is_empty(),
    };
    // The crate's own callbacks do not mind where they run: no trip to the CPU for them.
    has_callback
        && step.owner == Owner::User
        && step.section != Section::Prepare
        && !record(cpu).is_early()
}

/// Runs a start-up or tear-down where the step's section says: of all the step, or of one instance.
/// The caller holds the control lock, and the CPU is up, unless the step is a PREPARE step.
///
/// When this returns or unwinds nobody else uses `step` or `instance`.
pub(super) fn run(
    step: &Step,
    cpu: CpuId,
    request: Request,
    instance: Option<InstanceRef>,
) -> Result<(), StepError> {
    if !is_for_hotplug_thread(step, cpu, request, instance.is_some()) {
        return request.carry_out(step, cpu, instance);
    }
    let posted = record(cpu).post(request, step.id.index() as u32, instance);
    ops().wake(cpu);
    let mut patience = Patience::new();
    loop {
        if let Some(answer) = posted.take_answer() {
            mem::forget(posted);
            return answer;
        }
        if patience.is_exhausted() {
            if posted.withdraw() {
                mem::forget(posted);
                return Err(StepError::UNRESPONSIVE);
            }
            patience.complain(cpu, step.name);
        }
    }
}

/// Runs a tear-down as part of a roll-back or at a step's or an instance's end: it cannot fail. A CPU
/// that does not answer is named in the log.
pub(super) fn undo(step: &Step, cpu: CpuId, instance: Option<InstanceRef>) {
    if let Err(error) = run(step, cpu, Request::Undo, instance) {
        let name = step.name;
        Global::log(format_args!("hotplug: CPU {cpu}: step {name} is not torn down: {error}"));
    }
}

fn failed(step: &Step, error: StepError) -> HotplugError {
    HotplugError::Step { id: step.id, name: step.name, error }
}
