//! The shadow model: what must exist in the guest, by its own account of events.

use std::collections::BTreeMap;
use std::fmt;

use percpu_core::view::GRANULE;
use percpu_guest::abi::{
    ACCOUNTS, ALL_ROWS, AreaContent, CounterRole, CpuState, Event, EventKind, IN_ACCOUNT,
    Invariant, LEDGER_SLOTS, LEDGER_THREADS, PlugError, SumKind, Trial,
};

use super::events::Line;
use super::finding::{Findings, Violation, kind};
use super::layout::Layout;
use super::lives::Lives;
use super::{Signal, TrialEnd};

/// Largest area the allocator hands out.
const MAX_AREA: u64 = 32 << 10;
/// Largest alignment.
const MAX_ALIGN: u64 = 4096;
/// Objects of each kind that are followed; more make no sense in a guest of this size.
const MAX_OBJECTS: usize = 1 << 20;

/// Sums likewise: they are never taken away.
const MAX_SUMS: usize = 1 << 12;

/// A live area.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// Per-CPU pointer.
    pub ptr: u64,
    /// Bytes as asked for.
    pub size: u32,
    /// Alignment.
    pub align: u32,
    /// What it holds.
    pub content: AreaContent,
    /// Seed of a pattern.
    pub seed: u32,
    /// Number of an event before which its owner had not begun to fill it.
    pub fill_begun: u64,
    /// CPU that allocated it.
    pub cpu: u32,
    /// Thread that allocated it, `u32::MAX` if none.
    pub thread: u32,
}

impl Area {
    /// First address after it: sizes are rounded up to a granule.
    pub fn end(&self) -> u64 {
        self.ptr.saturating_add(u64::from(self.size.next_multiple_of(GRANULE)))
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "area {:#x} ({} bytes, allocated on CPU {}", self.ptr, self.size, self.cpu)?;
        match self.thread {
            u32::MAX => write!(f, ")"),
            thread => write!(f, " by thread {thread})"),
        }
    }
}

/// Where a conserved amount is accounted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ledger {
    /// This slot in the rows of all threads and interrupts.
    All(u32),
    /// This slot in the row of one thread.
    Row {
        /// The slot.
        slot: u32,
        /// The row.
        row: u32,
    },
    /// An account.
    Account(u32),
}

impl Ledger {
    fn of_counter(slot: u64, row: u64) -> Option<Self> {
        let below = |n: u64, bound: usize| (n < bound as u64).then_some(n as u32);
        match row {
            IN_ACCOUNT => Some(Self::Account(below(slot, ACCOUNTS)?)),
            ALL_ROWS => Some(Self::All(below(slot, LEDGER_SLOTS)?)),
            _ => Some(Self::Row {
                slot: below(slot, LEDGER_SLOTS)?,
                row: below(row, LEDGER_THREADS)?,
            }),
        }
    }
}

/// A live counter.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    /// Where it lies.
    pub address: u64,
    /// What it began with.
    pub initial: i64,
    /// What was added to it.
    pub ledger: Ledger,
    /// What is done to it.
    pub role: CounterRole,
    /// Event that announced it: tells two counters at the same address apart.
    pub born: u64,
}

/// A conserved per-CPU sum that is no `percpu_counter`.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    /// Width of each CPU's part.
    pub kind: SumKind,
    /// Per-CPU pointer to the words.
    pub ptr: u64,
    /// Ledger column.
    pub slot: u32,
    /// What it began with.
    pub initial: u64,
}

