//! A reference to a copy does not leave the closure, and so does not outlive the guard.

use core::sync::atomic::AtomicU32;

use percpu_core::{percpu, preempt};

percpu! { static HITS: PerCpu<AtomicU32> = AtomicU32::new(0); }

fn main() {
    let pin = preempt::disable();
    let hits = HITS.with(&pin, |hits| hits); //~ error
    drop(pin);
    hits.load(core::sync::atomic::Ordering::Relaxed);
}
