//! Hotplug of threads: starting a CPU is spawning a thread that arrives as it.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::platform::{forget_irq_guards, irq_depth, log};
use super::seat::{Holder, seat, sit_down, stand_up};
use crate::arch;
use crate::cpu::{self, CpuId};
use crate::hotplug::{self, CpuOps, Serve, StartError};
use crate::irq;
use crate::preempt;

/// What goes wrong with a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFault {
    /// The kernel refuses to start the CPU.
    Refused,
    /// The start is lost: the CPU never arrives.
    Lost,
    /// The CPU arrives so much later.
    Late(Duration),
}

/// Faults that were ordered, for the next start of each CPU.
static FAULTS: Mutex<std::vec::Vec<(CpuId, StartFault)>> = Mutex::new(std::vec::Vec::new());

static ARRIVAL_TIMEOUT_NS: AtomicU64 = AtomicU64::new(super::TIMEOUT.as_nanos() as u64);
static ANSWER_TIMEOUT_NS: AtomicU64 = AtomicU64::new(super::TIMEOUT.as_nanos() as u64);

/// Makes the next start of `cpu` go wrong, for tests.
pub fn inject_start_fault(cpu: CpuId, fault: StartFault) {
    FAULTS.lock().unwrap_or_else(PoisonError::into_inner).push((cpu, fault));
}

/// Sets how long a started CPU may take to arrive: 10 s at first; no limit from 584 years on.
pub fn set_arrival_timeout(timeout: Duration) {
    ARRIVAL_TIMEOUT_NS.store(nanoseconds(timeout), Ordering::Relaxed);
}

