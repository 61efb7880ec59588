//! How a run ended and how it came to that, in a form that reports keep and pages show.

use percpu_guest::abi::Stay;
use serde::{Deserialize, Serialize};

use super::picture::{Drawing, Picture};
use crate::diag::CpuReport;
use crate::judge::Violation;
use crate::machine::{Ending, Entry, Outcome, Scenario};
use crate::report::events::telling;
use crate::report::{Crash, EventReport};

/// Violations that are told.
const VIOLATIONS: usize = 8;

/// A run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// What was broken, the first few.
    pub violations: Vec<Violation>,
    /// How the guest came to an early end.
    pub crash: Option<Crash>,
    /// Its last events; their time stamps are steps.
    pub events: Vec<EventReport>,
    /// What matters of it, CPU by CPU.
    pub drawing: Drawing,
}

impl Told {
    /// What there is to say of a run.
    pub(super) fn of(
        picture: &mut Picture,
        (scenario, outcome): (&Scenario, &Outcome),
        strikes: &[Option<Stay>],
    ) -> Self {
        let (mut violations, crash) = match &outcome.ending {
            Ending::Held => (Vec::new(), None),
            Ending::Broken(violations) => (violations.clone(), None),
            Ending::Crashed(crash) | Ending::Hung(crash) => (Vec::new(), Some(crash.clone())),
        };
        violations.truncate(VIOLATIONS);
        for violation in &mut violations {
            violation.symbol = picture.variable(&violation.object);
        }
        let events: Vec<_> = outcome
            .trace
            .entries()
            .iter()
            .filter_map(|entry| match entry {
                Entry::Event(event) => Some(*event),
                _ => None,
            })
            .collect();
        let events = match outcome.ending {
            Ending::Held => Vec::new(),
            _ => telling(&events, violations.first(), |_| None),
        };
        let drawing = picture.drawing((scenario, outcome), strikes, false);
        Self { violations, crash, events, drawing }
    }

    /// The CPUs of a crash or a hang.
    pub fn cpus(&self) -> &[CpuReport] {
        self.crash.as_ref().map_or(&[], |crash| &crash.cpus)
    }
}
