//! What the state machine knows about one CPU: where it stands, and the request in its mailbox.

use core::ptr::{NonNull, null_mut};

use super::callback;
use super::instances::{Head, InstanceRef};
use super::steps::{self, Section, Step, StepError, StepId};
use crate::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering};
use crate::cpu::CpuId;
use crate::platform::{Global, Platform};
use crate::unwind::AtEnd;
use crate::var::Structured;
use crate::{area, irq, percpu};

/// Where a CPU stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Phase {
    /// Hotplug has not started it. The kernel may have.
    Unknown,
    /// Down: executes nothing.
    Offline,
    /// The kernel is about to start it; it waits if it arrives already.
    Kicked,
    /// It may arrive.
    Go,
    /// It has arrived and runs the STARTING steps.
    Starting,
    /// A STARTING step failed; the CPU goes away.
    Failed,
    /// It did not arrive in time and is to go away when it does.
    Abandoned,
    /// It is in the online mask.
    Online,
    /// It runs the STARTING tear-downs.
    Dying,
    /// It has said its last word.
    Dead,
}

/// What a CPU's mailbox holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Request {
    /// Nothing.
    None,
    /// Run a step's start-up.
    StartUp,
    /// Run a step's tear-down, which may be made to fail.
    TearDown,
    /// Run a step's tear-down, which cannot fail.
    Undo,
    /// Run a step's start-up as part of a roll-back: should it fail, the CPU is up without the step.
    Redo,
    /// Go down.
    Die,
    /// The hotplug thread is at it.
    Running,
    /// The answer is there.
    Done,
}

macro_rules! decode {
    ($ty:ident: $($variant:ident)*) => {
        impl $ty {
            fn decode(code: u32) -> Self {
                $(if code == Self::$variant as u32 { return Self::$variant; })*
                unreachable!("only variants are stored")
            }
        }
    };
}

decode!(Phase: Unknown Offline Kicked Go Starting Failed Abandoned Online Dying Dead);
decode!(Request: None StartUp TearDown Undo Redo Die Running Done);

impl Request {
    /// Runs the callback that is asked for: of the step, or of one instance. Whether that is done by the
    /// CPU's hotplug thread is for the caller to see to.
    pub(super) fn carry_out(
        self,
        step: &Step,
        cpu: CpuId,
        instance: Option<InstanceRef>,
    ) -> Result<(), StepError> {
        callback::run(|| self.call(step, cpu, instance))
    }

    /// Returns the answer to the request if the callback panics: a start-up has failed, a tear-down is
    /// done, and what is begun again in a roll-back is [remembered](Step::redo).
    fn answer_to_panic(self) -> Result<(), StepError> {
        match self {
            Self::StartUp => Err(StepError::PANICKED),
            _ => Ok(()),
        }
    }

    fn call(self, step: &Step, cpu: CpuId, instance: Option<InstanceRef>) -> Result<(), StepError> {
        match self {
            Self::StartUp => step.start_up(cpu, instance),
            Self::TearDown => step.tear_down(cpu),
            Self::Redo => {
                step.redo(cpu);
                Ok(())
            }
            _ => {
                step.undo(cpu, instance);
                Ok(())
            }
        }
    }
}

/// One CPU's state.
pub(super) struct Record {
    phase: AtomicU32,
    request: AtomicU32,
    /// Slot of the step that is asked for, or that failed.
    step: AtomicU32,
    /// The instance that is asked for, null for all of the step.
    instance: AtomicPtr<Head>,
    failed: AtomicBool,
    code: AtomicI32,
    /// The CPU was up before hotplug began and has no hotplug thread yet.
    early: AtomicBool,
}

impl Structured for Record {}

percpu! {
    #[shared_aligned]
    static RECORD: PerCpu<Record> = Record {
        phase: AtomicU32::new(Phase::Unknown as u32),
        request: AtomicU32::new(Request::None as u32),
        step: AtomicU32::new(0),
        instance: AtomicPtr::new(null_mut()),
        failed: AtomicBool::new(false),
        code: AtomicI32::new(0),
        early: AtomicBool::new(false),
    };
}

/// Returns `cpu`'s record.
///
/// # Panics
///
/// If the CPU has no unit yet.
pub(super) fn record(cpu: CpuId) -> &'static Record {
    RECORD.remote(cpu)
}

/// Returns `cpu`'s record, or `None` if the CPU has no unit yet: it was never brought up.
pub(super) fn try_record(cpu: CpuId) -> Option<&'static Record> {
    area::try_offset(cpu).map(|_| record(cpu))
}

/// A request that is in `cpu`'s mailbox, until it is answered, taken back or forgotten.
///
/// Dropping it, because of a panic in foreign code, takes it back, or waits for the answer if the CPU is
/// at it already: when this is gone nobody uses what the request names.
pub(super) struct Posted {
    record: &'static Record,
    request: Request,
}

impl Posted {
    /// Returns the answer, if it is there; the mailbox is empty then.
    pub(super) fn take_answer(&self) -> Option<Result<(), StepError>> {
        self.record.take_answer()
    }

    /// Takes the request back, unless the CPU is at it. Returns whether it did.
    pub(super) fn withdraw(&self) -> bool {
        self.record.replace_request(self.request, Request::None)
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        if !self.withdraw() {
            while self.take_answer().is_none() {
                Global::yield_now();
            }
        }
    }
}