/// Sets how long a thread may remain a CPU for which [`hotplug`](crate::hotplug) waits, before the call
/// that waits fails: 10 s at first; no limit from 584 years on. See
/// [`CpuOps::answer_timeout_ns`].
pub fn set_answer_timeout(timeout: Duration) {
    ANSWER_TIMEOUT_NS.store(nanoseconds(timeout), Ordering::Relaxed);
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn take_fault(cpu: CpuId) -> Option<StartFault> {
    let mut faults = FAULTS.lock().unwrap_or_else(PoisonError::into_inner);
    let first = faults.iter().position(|(of, _)| *of == cpu)?;
    Some(faults.remove(first).1)
}

/// Threads as CPUs.
pub(super) struct Threads;

pub(super) static THREADS: Threads = Threads;

impl CpuOps for Threads {
    fn start(&self, cpu: CpuId) -> Result<(), StartError> {
        let start = {
            let mut state = seat(cpu).lock();
            state.start += 1;
            state.start
        };
        let delay = match take_fault(cpu) {
            None => Duration::ZERO,
            Some(StartFault::Late(delay)) => delay,
            Some(StartFault::Lost) => return Ok(()),
            Some(StartFault::Refused) => return Err(StartError("a fault was injected")),
        };
        spawn(cpu, move || {
            thread::sleep(delay);
            begin(cpu, start);
        })
    }

    fn reap(&self, cpu: CpuId) {
        let seat = seat(cpu);
        let mut state = seat.lock();
        while state.holder != Holder::Offline {
            state = seat.wait(state);
        }
    }

    fn arrival_timeout_ns(&self) -> u64 {
        ARRIVAL_TIMEOUT_NS.load(Ordering::Relaxed)
    }

    fn answer_timeout_ns(&self) -> u64 {
        ANSWER_TIMEOUT_NS.load(Ordering::Relaxed)
    }

    fn wake(&self, cpu: CpuId) {
        spawn(cpu, move || work(cpu)).expect("the process can have another thread");
    }

    fn is_hotplug_thread(&self, cpu: CpuId) -> bool {
        irq_depth() == 0 && seat(cpu).lock().holder == Holder::Kernel
    }

    /// Nobody takes a CPU from the thread that is it.
    fn occupied(&self) -> Option<CpuId> {
        arch::host::offset_of_thread().map(|_| cpu::current())
    }
}

/// This thread in a seat that was taken for it. Dropping it leaves the CPU.
struct Seated {
    cpu: CpuId,
    /// Who has the seat afterwards.
    then: Holder,
}

impl Seated {
    /// Becomes the CPU.
    ///
    /// # Safety
    ///
    /// As [`sit_down`].
    unsafe fn new(cpu: CpuId, then: Holder) -> Self {
        // SAFETY: passed on to the caller.
        unsafe { sit_down(cpu) };
        Self { cpu, then }
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        stand_up();
        seat(self.cpu).set_holder(self.then);
    }
}

/// CPUs that wait for others in [`run_on`]: a CPU, and for which it waits.
static WAITING: Mutex<std::vec::Vec<(CpuId, CpuId)>> = Mutex::new(std::vec::Vec::new());

/// The calling thread waits for `cpu`.
///
/// # Panics
///
/// If `cpu` waits, perhaps by way of others, for the CPU that this thread is.
fn waits_for(cpu: CpuId) -> impl Drop {
    struct Waiting(Option<CpuId>);

    impl Drop for Waiting {
        fn drop(&mut self) {
            let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.retain(|&(from, _)| Some(from) != self.0);
        }
    }

    let this = THREADS.occupied();
    if let Some(this) = this {
        let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Some(cpu);
        while let Some(at) = next {
            assert!(
                at != this,
                "run_on_cpu: {this:?} waits for {cpu:?}, which waits for {this:?}: a thread that is a \
                 CPU is not interrupted, and must leave it before it waits for another"
            );
            next = waiting.iter().find(|&&(from, _)| from == at).map(|&(_, to)| to);
        }
        waiting.push((this, cpu));
    }
    Waiting(this)
}

/// Calls `f(arg)` on `cpu`, with interrupts masked, as soon as no other thread is that CPU.
///
/// # Panics
///
/// If the CPU is not possible or not up, if it waits for the CPU that this thread is, or if `f` does.
pub(super) fn run_on(cpu: u32, f: fn(usize), arg: usize) {
    let cpu = CpuId::new(cpu as usize).expect("a possible CPU");
    if THREADS.occupied() == Some(cpu) {
        let _irq = irq::disable();
        return f(arg);
    }
    let waiting = waits_for(cpu);
    assert!(seat(cpu).take_for_kernel(), "run_on_cpu: {cpu:?} is down");
    drop(waiting);
    run_in_seat(cpu, f, arg);
}

/// As [`run_on`], unless another thread is that CPU. Returns whether it called `f`.
pub(super) fn offer_to(cpu: u32, f: fn(usize), arg: usize) -> bool {
    let cpu = CpuId::new(cpu as usize).expect("a possible CPU");
    if THREADS.occupied() == Some(cpu) {
        run_on(cpu.index() as u32, f, arg);
    } else if seat(cpu).try_take_for_kernel() {
        run_in_seat(cpu, f, arg);
    } else {
        return false;
    }
    true
}

/// Calls `f(arg)` on a CPU whose seat has been taken for that, and leaves the seat, also if `f` panics.
fn run_in_seat(cpu: CpuId, f: fn(usize), arg: usize) {
    let run = || {
        // SAFETY: the seat was taken for the thread that runs this.
        let _seated = unsafe { Seated::new(cpu, Holder::Free) };
        let _irq = irq::disable();
        f(arg);
        restore_preemption(cpu);
    };
    // On a thread that ends with it: a guard that `f` leaves in a thread-local must not be dropped on
    // another CPU.
    let result = thread::scope(|scope| match thread::Builder::new().spawn_scoped(scope, run) {
        Ok(on_cpu) => on_cpu.join(),
        Err(error) => {
            log(format_args!("run_on_cpu: the process cannot have another thread: {error}"));
            std::process::abort();
        }
    });
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}

/// Turns preemption on again where foreign code has forgotten a guard: the thread, to which the guard is
/// bound, is about to end.
fn restore_preemption(cpu: CpuId) {
    if preempt::count() != 0 {
        preempt::set(cpu, 0);
        panic!("a function that was called on {cpu:?} leaves preemption off");
    }
}

/// Makes the boot CPU, which was never started, one that is up and has a hotplug thread.
pub(super) fn adopt_boot_cpu(cpu: CpuId) {
    seat(cpu).set_holder(Holder::Free);
    // The first look into its mailbox: on a thread of the CPU's own, where a callback that another thread
    // has just registered may run. This thread may be a CPU of another copy of the crate.
    thread::scope(|scope| scope.spawn(|| work(cpu)).join())
        .expect("panics of callbacks are caught");
}

/// Spawns a thread of `cpu`'s. A panic in it ends the process: somebody waits for it for ever.
fn spawn(cpu: CpuId, body: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
    struct AbortOnPanic;
    impl Drop for AbortOnPanic {
        fn drop(&mut self) {
            if thread::panicking() {
                std::process::abort();
            }
        }
    }

    let spawned = thread::Builder::new().name(std::format!("cpu{cpu}")).spawn(move || {
        let _abort = AbortOnPanic;
        body();
    });
    spawned.map(drop).map_err(|_| StartError("the process cannot have another thread"))
}

/// A started CPU's first steps.
fn begin(cpu: CpuId, start: u64) {
    let seat = seat(cpu);
    {
        let mut state = seat.lock();
        // A thread that an earlier start sent may be on its way in or out.
        while state.holder == Holder::Kernel {
            state = seat.wait(state);
        }
        if state.holder != Holder::Offline || state.start != start {
            return;
        }
        state.holder = Holder::Kernel;
    }
    // SAFETY: the seat was taken above.
    let mut seated = unsafe { Seated::new(cpu, Holder::Offline) };
    let irq = irq::disable();
    // A panic of a STARTING step has been told, and sends the CPU away.
    // SAFETY: this thread is the CPU, just started, with interrupts masked and without a guard.
    let arrived = catch_unwind(|| unsafe { hotplug::arrive(cpu) });
    drop(irq);
    if matches!(arrived, Ok(Ok(()))) {
        seated.then = Holder::Free;
    }
}

/// The CPU's hotplug thread: becomes the CPU, does what there is to do, and leaves it again.
fn work(cpu: CpuId) {
    if !seat(cpu).take_for_kernel() {
        return;
    }
    // SAFETY: the seat was taken above.
    let mut seated = unsafe { Seated::new(cpu, Holder::Free) };
    loop {
        // A panic of a callback has been told, by the hook and by the answer; there may be more to do.
        let then = catch_unwind(|| hotplug::serve(cpu)).unwrap_or(Serve::Worked);
        // What a callback has forgotten ends with this thread.
        forget_irq_guards();
        match then {
            Serve::Worked => {}
            Serve::Idle => return,
            Serve::Die => break,
        }
    }
    let irq = irq::disable();
    // A tear-down that panics is done.
    // SAFETY: this thread is the CPU, with interrupts masked, and nothing but this runs on it while it has
    // the seat.
    let _ = catch_unwind(|| unsafe { hotplug::die(cpu) });
    drop(irq);
    // SAFETY: after `die`; what follows touches the seat only, for which `reap` waits.
    unsafe { hotplug::dead(cpu) };
    seated.then = Holder::Offline;
}