/// Everything that is alive.
#[derive(Debug, Default)]
pub struct Shadow {
    /// Areas by pointer.
    pub areas: BTreeMap<u64, Area>,
    /// Counters by address.
    pub counters: BTreeMap<u64, Counter>,
    /// Sums by pointer.
    pub sums: BTreeMap<u64, Sum>,
    /// Objects that are counted by references.
    pub(crate) lives: Lives,
    /// CPUs' states as announced.
    pub cpus: Vec<Option<CpuState>>,
    /// Number of the event that announced each CPU's first start.
    pub first_start: Vec<Option<u64>>,
    /// The most CPUs that were online at once.
    pub max_online: u32,
    /// Allocations that were refused for want of memory.
    pub alloc_failures: u64,
    /// Number and time of the last event.
    pub now: (u64, u64),
}

impl Shadow {
    pub(crate) fn new(possible: u32) -> Self {
        let possible = possible as usize;
        Self { cpus: vec![None; possible], first_start: vec![None; possible], ..Self::default() }
    }

    /// CPUs that are online by their own account.
    pub fn online(&self) -> u32 {
        self.cpus.iter().filter(|state| **state == Some(CpuState::Online)).count() as u32
    }

    /// Follows one event.
    pub(crate) fn apply(
        &mut self,
        event: &Event,
        layout: Option<&Layout>,
        findings: &mut Findings,
    ) -> Option<Signal> {
        self.now = (event.seq, event.tsc);
        let [a0, _, a2, ..] = event.args;
        match EventKind::from_code(event.kind)? {
            EventKind::Booted => return Some(Signal::Booted),
            EventKind::PlugDone => {
                let (cpu, result) = self.plug_result(event, findings)?;
                return Some(Signal::PlugDone { cpu, result, command: a2 });
            }
            EventKind::UnplugDone => {
                let (cpu, result) = self.plug_result(event, findings)?;
                return Some(Signal::UnplugDone { cpu, result, command: a2 });
            }
            EventKind::CpuChanged => return self.cpu_changed(event, findings),
            EventKind::Alloc => self.alloc(event, layout, findings),
            EventKind::Free => {
                if self.areas.remove(&a0).is_none() {
                    nonsense(findings, event, "which is no live area");
                }
            }
            EventKind::Filled => match (self.areas.get_mut(&a0), content(event)) {
                (Some(area), Some((content, seed))) => {
                    (area.content, area.seed) = (content, seed);
                    if content == AreaContent::Any {
                        area.fill_begun = event.seq;
                    }
                }
                (None, _) => nonsense(findings, event, "which is no live area"),
                (_, None) => nonsense(findings, event, "which is no content"),
            },
            EventKind::CounterInit => self.counter_init(event, findings),
            EventKind::CounterDestroy => {
                if self.counters.remove(&a0).is_none() {
                    nonsense(findings, event, "which is no live counter");
                }
            }
            EventKind::SumInit => self.sum_init(event, findings),
            EventKind::LifeBegun
            | EventKind::LifeEnding
            | EventKind::LifeResumed
            | EventKind::LifeEnded => self.lives.apply(event, findings),
            EventKind::Violation => guest_violation(event, findings),
            EventKind::TestDone => return Some(Signal::TestDone { passed: a0 == 1 }),
            EventKind::AllocFailed => self.alloc_failures += 1,
            // For the image's own checks.
            EventKind::Note => {}
            EventKind::TrialDone => {
                let [trial, tried, as_meant, command, _] = event.args;
                let Some(trial) = u32::try_from(trial).ok().and_then(Trial::from_code) else {
                    nonsense(findings, event, "which is no trial");
                    return None;
                };
                return Some(Signal::TrialDone(TrialEnd { trial, tried, as_meant, command }));
            }
        }
        None
    }

    fn plug_result(
        &self,
        event: &Event,
        findings: &mut Findings,
    ) -> Option<(u32, Result<(), PlugError>)> {
        let [a0, a1, ..] = event.args;
        // A plug of a CPU that cannot exist is answered too.
        let cpu = u32::try_from(a0).ok();
        let result = match u32::try_from(a1) {
            Ok(0) => Some(Ok(())),
            Ok(code) => PlugError::from_code(code).map(Err),
            Err(_) => None,
        };
        if cpu.is_none() || result.is_none() {
            nonsense(findings, event, "which is no answer to a plug");
        }
        Some((cpu?, result?))
    }

