//! What the judge found, and how often it looked.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{PoisonError, RwLock};

use serde::{Deserialize, Deserializer, Serialize};

use crate::memory::Wild;

/// Distinct violations that are kept; more are only counted.
const KEEP: usize = 64;

/// Findings that are no numbered invariant of the specification.
pub mod kind {
    /// A wild pointer, or a list that is no list.
    pub const MEMORY: &str = "memory";
    /// An event ring that is corrupted, or that lost events.
    pub const EVENTS: &str = "events";
    /// The host's orders in the shared header were overwritten.
    pub const HEADER: &str = "header";
}

/// What each name says, in the order of reports.
const MEANINGS: &[(&str, &str)] = &[
    ("I1", "live areas are disjoint, aligned, in the managed range, and keep their content"),
    (
        "I2",
        "the allocation map is the union of live, cached and hidden areas; none is two of these",
    ),
    ("I3", "boundary bits at both ends of an area, none between"),
    ("I4", "free bytes are four times the zero bits"),
    ("I5", "first_free is the lowest zero bit"),
    ("I6", "left_free and right_free are exact"),
    ("I7", "every contig hint equals the longest free run"),
    ("I8", "scan hints name a smaller free run before the contig run"),
    ("I9", "chunks are listed in the slot their hint demands"),
    ("I10", "populated pages are counted right"),
    ("I11", "empty populated pages of a chunk are counted right"),
    ("I12", "the allocator's count of empty pages is the sum over its chunks"),
    ("I13", "pages under live areas are populated and mapped on every possible CPU"),
    ("I14", "memory handed out is zero on every possible CPU"),
    ("I15", "one wholly free chunk is kept at most; the first and the reserved keep their pages"),
    ("I16", "a refused free changes nothing"),
    ("I17", "a failed growth changes nothing"),
    ("I18", "offsets are the same in every unit"),
    ("K1", "a counter's quiescent sum is its initial amount and all adds"),
    ("K2", "no local reaches the batch, which fits the online CPUs; a read is off by the locals"),
    ("K3", "a fold loses nothing and counts nothing twice"),
    ("K4", "a limited addition passes no limit and says what it did"),
    ("K5", "an offline CPU's locals are zero in every registered counter"),
    ("K6", "a sum while a CPU goes down counts that CPU once, and not after its death"),
    ("K7", "a comparison with a value is one of the exact value"),
    ("S1", "per-CPU sums are conserved"),
    ("S2", "words that change as one are never seen apart"),
    ("S3", "whoever is inside a CPU's protected data is alone there"),
    ("M1", "a mount's last reference is seen to go once in a life"),
    ("M2", "no mount ends while it is held"),
    ("P1", "a killed ref is released exactly once in a life"),
    ("P2", "no ref is released while it is held"),
    ("P3", "no tryget_live succeeds once a kill is confirmed"),
    ("P4", "a ref's count and open words make up the references held, and the bias"),
    ("P5", "a ref's words are closed in atomic mode, and a dead one is in it"),
    ("P6", "nothing is left in a ref after its release"),
    ("P7", "what somebody looks up is not given back before he is done"),
    ("T1", "no page goes back before every TLB was made to forget it"),
    ("T2", "memory is put behind reserved addresses alone, which have none, and taken away once"),
    ("G1", "no operation leaves preemption off or interrupts masked"),
    (kind::MEMORY, "pointers and lists lead somewhere"),
    (kind::EVENTS, "the guest's event rings make sense and lose nothing"),
    (kind::HEADER, "the guest leaves the host's orders alone"),
];

/// What checks of guests' own say, by name.
static OWN: RwLock<BTreeMap<&'static str, &'static str>> = RwLock::new(BTreeMap::new());

/// Makes what a check of a guest's own says known, for reports.
pub(crate) fn learn(name: &'static str, meaning: &'static str) {
    OWN.write().unwrap_or_else(PoisonError::into_inner).insert(name, meaning);
}

/// What an invariant says, or a check of a guest's own, in a line.
pub fn meaning(invariant: &str) -> &'static str {
    let known = MEANINGS.iter().find(|(name, _)| *name == invariant).map(|(_, meaning)| *meaning);
    let own = || OWN.read().unwrap_or_else(PoisonError::into_inner).get(invariant).copied();
    known.or_else(own).unwrap_or("")
}

/// All invariants, in the order of reports.
pub fn invariants() -> impl Iterator<Item = &'static str> {
    MEANINGS.iter().map(|(name, _)| *name)
}

/// The invariant of this name in a report; one of another version of the specification has none.
fn known<'de, D: Deserializer<'de>>(from: D) -> Result<Name, D::Error> {
    let text = String::deserialize(from)?;
    Ok(invariants().find(|name| *name == text).unwrap_or("unknown"))
}

