//! Running a model under loom.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Words of a thread's stack: set-up needs more than loom gives.
const STACK: usize = 64 << 10;

/// Explores `model` with at most `preemptions` preemptions, unless `LOOM_MAX_PREEMPTIONS` says
/// otherwise.
pub fn explore(preemptions: usize, model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 50_000;
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    let executions = Arc::new(AtomicUsize::new(0));
    let count = executions.clone();
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        spawn(model).join().unwrap();
    });
    println!("{} executions", executions.load(Ordering::Relaxed));
}

/// A thread of the model.
pub fn spawn<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> loom::thread::JoinHandle<R> {
    loom::thread::Builder::new().stack_size(STACK).spawn(work).unwrap()
}
