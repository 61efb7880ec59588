//! Hotplug of threads: starting a CPU is spawning a thread that arrives as it.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::seat::{Holder, seat, sit_down, stand_up};
use crate::arch;
use crate::area;
use crate::cpu::CpuId;
use crate::hotplug::{self, CpuOps, Serve, StartError};
use crate::irq;

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

static TIMEOUT_NS: AtomicU64 = AtomicU64::new(super::ARRIVAL_TIMEOUT.as_nanos() as u64);

/// Makes the next start of `cpu` go wrong, for tests.
pub fn inject_start_fault(cpu: CpuId, fault: StartFault) {
    FAULTS.lock().unwrap_or_else(PoisonError::into_inner).push((cpu, fault));
}

/// Sets how long a started CPU may take to arrive; 10 s at first.
pub fn set_arrival_timeout(timeout: Duration) {
    TIMEOUT_NS.store(timeout.as_nanos() as u64, Ordering::Relaxed);
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
        TIMEOUT_NS.load(Ordering::Relaxed)
    }

    fn wake(&self, cpu: CpuId) {
        assert!(
            arch::host::offset_of_thread() != Some(area::offset(cpu)),
            "a thread that is {cpu:?} waits for that CPU's hotplug thread"
        );
        spawn(cpu, move || work(cpu)).expect("the process can have another thread");
    }
}

/// Calls `f(arg)` on `cpu`, with interrupts masked, as soon as no other thread is that CPU.
pub(super) fn run_on(cpu: u32, f: fn(usize), arg: usize) {
    let cpu = CpuId::new(cpu as usize).expect("a possible CPU");
    if arch::host::offset_of_thread() == Some(area::offset(cpu)) {
        let _irq = irq::disable();
        return f(arg);
    }
    assert!(seat(cpu).take_for_kernel(), "the caller keeps {cpu:?} online");
    run_in_seat(cpu, f, arg);
}

/// As [`run_on`], unless another thread is that CPU. Whether it called `f`.
pub(super) fn offer_to(cpu: u32, f: fn(usize), arg: usize) -> bool {
    let cpu = CpuId::new(cpu as usize).expect("a possible CPU");
    let here = arch::host::offset_of_thread() == Some(area::offset(cpu));
    if here {
        run_on(cpu.index() as u32, f, arg);
    } else if seat(cpu).try_take_for_kernel() {
        run_in_seat(cpu, f, arg);
    } else {
        return false;
    }
    true
}

/// Calls `f(arg)` on a CPU whose seat has been taken for that, and leaves the seat.
fn run_in_seat(cpu: CpuId, f: fn(usize), arg: usize) {
    thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: the seat was taken for this thread.
            unsafe { sit_down(cpu) };
            let irq = irq::disable();
            f(arg);
            drop(irq);
            stand_up();
            seat(cpu).set_holder(Holder::Free);
        });
    });
}

/// Makes the boot CPU, which was never started, one that is up and has a hotplug thread.
pub(super) fn adopt_boot_cpu(cpu: CpuId) {
    seat(cpu).set_holder(Holder::Free);
    // The first look into its mailbox: by another thread, because this one may be a CPU of another
    // copy of the crate.
    thread::scope(|scope| {
        scope.spawn(|| work(cpu));
    });
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
    unsafe { sit_down(cpu) };
    let irq = irq::disable();
    // SAFETY: this thread is the CPU, from just now on, with interrupts masked.
    let arrived = unsafe { hotplug::arrive(cpu) };
    drop(irq);
    stand_up();
    seat.set_holder(if arrived.is_ok() { Holder::Free } else { Holder::Offline });
}

/// The CPU's hotplug thread: becomes the CPU, does what there is to do, and leaves it again.
fn work(cpu: CpuId) {
    let seat = seat(cpu);
    if !seat.take_for_kernel() {
        return;
    }
    // SAFETY: the seat was taken above.
    unsafe { sit_down(cpu) };
    let then = loop {
        match hotplug::serve(cpu) {
            Serve::Worked => {}
            Serve::Idle => break Holder::Free,
            Serve::Die => {
                let irq = irq::disable();
                // SAFETY: this thread is the CPU, with interrupts masked, and nothing but this runs
                // on it while it has the seat.
                unsafe { hotplug::die(cpu) };
                drop(irq);
                // SAFETY: after `die`; what follows touches the seat only, for which `reap` waits.
                unsafe { hotplug::dead(cpu) };
                break Holder::Offline;
            }
        }
    };
    stand_up();
    seat.set_holder(then);
}
