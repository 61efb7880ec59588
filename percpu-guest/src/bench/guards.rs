//! Guards, and values lent out under them.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use percpu_core::{irq, percpu, preempt};

use super::{Family, Row, bare};

percpu! {
    #[shared_aligned]
    static LENT: PerCpu<AtomicU64> = AtomicU64::new(0);
    #[shared_aligned]
    static MASKED: PerCpu<Cell<u64>> = Cell::new(0);
}

/// Taking and dropping them.
pub const GUARDS: Family = Family {
    name: "guards",
    rows: &[
        Row::new("PreemptGuard, take and drop", "inc gs:[r]; dec gs:[r]", |b| {
            b.alone(|| drop(preempt::disable()), bare::inc_dec)
        }),
        Row::new("IrqGuard, take and drop", "inc gs:[r]; dec gs:[r]", |b| {
            b.alone(|| drop(irq::disable()), bare::inc_dec)
        }),
        Row::new("PerCpu::with, load and store", "add gs:[r], r", |b| {
            let pin = preempt::disable();
            let add = |copy: &AtomicU64| {
                copy.store(copy.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
            };
            b.alone(|| LENT.with(&pin, add), bare::add);
        }),
        Row::new("PerCpu::with_irq, guard included", "add gs:[r], r", |b| {
            let add = |copy: &Cell<u64>| copy.set(copy.get().wrapping_add(1));
            b.alone(|| MASKED.with_irq(&irq::disable(), add), bare::add);
        }),
    ],
};