/// Place of an invariant in a report.
pub fn order(invariant: &str) -> usize {
    let place = MEANINGS.iter().position(|(name, _)| *name == invariant);
    place.unwrap_or(MEANINGS.len())
}

/// A name in the specification.
type Name = &'static str;

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Its name in the specification (`I7`, `K1`), or one of [`kind`].
    #[serde(deserialize_with = "known")]
    pub invariant: Name,
    /// The CPU it concerns.
    pub cpu: Option<u32>,
    /// The object it concerns.
    pub object: String,
    /// What was seen.
    pub seen: String,
    /// What should have been there.
    pub expected: String,
    /// A sentence that says all of it.
    pub detail: String,
    /// The last event before it was seen.
    pub seq: u64,
    /// Time stamp of that event.
    pub tsc: u64,
    /// How often it was seen.
    pub times: u64,
    /// The static variable that the object lies in, if it lies in one.
    pub symbol: Option<String>,
}

impl Violation {
    /// `object` breaks `invariant`, and `detail` says how.
    pub fn new(
        invariant: &'static str,
        object: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            invariant,
            cpu: None,
            object: object.into(),
            seen: String::new(),
            expected: String::new(),
            detail: detail.into(),
            seq: 0,
            tsc: 0,
            times: 1,
            symbol: None,
        }
    }

    /// It concerns this CPU.
    pub fn on(mut self, cpu: u32) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// What was seen against what was expected.
    pub fn values(mut self, seen: impl fmt::Display, expected: impl fmt::Display) -> Self {
        self.seen = seen.to_string();
        self.expected = expected.to_string();
        self
    }

    /// What makes two sightings the same violation.
    pub(crate) fn key(&self) -> (&'static str, Option<u32>, &str) {
        (self.invariant, self.cpu, &self.object)
    }
}

impl From<Wild> for Violation {
    fn from(wild: Wild) -> Self {
        Self::new(kind::MEMORY, wild.what.clone(), wild.to_string())
            .values(format_args!("{:#x}", wild.addr), "an address of guest memory")
    }
}

impl From<Wild> for Box<Violation> {
    fn from(wild: Wild) -> Self {
        Box::new(wild.into())
    }
}

impl From<Box<Violation>> for Violation {
    fn from(violation: Box<Violation>) -> Self {
        *violation
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} broken: {}", self.invariant, self.detail)?;
        if self.times > 1 {
            write!(f, " (seen {} times)", self.times)?;
        }
        Ok(())
    }
}

/// What one look found. Bounded, because a corrupted guest can be wrong everywhere.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) checks: BTreeMap<&'static str, u64>,
    pub(crate) found: Vec<Violation>,
}

impl Findings {
    /// `n` objects were held against an invariant.
    pub(crate) fn checked(&mut self, invariant: &'static str, n: u64) {
        let checks = self.checks.entry(invariant).or_default();
        *checks = checks.saturating_add(n);
    }

    pub(crate) fn report(&mut self, violation: impl Into<Violation>) {
        // Twice what is kept, so that a confirming look can compare sets that overlap.
        if !self.is_full() {
            self.found.push(violation.into());
        }
    }

    /// Whether nothing more is kept.
    pub(crate) fn is_full(&self) -> bool {
        self.found.len() >= 2 * KEEP
    }

    /// Reports what is wrong with a value and goes on without it.
    pub(crate) fn sound<T>(&mut self, value: Result<T, impl Into<Violation>>) -> Option<T> {
        value.map_err(|violation| self.report(violation)).ok()
    }

    /// Keeps what `again` has found as well.
    pub(crate) fn confirm(&mut self, again: &Findings) {
        self.found.retain(|v| again.found.iter().any(|other| other.key() == v.key()));
    }
}

/// All looks of a run together.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) checks: BTreeMap<&'static str, u64>,
    pub(crate) violations: Vec<Violation>,
    index: HashMap<(&'static str, Option<u32>, String), usize>,
    pub(crate) suppressed: u64,
}

impl Tally {
    /// Adds a look; its violations get the time of the last event. A violation that was seen
    /// before is counted, not repeated.
    pub(crate) fn add(&mut self, findings: Findings, (seq, tsc): (u64, u64)) {
        for (invariant, n) in findings.checks {
            let checks = self.checks.entry(invariant).or_default();
            *checks = checks.saturating_add(n);
        }
        for mut violation in findings.found {
            let key = (violation.invariant, violation.cpu, violation.object.clone());
            if let Some(&known) = self.index.get(&key) {
                self.violations[known].times += 1;
            } else if self.violations.len() < KEEP {
                (violation.seq, violation.tsc) = (seq, tsc);
                self.index.insert(key, self.violations.len());
                self.violations.push(violation);
            } else {
                self.suppressed += 1;
            }
        }
    }
}