    fn cpu_changed(&mut self, event: &Event, findings: &mut Findings) -> Option<Signal> {
        let [a0, a1, ..] = event.args;
        let known = self.cpus.get_mut(usize::try_from(a0).ok()?);
        let state = u32::try_from(a1).ok().and_then(CpuState::from_code);
        let (Some(known), Some(state)) = (known, state) else {
            nonsense(findings, event, "which is no CPU or no state");
            return None;
        };
        *known = Some(state);
        if state == CpuState::Starting {
            self.first_start[a0 as usize].get_or_insert(event.seq);
        }
        self.max_online = self.max_online.max(self.online());
        Some(Signal::CpuChanged { cpu: a0 as u32, state })
    }

    /// I1 at the moment an area is handed out: it is what was asked for, and nobody has it.
    fn alloc(&mut self, event: &Event, layout: Option<&Layout>, findings: &mut Findings) {
        let [ptr, size, align, ..] = event.args;
        let Some((content, seed)) = content(event) else {
            return nonsense(findings, event, "which is no content");
        };
        let possible_size = (1..=MAX_AREA).contains(&size);
        if !possible_size || !align.is_power_of_two() || align > MAX_ALIGN {
            return nonsense(findings, event, "which no allocator grants");
        }
        if self.areas.len() >= MAX_OBJECTS {
            return nonsense(findings, event, "one more than fit into the guest's memory");
        }
        let (cpu, thread) = (event.cpu.into(), event.thread);
        // If it is filled already nobody knows since when.
        let fill_begun = if content == AreaContent::Zero { event.seq } else { 0 };
        let (size, align) = (size as u32, align as u32);
        let area = Area { ptr, size, align, content, seed, fill_begun, cpu, thread };
        findings.checked("I1", 1);
        self.check_alignment(&area, layout, findings);
        if area.end() == u64::MAX {
            let detail = format!("{area} reaches past the end of the address space");
            findings.report(Violation::new("I1", area.to_string(), detail).on(cpu));
            return;
        }
        if let Some(other) = self.overlapping(&area) {
            let detail = format!("{area} was handed out while {other} is live: they overlap");
            findings.report(
                Violation::new("I1", area.to_string(), detail)
                    .on(cpu)
                    .values(format_args!("{:#x}..{:#x}", other.ptr, other.end()), "nothing there"),
            );
        }
        self.areas.insert(ptr, area);
    }

    /// A live area that shares a byte with `area`.
    fn overlapping(&self, area: &Area) -> Option<Area> {
        let before = self.areas.range(..area.end()).next_back();
        before.map(|(_, other)| *other).filter(|other| other.end() > area.ptr)
    }

    fn check_alignment(&self, area: &Area, layout: Option<&Layout>, findings: &mut Findings) {
        // It is the copies that must be aligned; pointers are numbers in the template's space.
        let offset = layout.and_then(|l| l.offsets.first().copied()).unwrap_or(0);
        let address = area.ptr.wrapping_add(offset);
        let align = u64::from(area.align.max(GRANULE));
        if !address.is_multiple_of(align) {
            let detail =
                format!("the copies of {area} lie at {address:#x}, not aligned to {align}");
            findings.report(
                Violation::new("I1", area.to_string(), detail)
                    .on(area.cpu)
                    .values(format_args!("{address:#x}"), format_args!("a multiple of {align}")),
            );
        }
    }

    fn counter_init(&mut self, event: &Event, findings: &mut Findings) {
        let [address, initial, slot, row, role] = event.args;
        let Some(ledger) = Ledger::of_counter(slot, row) else {
            return nonsense(findings, event, "which names no entry of the ledger");
        };
        let Some(role) = u32::try_from(role).ok().and_then(CounterRole::from_code) else {
            return nonsense(findings, event, "which has no role of a counter");
        };
        if self.counters.len() >= MAX_OBJECTS {
            return nonsense(findings, event, "one more than fit into the guest's memory");
        }
        let counter = Counter { address, initial: initial as i64, ledger, role, born: event.seq };
        if self.counters.insert(address, counter).is_some() {
            nonsense(findings, event, "where a live counter lies already");
        }
    }

