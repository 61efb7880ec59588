//! The LAPIC's timer: a timer of the kernel that signals the thread that is the CPU.

use std::mem::MaybeUninit;
use std::ptr;
use std::thread::{self, ThreadId};

use super::super::kick;
use super::signals;

/// A timer for one shot at a time. Dropping it stops it.
#[derive(Debug)]
pub(super) struct Timer {
    timer: libc::timer_t,
    /// The thread that gets the signal. The kernel gives its number of a thread to another one later, to
    /// which this timer would not signal.
    thread: ThreadId,
}

// SAFETY: a timer belongs to the process; whichever thread sets it, the signal goes to `thread`.
unsafe impl Send for Timer {}

impl Timer {
    /// A timer of the calling thread.
    pub(super) fn new() -> Result<Self, i32> {
        let mut event = MaybeUninit::<libc::sigevent>::zeroed();
        let mut timer = MaybeUninit::<libc::timer_t>::zeroed();
        // SAFETY: all-zero bytes are a valid `sigevent`; the call reads it and writes `timer`.
        unsafe {
            let event = event.assume_init_mut();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signals::nudge();
            event.sigev_notify_thread_id = kick::this_thread();
            match libc::timer_create(libc::CLOCK_MONOTONIC, event, timer.as_mut_ptr()) {
                0 => Ok(Self { timer: timer.assume_init(), thread: thread::current().id() }),
                _ => Err(signals::errno()),
            }
        }
    }

    /// Returns whether the signal goes to the calling thread.
    pub(super) fn is_of_this_thread(&self) -> bool {
        self.thread == thread::current().id()
    }

    /// One signal, in so many nanoseconds; 0 = none. Async-signal-safe.
    pub(super) fn arm(&self, ns: u64) {
        const SECOND: u64 = 1_000_000_000;
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let when = libc::timespec {
            tv_sec: (ns / SECOND) as libc::time_t,
            tv_nsec: (ns % SECOND) as libc::c_long,
        };
        let once = libc::itimerspec { it_interval: never, it_value: when };
        // SAFETY: the timer exists until `drop`; the call reads `once`.
        unsafe { libc::timer_settime(self.timer, 0, &once, ptr::null_mut()) };
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer exists, and is not used any more.
        unsafe { libc::timer_delete(self.timer) };
    }
}
