//! The signal that brings a thread out of the guest it executes.
//!
//! It is a standard signal, not a real-time one. The kernel marks a standard signal as pending in any case.
//! A real-time signal is refused where the user has as many queued as `ulimit -i` allows, and a kick that
//! is lost is a guest that nothing ends.

use std::cell::Cell;
use std::sync::OnceLock;

use crate::error::Error;

/// The signal: "stack fault on coprocessor", which Linux never sends.
pub(super) fn signal() -> libc::c_int {
    libc::SIGSTKFLT
}

/// Lets the signal do that and nothing else: it ends a `KVM_RUN` by being there, and native code of a
/// guest by [`threads::on_kick`](super::threads::on_kick).
pub(super) fn install() -> Result<(), Error> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let done = DONE.get_or_init(|| super::threads::install(signal(), super::threads::on_kick));
    done.map_err(|errno| Error::os("sigaction", errno))
}

/// The kernel's number of the calling thread.
pub(super) fn this_thread() -> libc::pid_t {
    thread_local! {
        static NUMBER: Cell<libc::pid_t> = const { Cell::new(0) };
    }
    NUMBER.with(|number| {
        if number.get() == 0 {
            // SAFETY: gettid touches no memory.
            number.set(unsafe { libc::gettid() });
        }
        number.get()
    })
}

/// Kicks a thread of this process, by the kernel's number.
///
/// If the thread has ended meanwhile, the number is nobody's or another thread's of this process, which
/// takes an interrupted system call.
pub(super) fn thread(number: libc::pid_t) {
    send(number, signal());
}

/// Sends `signal`, which has a handler, to a thread. Async-signal-safe.
pub(super) fn send(number: libc::pid_t, signal: libc::c_int) {
    // SAFETY: the call touches no memory, and the signal has a handler that bears to be called at any
    // time on any thread.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), number, signal) };
}
