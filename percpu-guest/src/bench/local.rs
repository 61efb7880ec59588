//! Values that a CPU changes in place, safe from its own interrupt handlers.

use percpu_core::local::{IrqCell, LocalLock, SeqStats};
use percpu_core::{cpu, irq, percpu, preempt};

use super::{Bench, Family, Row, bare};

percpu! {
    #[shared_aligned]
    static CELL: PerCpu<IrqCell<u64>> = IrqCell::new(0);
    #[shared_aligned]
    static LOCKED: PerCpu<LocalLock<u64>> = LocalLock::new(0);
    #[shared_aligned]
    static STATS: PerCpu<SeqStats<2>> = SeqStats::new();
}

/// Cells, `local_lock`, statistics with a sequence count; with their guards where not said
/// otherwise.
pub const LOCAL: Family = Family {
    name: "local",
    rows: &[
        Row::new("IrqCell::with_mut, guard held", "add gs:[r], r", |b| {
            let pin = preempt::disable();
            let add = |value: &mut u64| *value = value.wrapping_add(1);
            b.alone(|| CELL.with_mut(&pin, add).expect("no handler uses it"), bare::add);
        }),
        Row::new("LocalLock::lock, drop", "inc gs:[r]; dec gs:[r]", |b| {
            b.alone(|| *LOCKED.lock() += 1, bare::inc_dec);
        }),
        Row::new("LocalLock::lock_irqsave, drop", "inc gs:[r]; dec gs:[r]", |b| {
            b.alone(|| *LOCKED.lock_irqsave() += 1, bare::inc_dec);
        }),
        Row::new("SeqStats::update_pinned, guard held", "2 x add gs:[r], r", |b| {
            let pin = preempt::disable();
            b.alone(|| STATS.update_pinned(&pin, [1, 1500]), bare::two_adds);
        }),
        Row::new("SeqStats::update, IrqGuard included", "2 x add gs:[r], r", |b| {
            b.alone(|| STATS.update(&irq::disable(), [1, 1500]), bare::two_adds);
        }),
        Row::new("SeqStats::snapshot", "mov r, gs:[r]", snapshot),
    ],
};

fn snapshot(bench: &mut Bench) {
    let cpu = cpu::current();
    bench.alone(
        || {
            let [packets, bytes] = STATS.snapshot(cpu);
            bare::sink(packets);
            bare::sink(bytes);
        },
        bare::read,
    );
}
