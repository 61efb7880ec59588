//! What is counted by references: the last one is seen to go exactly once in a life (M1, P1), and
//! not while there are others (M2, P2).
//!
//! An object lives from [`EventKind::LifeBegun`] on. It holds itself, by a reference that it loses
//! from [`EventKind::LifeEnding`] on and may get back ([`EventKind::LifeResumed`]); the references of
//! threads are in the ledger. Who sees the last one go says so ([`EventKind::LifeEnded`]), and what
//! the ledger showed him: there a reference is entered after it was taken and deleted before it is
//! dropped, so of one that is entered there still is something left.

use std::collections::BTreeMap;

use percpu_guest::abi::{Event, EventKind, Holder, LEDGER_SLOTS};

use super::finding::{Findings, Violation};
use super::shadow::{Ledger, nonsense};
use super::sums::LedgerBook;

/// Objects that are followed.
const MOST: usize = 1 << 10;

/// Where an object stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It holds itself.
    Held,
    /// Threads may hold it, nobody else does.
    Ending,
    /// Nobody holds it.
    Ended,
}

/// An object, by its last event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    pub(crate) holder: Holder,
    pub(crate) slot: u32,
    pub(crate) number: u64,
    pub(crate) stage: Stage,
}

/// The invariants of an object: that its last reference goes once, and goes last.
fn invariants(holder: Holder) -> (&'static str, &'static str) {
    match holder {
        Holder::Mount => ("M1", "M2"),
        Holder::Ref => ("P1", "P2"),
    }
}

fn name(holder: Holder, object: u64) -> String {
    match holder {
        Holder::Mount => format!("mount {object:#x}"),
        Holder::Ref => format!("reference {object:#x}"),
    }
}

/// All objects that are counted by references, by address.
#[derive(Debug, Default)]
pub(crate) struct Lives(BTreeMap<u64, Life>);

impl Lives {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Life)> {
        self.0.iter().map(|(object, life)| (*object, life))
    }

    /// Follows an event.
    pub(crate) fn apply(&mut self, event: &Event, findings: &mut Findings) {
        let [holder, object, amount, number, _] = event.args;
        let Some(holder) = u32::try_from(holder).ok().and_then(Holder::from_code) else {
            return nonsense(findings, event, "which is nothing that is counted by references");
        };
        let kind = EventKind::from_code(event.kind);
        if kind == Some(EventKind::LifeBegun) {
            return self.begin(event, holder, findings);
        }
        let Some(life) = self.0.get_mut(&object).filter(|life| life.holder == holder) else {
            return nonsense(findings, event, "which never began to live");
        };
        if kind == Some(EventKind::LifeEnded) {
            return life.end(event, findings);
        }
        let (from, to) = match kind {
            Some(EventKind::LifeEnding) => (Stage::Held, Stage::Ending),
            _ => (Stage::Ending, Stage::Held),
        };
        if life.stage != from || life.number != number || u64::from(life.slot) != amount {
            return nonsense(findings, event, "which stands elsewhere in its life");
        }
        life.stage = to;
    }

    fn begin(&mut self, event: &Event, holder: Holder, findings: &mut Findings) {
        let [_, object, slot, number, _] = event.args;
        let before = self.0.get(&object);
        let next = before.map_or(1, |life| life.number.wrapping_add(1));
        let over = before.is_none_or(|life| life.stage == Stage::Ended && life.holder == holder);
        if !over || number != next || slot >= LEDGER_SLOTS as u64 || self.0.len() >= MOST {
            return nonsense(findings, event, "which is no next life");
        }
        self.0.insert(object, Life { holder, slot: slot as u32, number, stage: Stage::Held });
    }

    /// M1, P1 at rest: who is held by nobody was seen to end.
    pub(crate) fn check(&self, book: &LedgerBook, findings: &mut Findings) {
        for (object, life) in self.iter().filter(|(_, life)| life.stage != Stage::Held) {
            let (once, _) = invariants(life.holder);
            let held = book.by_threads(Ledger::All(life.slot));
            findings.checked(once, 1);
            if life.stage == Stage::Ending && held == 0 {
                let what = name(life.holder, object);
                let detail = format!(
                    "nobody holds {what} any more in its life {}, and nobody saw the last reference go",
                    life.number
                );
                findings.report(Violation::new(once, what, detail).values("not ended", "ended"));
            }
        }
    }
}

impl Life {
    fn end(&mut self, event: &Event, findings: &mut Findings) {
        let [_, object, held, number, _] = event.args;
        let (once, last) = invariants(self.holder);
        let what = name(self.holder, object);
        findings.checked(once, 1);
        findings.checked(last, 1);
        let before = self.stage;
        if before != Stage::Ending || number != self.number {
            let detail = format!(
                "the last reference to {what} was seen to go in life {number}, which was {}",
                match before {
                    Stage::Held => "not to end",
                    Stage::Ending => "not this one",
                    Stage::Ended => "over already",
                }
            );
            let seen = Violation::new(once, what.clone(), detail).on(event.cpu.into());
            findings.report(seen.values(format_args!("{before:?}"), "Ending"));
        }
        if held != 0 {
            let held = held as i64;
            let detail = format!(
                "the last reference to {what} was seen to go in life {number} while the ledger shows \
                 {held}"
            );
            findings
                .report(Violation::new(last, what, detail).on(event.cpu.into()).values(held, 0));
        }
        self.stage = Stage::Ended;
    }
}
