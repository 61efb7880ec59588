//! Which thread is which CPU.
//!
//! Each CPU is a seat. A thread that sits on it is the CPU; nobody takes it before the thread has
//! left. The CPU's own kernel threads, which serve hotplug, come first when a seat gets free.

use core::fmt;
use core::marker::PhantomData;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::platform::irq_depth;
use crate::arch;
use crate::area;
use crate::cpu::{self, CpuId, NR_CPUS};
use crate::preempt;

/// Who sits there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// Nobody, and nobody may: the CPU is down.
    Offline,
    /// Nobody.
    Free,
    /// A thread that called [`enter`].
    User,
    /// The CPU's start-up code or hotplug thread.
    Kernel,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) holder: Holder,
    /// Kernel threads that wait for the seat.
    kernel_waits: usize,
    /// The latest start; threads of earlier ones do not arrive any more.
    pub(super) start: u64,
}

pub(super) struct Seat {
    state: Mutex<State>,
    changed: Condvar,
}

static SEATS: [Seat; NR_CPUS] = [const {
    Seat {
        state: Mutex::new(State { holder: Holder::Offline, kernel_waits: 0, start: 0 }),
        changed: Condvar::new(),
    }
}; NR_CPUS];

pub(super) fn seat(cpu: CpuId) -> &'static Seat {
    &SEATS[cpu.index()]
}

impl Seat {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_holder(&self, holder: Holder) {
        self.lock().holder = holder;
        self.changed.notify_all();
    }

    /// Takes the seat for a kernel thread if it is free.
    pub(super) fn try_take_for_kernel(&self) -> bool {
        let mut state = self.lock();
        let free = state.holder == Holder::Free;
        if free {
            state.holder = Holder::Kernel;
        }
        free
    }

    /// Takes the seat for the CPU's hotplug thread, as soon as it is free. Whether the CPU is up.
    pub(super) fn take_for_kernel(&self) -> bool {
        let mut state = self.lock();
        state.kernel_waits += 1;
        while !matches!(state.holder, Holder::Free | Holder::Offline) {
            state = self.wait(state);
        }
        state.kernel_waits -= 1;
        let up = state.holder == Holder::Free;
        if up {
            state.holder = Holder::Kernel;
        }
        drop(state);
        self.changed.notify_all();
        up
    }
}

/// Makes this thread the CPU.
///
/// # Safety
///
/// The thread has just taken the CPU's seat.
pub(super) unsafe fn sit_down(cpu: CpuId) {
    // SAFETY: the seat is this thread's alone, and it holds no guard: it was no CPU before.
    unsafe { arch::set_offset(area::offset(cpu)) };
}

/// Makes this thread no CPU.
pub(super) fn stand_up() {
    // SAFETY: a guard would hold the thread in its seat, by the checks in `CpuThread::drop` and in
    // `ops`.
    unsafe { arch::host::leave() };
}

/// Why a thread did not become a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnterError {
    /// The CPU is down.
    Offline,
    /// Another thread is the CPU.
    Taken,
    /// This thread is a CPU already.
    Nested,
    /// This thread is a CPU of [another copy](crate::host#several-copies-in-a-process) of this crate.
    OtherCopy,
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Offline => "the CPU is down",
            Self::Taken => "another thread is this CPU",
            Self::Nested => "this thread is a CPU already",
            Self::OtherCopy => {
                "this thread is a CPU of another copy of percpu-core in this process: let it leave \
                 that CPU first, or use another thread"
            }
        })
    }
}

impl core::error::Error for EnterError {}

/// The thread that made this is a CPU, alone, until it drops it.
#[must_use = "the thread is the CPU until this is dropped"]
#[derive(Debug)]
pub struct CpuThread {
    cpu: CpuId,
    /// The thread that is the CPU is the one to leave it.
    not_send: PhantomData<*mut ()>,
}

impl CpuThread {
    /// The CPU.
    pub fn cpu(&self) -> CpuId {
        self.cpu
    }
}

impl Drop for CpuThread {
    /// Leaves the CPU to others.
    ///
    /// # Panics
    ///
    /// If the thread holds a guard. It remains the CPU then, and so nobody else can become it. That
    /// goes without a further panic while one unwinds.
    fn drop(&mut self) {
        let (pins, masks) = (preempt::count(), irq_depth());
        if (pins, masks) != (0, 0) && std::thread::panicking() {
            return;
        }
        assert!(
            pins == 0 && masks == 0,
            "a thread leaves {:?} with {pins} preempt guards and {masks} irq guards",
            self.cpu
        );
        stand_up();
        seat(self.cpu).set_holder(Holder::Free);
    }
}

/// Makes this thread the CPU `cpu`. Waits while the CPU's own kernel threads are at work, but not for
/// another thread that is the CPU.
///
/// # Errors
///
/// The CPU is down or taken, or this thread is a CPU already, of this copy of the crate or another.
pub fn enter(cpu: CpuId) -> Result<CpuThread, EnterError> {
    take(cpu, false)
}

/// As [`enter`], but waits while the CPU is taken.
pub fn enter_when_free(cpu: CpuId) -> Result<CpuThread, EnterError> {
    take(cpu, true)
}

/// Makes this thread a CPU: the first that is free. Waits while all are taken.
///
/// # Errors
///
/// No CPU is up, or this thread is a CPU already, of this copy of the crate or another.
pub fn enter_any() -> Result<CpuThread, EnterError> {
    loop {
        let mut all_down = true;
        for cpu in cpu::online().iter() {
            match enter(cpu) {
                Err(EnterError::Taken) => all_down = false,
                Err(EnterError::Offline) => {}
                decided => return decided,
            }
        }
        if all_down {
            return Err(EnterError::Offline);
        }
        std::thread::yield_now();
    }
}

fn take(cpu: CpuId, wait: bool) -> Result<CpuThread, EnterError> {
    if arch::host::offset_of_thread().is_some() {
        return Err(EnterError::Nested);
    }
    if arch::host::is_cpu_of_another_copy() {
        return Err(EnterError::OtherCopy);
    }
    // A guard from before would go on to hold when the thread leaves again.
    assert!(irq_depth() == 0, "a thread enters {cpu:?} while it holds an irq guard");
    let seat = seat(cpu);
    let mut state = seat.lock();
    loop {
        match state.holder {
            Holder::Offline => return Err(EnterError::Offline),
            Holder::Free if state.kernel_waits == 0 => break,
            Holder::User if !wait => return Err(EnterError::Taken),
            Holder::Free | Holder::User | Holder::Kernel => state = seat.wait(state),
        }
    }
    state.holder = Holder::User;
    drop(state);
    // SAFETY: the seat was taken above.
    unsafe { sit_down(cpu) };
    Ok(CpuThread { cpu, not_send: PhantomData })
}
