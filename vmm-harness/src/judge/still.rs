//! K3, K6 and K5 at each plug, by counters that nobody changes but a CPU that comes up.
//!
//! While a CPU goes down such a counter's value stands still, so all of it can be judged from
//! outside at any moment: before and after, by what must have moved from the CPU's local into the
//! count and nothing else (K3); in between, by what a sum would count then (K6).

use std::collections::BTreeMap;

use percpu_core::view::CounterView;
use percpu_guest::abi::{CounterRole, PlugError};

use super::counters;
use super::finding::{Findings, Violation};
use super::layout::Layout;
use super::shadow::{Counter, Ledger, Shadow};
use super::sums::{by_cpu, by_interrupts};
use crate::memory::{AddressSpace, GuestMem};

/// Times that a look which was disturbed is tried again.
const TRIES: u32 = 4;

/// A plug or an unplug of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Up,
    Down,
}

/// A counter's parts at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parts {
    count: i64,
    locals: Vec<i32>,
    /// What the ledger says was added to it.
    added: i64,
}

impl Parts {
    fn read(
        space: &AddressSpace<'_>,
        layout: &Layout,
        counter: &Counter,
        findings: &mut Findings,
    ) -> Option<Self> {
        let view = counters::view(space, counter);
        let view = findings.sound(view)?;
        let locals = findings.sound(counters::locals(space, layout, counter, &view))?;
        let Ledger::All(slot) = counter.ledger else { return None };
        let added = findings.sound(by_interrupts(space.mem(), layout.possible(), slot))?;
        Some(Self { count: view.count, locals, added })
    }

    fn sum(&self) -> i64 {
        self.locals.iter().fold(self.count, |sum, local| sum.wrapping_add(i64::from(*local)))
    }
}

/// The counters as they were when the order was given that is under way.
#[derive(Debug, Default)]
pub(crate) struct Still {
    before: BTreeMap<u64, (Counter, Parts)>,
}

fn still(shadow: &Shadow) -> impl Iterator<Item = &Counter> {
    shadow.counters.values().filter(|counter| counter.role == CounterRole::Still)
}

impl Still {
    /// Remembers the counters. No order is under way.
    pub(crate) fn before(
        &mut self,
        space: &AddressSpace<'_>,
        layout: &Layout,
        shadow: &Shadow,
        findings: &mut Findings,
    ) {
        self.before = still(shadow)
            .filter_map(|counter| {
                let parts = Parts::read(space, layout, counter, findings)?;
                Some((counter.address, (*counter, parts)))
            })
            .collect();
    }

    /// K3 after the order: what was in the locals is in the count now, or where it was.
    pub(crate) fn after(
        &mut self,
        space: &AddressSpace<'_>,
        layout: &Layout,
        (change, cpu): (Change, u32),
        result: Result<(), PlugError>,
        findings: &mut Findings,
    ) {
        let Some(masks) = findings.sound(layout.masks(space)) else { return };
        let batch = layout.batch_for(masks.online.count_ones());
        for (counter, before) in std::mem::take(&mut self.before).into_values() {
            let Some(after) = Parts::read(space, layout, &counter, findings) else { continue };
            findings.checked("K3", 1);
            let added = after.added.wrapping_sub(before.added);
            let mut expected = before.clone();
            let local = expected.locals.get_mut(cpu as usize);
            match (change, result, local) {
                (Change::Down, Ok(()), Some(local)) => {
                    expected.count = expected.count.wrapping_add(i64::from(std::mem::take(local)));
                }
                // One that failed may have come so far that it was folded again.
                (Change::Up, Err(_), Some(_)) => {
                    expected.count = expected.count.wrapping_add(added);
                }
                (Change::Up, Ok(()), Some(local)) => {
                    *local = local.wrapping_add(added as i32);
                    // By which it may have reached the batch.
                    if i64::from(*local).abs() >= batch {
                        let local = i64::from(std::mem::take(local));
                        expected.count = expected.count.wrapping_add(local);
                    }
                }
                _ => {}
            }
            if (after.count, &after.locals) != (expected.count, &expected.locals) {
                findings.report(lost(&counter, (change, cpu), &before, &after, &expected));
            }
        }
    }
}

