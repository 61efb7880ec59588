//! What tests with several threads share, so that none of them waits for ever for a thread that has
//! failed.

// Each test program uses a part of this.
#![allow(dead_code)]

use std::any::Any;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Far more than any wait takes, on a slow and busy machine and under an interpreter, too.
const LIMIT: Duration = Duration::from_secs(300);

/// Waits for what is bound to come soon.
#[track_caller]
pub fn wait_until(it_has_come: impl Fn() -> bool) {
    let begin = Instant::now();
    while !it_has_come() {
        assert!(begin.elapsed() < LIMIT, "it does not come");
        std::thread::yield_now();
    }
}

/// Sets a flag when it is dropped: threads that loop until the flag is set end, also when an
/// assertion fails before.
pub struct Done<'a>(pub &'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A point that threads leave together: a `Barrier` that does not wait for ever for a thread that
/// failed before it got there.
pub struct Meeting {
    expected: usize,
    arrived: AtomicUsize,
}

impl Meeting {
    /// A point that `expected` threads leave together, once.
    pub fn new(expected: usize) -> Self {
        Self { expected, arrived: AtomicUsize::new(0) }
    }

    /// Waits for the others.
    #[track_caller]
    pub fn wait(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        wait_until(|| self.arrived.load(Ordering::SeqCst) >= self.expected);
    }
}

/// Runs what percpu-core itself waits for without a limit, as it does for a CPU: a panic ends the
/// process. Its message goes past the capture of the test's output, which an abort would lose.
pub fn abort_on_panic(f: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(f)) {
        let said = message(&*panic);
        let _ = writeln!(std::io::stderr(), "a thread that is a CPU panicked: {said}");
        std::process::abort();
    }
}

/// What a panic says.
pub fn message(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "(no text)",
    }
}
