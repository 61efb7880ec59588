//! A counter with a limit, of one thread's own: of a serial caller `limited_add` must know exactly
//! whether it may add, and say so.

use percpu_core::counter::PercpuCounter;
use percpu_core::cpu;
use percpu_guest::abi::{COUNTER_LIMIT, CounterRole, Invariant};

use super::{announce, destroy, usual_most};
use crate::workloads::slots;
use percpu_guest::kernel::events;
use percpu_guest::kernel::workload::{Worker, checked};

/// Additions in a round.
const ADDITIONS: u32 = if cfg!(percpu_steps) { 2 } else { 4 };
/// Amounts are at most so many times the usual ones, on either side of zero: many below the batch, some
/// far above.
const TIMES_USUAL: u64 = 4;
const SLOT: u32 = slots::OWN_COUNTERS + 8;

/// A thread's counter with a limit.
pub(super) struct Limited {
    counter: PercpuCounter,
    value: i64,
}

impl Limited {
    /// None if there is no memory.
    pub(super) fn new(worker: &Worker) -> Option<Self> {
        let counter = PercpuCounter::new(0).ok()?;
        announce(&counter, 0, SLOT, worker.row().into(), CounterRole::Limited);
        Some(Self { counter, value: 0 })
    }

    /// K4: adds where the limit allows it, and is told so.
    pub(super) fn work(&mut self, worker: &mut Worker) {
        let most = TIMES_USUAL * usual_most();
        for _ in 0..ADDITIONS {
            let amount = worker.rng.below(2 * most + 1) as i64 - most as i64;
            // Mostly near what there is, on either side.
            let near = worker.rng.below(most) as i64 - most as i64 / 2;
            let limit = (self.value + amount + near).clamp(-COUNTER_LIMIT, COUNTER_LIMIT);
            let fits = match amount {
                0 => true,
                1.. => self.value + amount <= limit,
                _ => self.value + amount >= limit,
            };
            let added = self.counter.limited_add(limit, amount);
            if added {
                self.value += amount;
                worker.book(SLOT, amount);
            }
            checked(Invariant::K4);
            if added != fits {
                let here = cpu::this_cpu_raw();
                let address = self.counter.address() as u64;
                events::violation(Invariant::K4, here, address, added.into(), fits.into());
            }
        }
    }

    pub(super) fn end(self) {
        destroy(self.counter);
    }
}