    fn sum_init(&mut self, event: &Event, findings: &mut Findings) {
        let [kind, ptr, slot, initial, _] = event.args;
        let kind = u32::try_from(kind).ok().and_then(SumKind::from_code);
        let known = slot < LEDGER_SLOTS as u64 && self.sums.len() < MAX_SUMS;
        let Some(kind) = kind.filter(|_| known) else {
            return nonsense(findings, event, "which is no sum the host can follow");
        };
        self.sums.insert(ptr, Sum { kind, ptr, slot: slot as u32, initial });
    }
}

/// Content and seed that an event names.
fn content(event: &Event) -> Option<(AreaContent, u32)> {
    let [.., content, seed] = event.args;
    let content = AreaContent::from_code(u32::try_from(content).ok()?)?;
    Some((content, seed as u32))
}

/// An event that cannot be: the guest is confused, or somebody wrote into its ring.
pub(super) fn nonsense(findings: &mut Findings, event: &Event, why: &str) {
    let object = format!("event of kind {} from CPU {}", event.kind, event.cpu);
    let detail = format!("the guest announced {}, {why}", Line(event));
    findings.report(Violation::new(kind::EVENTS, object, detail).on(event.cpu.into()));
}

/// What the guest itself saw broken counts like what we see.
fn guest_violation(event: &Event, findings: &mut Findings) {
    let [invariant, cpu, object, seen, expected] = event.args;
    let Some(invariant) = u32::try_from(invariant).ok().and_then(Invariant::from_code) else {
        return nonsense(findings, event, "which is no invariant");
    };
    let (what, seen_as) = match invariant {
        Invariant::I14 => ("area", "word in CPU's copy"),
        Invariant::K1 => ("counter", "sum, after that CPU's addition,"),
        Invariant::K2 => ("counter", "CPU's local, or what a read is off by,"),
        Invariant::K4 => ("counter", "answer of a limited addition"),
        Invariant::K6 => ("counter", "sum while a CPU goes down"),
        Invariant::K7 => ("counter", "order by comparison with a value"),
        Invariant::S1 => ("sum", "sum, after that CPU's addition,"),
        Invariant::S2 => ("words", "second of the words that change as one"),
        Invariant::S3 => ("data", "number of those inside"),
        Invariant::P3 => ("reference", "answer of tryget_live after the kill was confirmed"),
        Invariant::P7 => ("object", "answer whether it was given back under a reader"),
        Invariant::T1 => ("page", "entry, when its memory went back,"),
        Invariant::T2 => ("page", "entry, when its memory came or went,"),
        Invariant::G1 => ("thread", "number of guards after an operation"),
    };
    let object = format!("{what} {object:#x}");
    let number = |value: u64| match invariant {
        Invariant::I14 | Invariant::S2 | Invariant::T1 | Invariant::T2 => format!("{value:#x}"),
        Invariant::K4 | Invariant::P3 | Invariant::P7 => {
            if value == 0 { "no" } else { "yes" }.to_owned()
        }
        _ => (value as i64).to_string(),
    };
    let (seen, expected) = match invariant {
        Invariant::K2 => {
            (number(seen), format!("less than {} on either side of zero", number(expected)))
        }
        _ => (number(seen), number(expected)),
    };
    let detail = format!(
        "the guest itself saw it on CPU {cpu}: {object}, that {seen_as} is {seen}, expected {expected}"
    );
    findings.report(
        Violation::new(invariant.name(), object, detail).on(cpu as u32).values(seen, expected),
    );
}