fn lost(
    counter: &Counter,
    (change, cpu): (Change, u32),
    before: &Parts,
    after: &Parts,
    expected: &Parts,
) -> Violation {
    let object = format!("counter {:#x}", counter.address);
    let parts = |parts: &Parts| {
        let locals = by_cpu(parts.locals.iter().map(|local| i64::from(*local)));
        format!("count {}, locals {locals} (sum {})", parts.count, parts.sum())
    };
    let detail = format!(
        "CPU {cpu} {}, and {object}, which nobody else changed meanwhile, went from {} to {}, \
         expected {}",
        match change {
            Change::Up => "came up",
            Change::Down => "went down",
        },
        parts(before),
        parts(after),
        parts(expected),
    );
    Violation::new("K3", object, detail).on(cpu).values(after.sum(), expected.sum())
}

/// K6 at any moment of an unplug: what the count and the locals of the CPUs that the guest counts make
/// up together is the counter's value.
pub(crate) fn check_dying(
    mem: &GuestMem,
    layout: &Layout,
    shadow: &Shadow,
    findings: &mut Findings,
) {
    for counter in still(shadow) {
        for _ in 0..TRIES {
            let Some((sum, dying)) = sum_now(mem, layout, counter, findings) else { continue };
            let Ledger::All(slot) = counter.ledger else { break };
            let Some(added) = findings.sound(by_interrupts(mem, layout.possible(), slot)) else {
                break;
            };
            if dying == 0 {
                break;
            }
            findings.checked("K6", 1);
            let expected = counter.initial.wrapping_add(added);
            if sum != expected {
                let object = format!("counter {:#x}", counter.address);
                let cpu = dying.trailing_zeros();
                let detail = format!(
                    "while CPU {cpu} goes down a sum of {object} over the counted CPUs is {sum}, \
                     expected {expected}: it is not counted, or counted twice"
                );
                findings.report(Violation::new("K6", object, detail).on(cpu).values(sum, expected));
            }
            break;
        }
    }
}

/// A sum as the guest makes it, and the CPUs that were dying; `None` if something moved meanwhile.
fn sum_now(
    mem: &GuestMem,
    layout: &Layout,
    counter: &Counter,
    findings: &mut Findings,
) -> Option<(i64, u64)> {
    let space = mem.address_space();
    let masks = layout.masks(&space).ok()?;
    let before = findings.sound(counters::view(&space, counter))?;
    let locals = findings.sound(counters::locals(&space, layout, counter, &before))?;
    let after = findings.sound(counters::view(&space, counter))?;
    // A fold makes the sequence odd, and then larger.
    let moved =
        |view: &CounterView| !view.sequence.is_multiple_of(2) || view.sequence != before.sequence;
    if moved(&before) || moved(&after) || layout.masks(&space).ok()? != masks {
        return None;
    }
    let counted = (0u32..).zip(locals).filter(|(cpu, _)| masks.is_counted(*cpu));
    let sum = counted.fold(before.count, |sum, (_, local)| sum.wrapping_add(i64::from(local)));
    Some((sum, masks.dying))
}

/// K6 after an order: no CPU is dying, each one that is online is counted, and one that went down is
/// not.
pub(crate) fn check_masks(
    space: &AddressSpace<'_>,
    layout: &Layout,
    (change, cpu): (Change, u32),
    result: Result<(), PlugError>,
    findings: &mut Findings,
) {
    let Some(masks) = findings.sound(layout.masks(space)) else { return };
    findings.checked("K6", 1);
    if masks.dying != 0 {
        let cpu = masks.dying.trailing_zeros();
        let detail = format!(
            "CPU {cpu} is in the dying mask ({:#x}) though no plug is under way",
            masks.dying
        );
        findings
            .report(Violation::new("K6", "the dying mask", detail).on(cpu).values(masks.dying, 0));
    }
    let mut wrong = |cpu: u32, detail: String, expected: u64| {
        let violation = Violation::new("K6", "the counted mask", detail).on(cpu);
        let hex = |mask: u64| format!("{mask:#x}");
        findings.report(violation.values(hex(masks.counted), hex(expected)));
    };
    let missed = masks.online & !masks.counted;
    if missed != 0 {
        let online = missed.trailing_zeros();
        let detail = format!(
            "CPU {online} is online but not in the counted mask ({:#x}): sums miss what it counts",
            masks.counted
        );
        wrong(online, detail, masks.counted | masks.online);
    }
    if (change, result) == (Change::Down, Ok(())) && masks.is_counted(cpu) {
        let detail =
            format!("CPU {cpu} went down but is still in the counted mask ({:#x})", masks.counted);
        wrong(cpu, detail, masks.counted & !(1 << cpu));
    }
}