/// A request that this CPU has taken up. Answers when it is dropped.
pub(super) struct Claimed {
    record: &'static Record,
    step: u32,
    instance: Option<InstanceRef>,
    answer: Result<(), StepError>,
}

impl Claimed {
    /// Carries the request out on `cpu`, whose hotplug thread this is, and answers it, also if the
    /// callback panics.
    pub(super) fn carry_out(mut self, request: Request, cpu: CpuId) {
        let step = steps::in_slot(self.step).expect("a step stays while it is asked for");
        // A STARTING step finds interrupts masked, also when it is registered while the CPU is up.
        let irq = (step.section == Section::Starting).then(irq::disable);
        let panicked = AtEnd(|| {
            let name = step.name;
            Global::log(format_args!("hotplug: CPU {cpu}: a callback of step {name} panicked"));
        });
        let result = callback::run_on(cpu, || request.call(&step, cpu, self.instance));
        core::mem::forget(panicked);
        drop(irq);
        self.answer = result;
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.record.answer(self.answer);
    }
}

/// Returns whether `cpu`, which has a unit, executes nothing: it went down or was sent away, and was
/// not started since.
pub(crate) fn is_down(cpu: CpuId) -> bool {
    matches!(record(cpu).phase(), Phase::Offline | Phase::Dead)
}

/// Makes `cpu` one that is down, or one that is online and [counted](crate::cpu::counted) again: for
/// models that do hotplug's steps one by one.
#[cfg(loom)]
#[doc(hidden)]
pub fn set_down(cpu: CpuId, down: bool) {
    record(cpu).set_phase(if down { Phase::Dead } else { Phase::Online });
    if !down {
        crate::cpu::count_again(cpu);
    }
}

impl Record {
    pub(super) fn phase(&self) -> Phase {
        Phase::decode(self.phase.load(Ordering::Acquire))
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u32, Ordering::Release);
    }

    /// Goes from one phase to another, if nobody else has gone on from there.
    pub(super) fn advance(&self, from: Phase, to: Phase) -> bool {
        self.phase
            .compare_exchange(from as u32, to as u32, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Puts a request into the mailbox.
    pub(super) fn post(
        &'static self,
        request: Request,
        step: u32,
        instance: Option<InstanceRef>,
    ) -> Posted {
        self.step.store(step, Ordering::Relaxed);
        self.instance
            .store(instance.map_or(null_mut(), |it| it.node().as_ptr()), Ordering::Relaxed);
        self.request.store(request as u32, Ordering::Release);
        Posted { record: self, request }
    }

    /// The request in the mailbox.
    pub(super) fn request(&self) -> Request {
        Request::decode(self.request.load(Ordering::Acquire))
    }

    /// Puts another request into the place of one, unless that has gone.
    fn replace_request(&self, from: Request, to: Request) -> bool {
        self.request
            .compare_exchange(from as u32, to as u32, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Takes the request up; one caller gets it.
    pub(super) fn claim(&'static self, request: Request) -> Option<Claimed> {
        self.replace_request(request, Request::Running).then(|| {
            let node = NonNull::new(self.instance.load(Ordering::Relaxed));
            // SAFETY: `Claimed` answers the request when it is dropped. Until then the control lock's
            // holder waits, also if it unwinds (`Posted`), with the node alive.
            let instance = node.map(|node| unsafe { InstanceRef::new(node) });
            let step = self.step.load(Ordering::Relaxed);
            Claimed { record: self, step, instance, answer: request.answer_to_panic() }
        })
    }

    /// Takes up the request to go down. Returns whether it was there; [`die`](super::die) empties the
    /// mailbox.
    pub(super) fn claim_death(&self) -> bool {
        self.replace_request(Request::Die, Request::Running)
    }

    /// Answers the claimed request.
    fn answer(&self, result: Result<(), StepError>) {
        self.set_result(result);
        self.request.store(Request::Done as u32, Ordering::Release);
    }

    /// The answer, when it is there; empties the mailbox.
    fn take_answer(&self) -> Option<Result<(), StepError>> {
        (self.request() == Request::Done).then(|| {
            let result = self.result();
            self.clear_request();
            result
        })
    }

    /// Empties the mailbox.
    pub(super) fn clear_request(&self) {
        self.request.store(Request::None as u32, Ordering::Release);
    }

    /// Records which STARTING step failed; made visible by the phase.
    pub(super) fn set_failed_step(&self, step: StepId, error: StepError) {
        self.step.store(step.index() as u32, Ordering::Relaxed);
        self.set_result(Err(error));
    }

    /// The slot of the STARTING step that failed, and its error.
    pub(super) fn failed_step(&self) -> (u32, StepError) {
        (self.step.load(Ordering::Relaxed), StepError(self.code.load(Ordering::Relaxed)))
    }

    fn set_result(&self, result: Result<(), StepError>) {
        self.failed.store(result.is_err(), Ordering::Relaxed);
        self.code.store(result.map_or_else(|e| e.0, |()| 0), Ordering::Relaxed);
    }

    fn result(&self) -> Result<(), StepError> {
        match self.failed.load(Ordering::Relaxed) {
            true => Err(StepError(self.code.load(Ordering::Relaxed))),
            false => Ok(()),
        }
    }

    pub(super) fn is_early(&self) -> bool {
        self.early.load(Ordering::Relaxed)
    }

    pub(super) fn set_early(&self, early: bool) {
        self.early.store(early, Ordering::Relaxed);
    }
}
