//! Running a step's callback, which is foreign code: what it must not call, and what it must not leave
//! behind.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::cpu::CpuId;
use crate::platform::{Global, Platform};
use crate::preempt;
use crate::unwind::AtEnd;

/// The thread that runs a callback, or 0. There is one at most: callbacks run under the control lock.
static RUNNER: AtomicUsize = AtomicUsize::new(0);

/// Runs a callback, or several.
pub(super) fn run<R>(callback: impl FnOnce() -> R) -> R {
    RUNNER.store(Global::thread_id(), Ordering::Relaxed);
    let _end = AtEnd(|| RUNNER.store(0, Ordering::Relaxed));
    callback()
}

/// As [`run`], on `cpu`'s own hotplug thread or start-up path.
///
/// # Panics
///
/// If the callback leaves preemption off. It is on again then.
pub(super) fn run_on<R>(cpu: CpuId, callback: impl FnOnce() -> R) -> R {
    let before = preempt::count();
    let result = run(callback);
    let after = preempt::count();
    if after != before {
        preempt::set(cpu, before);
        panic!(
            "a hotplug step's callback leaves {cpu:?} with {after} preempt guards, not {before}"
        );
    }
    result
}

/// Refuses a call that waits for the end of the callback by which it is made.
///
/// # Panics
///
/// If this thread runs a callback, and the platform tells threads apart.
#[track_caller]
pub(super) fn refuse() {
    let thread = Global::thread_id();
    assert!(
        thread == 0 || RUNNER.load(Ordering::Relaxed) != thread,
        "a hotplug step's callback calls what waits until the callback has returned: steps and \
         instances are registered and removed, CPUs brought up and down, and the masks locked by \
         other code only"
    );
}
