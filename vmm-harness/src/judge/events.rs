//! The guest's event rings, merged into the one order in which things happened.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::mem::{offset_of, size_of};

use percpu_guest::abi::{
    ALL_ROWS, AreaContent, CpuState, EVENT_RING_LEN, Event, EventKind, EventRing, Holder,
    IN_ACCOUNT, Invariant, PlugError, SHARED, Shared, Trial,
};

use super::finding::{Findings, Violation, kind};
use crate::memory::{Following, GuestMem};

/// Events of each CPU that are remembered for reports.
const HISTORY: usize = 32;
/// Events of all CPUs that are remembered for reports.
const RECENT: usize = 8192;
/// Events that may wait for one with a lower number before the order is given up.
const MAX_PENDING: usize = 1 << 18;

/// Address of a CPU's ring.
pub(crate) fn ring_address(cpu: u32) -> u64 {
    SHARED + offset_of!(Shared, events) as u64 + u64::from(cpu) * size_of::<EventRing>() as u64
}

/// One CPU's ring as the host sees it. Our place in it is kept here: the copy in guest memory is
/// for the guest, which may overwrite it.
#[derive(Debug, Default)]
struct Ring {
    taken: u64,
    dropped: u64,
    /// The ring made no sense and is not read any more.
    broken: bool,
    history: VecDeque<Event>,
}

/// An event in the heap, lowest number first.
#[derive(Debug, PartialEq, Eq)]
struct Ticket(Event);

impl Ord for Ticket {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.seq.cmp(&other.0.seq)
    }
}

impl PartialOrd for Ticket {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The rings of all possible CPUs.
#[derive(Debug)]
pub(crate) struct Rings {
    mem: GuestMem,
    rings: Vec<Ring>,
    pending: BinaryHeap<Reverse<Ticket>>,
    /// The last events, in order.
    recent: VecDeque<Event>,
    /// Number of the event that comes next.
    next: u64,
    /// Numbers that may be missing because their events were dropped.
    missing: u64,
    /// Events were lost or made no sense: what happened is not fully known from here on.
    incomplete: bool,
}

impl Rings {
    pub(crate) fn new(mem: GuestMem, possible: u32) -> Self {
        Self {
            mem,
            rings: (0..possible).map(|_| Ring::default()).collect(),
            pending: BinaryHeap::new(),
            recent: VecDeque::new(),
            next: 1,
            missing: 0,
            incomplete: false,
        }
    }

    /// Whether every event so far was seen.
    pub(crate) fn is_complete(&self) -> bool {
        !self.incomplete
    }

    /// Events that wait for one with a lower number, which some CPU is about to write.
    pub(crate) fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// The event numbers that have been handed out end here.
    pub(crate) fn next_seq(&self) -> u64 {
        self.next
    }

    /// The last events of a CPU, oldest first.
    pub(crate) fn history(&self, cpu: u32) -> Vec<Event> {
        self.rings
            .get(cpu as usize)
            .map(|r| r.history.iter().copied().collect())
            .unwrap_or_default()
    }

    /// The last events of all CPUs, oldest first; with them those that wait for one that somebody may
    /// never come to write.
    pub(crate) fn recent(&self) -> Vec<Event> {
        let mut waiting: Vec<_> =
            self.pending.iter().map(|Reverse(Ticket(event))| *event).collect();
        waiting.sort_by_key(|event| event.seq);
        self.recent.iter().copied().chain(waiting).collect()
    }

    /// Empties all rings and returns the events whose turn it is, in order.
    pub(crate) fn collect(&mut self, findings: &mut Findings) -> Vec<Event> {
        for cpu in 0..self.rings.len() as u32 {
            self.empty_ring(cpu, findings);
        }
        let mut ready = Vec::new();
        while let Some(Reverse(Ticket(first))) = self.pending.peek() {
            let seq = first.seq;
            if seq > self.next && self.missing > 0 {
                // Dropped events took numbers with them.
                let skip = self.missing.min(seq - self.next);
                self.missing -= skip;
                self.next += skip;
            }
            if seq > self.next && self.pending.len() <= MAX_PENDING {
                break;
            }
            if seq > self.next {
                self.confused(
                    findings,
                    Violation::new(
                        kind::EVENTS,
                        "event order",
                        format!(
                            "{} events wait for number {}, which no CPU has written",
                            self.pending.len(),
                            self.next
                        ),
                    ),
                );
            }
            let Some(Reverse(Ticket(event))) = self.pending.pop() else { break };
            if event.seq < self.next && !self.incomplete {
                let detail = format!("two events have the number {}: {}", event.seq, Line(&event));
                self.confused(
                    findings,
                    Violation::new(kind::EVENTS, "event order", detail).on(event.cpu.into()),
                );
            }
            self.next = self.next.max(event.seq.saturating_add(1));
            ready.push(event);
        }
        findings.checked(kind::EVENTS, ready.len() as u64);
        let too_many = (self.recent.len() + ready.len()).saturating_sub(RECENT);
        self.recent.drain(..too_many.min(self.recent.len()));
        self.recent.extend(&ready[ready.len().saturating_sub(RECENT)..]);
        ready
    }

    /// Takes all that is in one CPU's ring.
    fn empty_ring(&mut self, cpu: u32, findings: &mut Findings) {
        if self.rings[cpu as usize].broken {
            return;
        }
        let base = ring_address(cpu);
        let word = |offset: usize| {
            self.mem.load_u64(base + offset as u64).following(|| format!("CPU {cpu}'s event ring"))
        };
        let Some(head) = findings.sound(word(offset_of!(EventRing, head))) else { return };
        let Some(dropped) = findings.sound(word(offset_of!(EventRing, dropped))) else { return };

        let ring = &self.rings[cpu as usize];
        let (taken, known_dropped) = (ring.taken, ring.dropped);
        if dropped != known_dropped {
            let object = format!("CPU {cpu}'s event ring");
            let lost = dropped.wrapping_sub(known_dropped);
            let detail = format!(
                "CPU {cpu} lost {lost} events for want of room in its ring: the host fell behind, \
                 or the ring's counter was overwritten"
            );
            self.confused(
                findings,
                Violation::new(kind::EVENTS, object, detail).on(cpu).values(dropped, 0),
            );
            self.missing = self.missing.saturating_add(lost);
            self.rings[cpu as usize].dropped = dropped;
        }
        let fresh = head.wrapping_sub(taken);
        if fresh > EVENT_RING_LEN as u64 {
            let detail = format!(
                "CPU {cpu}'s event ring says {head} events were written when {taken} were taken \
                 and {EVENT_RING_LEN} have room: its head was overwritten"
            );
            let object = format!("CPU {cpu}'s event ring");
            self.confused(
                findings,
                Violation::new(kind::EVENTS, object, detail).on(cpu).values(head, taken),
            );
            self.rings[cpu as usize].broken = true;
            return;
        }
        let slots = base + offset_of!(EventRing, slots) as u64;
        for i in 0..fresh {
            let n = taken.wrapping_add(i);
            let slot = slots + n % EVENT_RING_LEN as u64 * size_of::<Event>() as u64;
            let Some(event) = findings.sound(self.mem.read::<Event>(slot)) else { return };
            self.admit(cpu, event, findings);
        }
        self.rings[cpu as usize].taken = head;
        let _ = findings.sound(self.mem.store_u64(base + offset_of!(EventRing, tail) as u64, head));
    }

    /// Puts an event among those that wait for their turn, if it can be one.
    fn admit(&mut self, cpu: u32, event: Event, findings: &mut Findings) {
        let history = &mut self.rings[cpu as usize].history;
        if history.len() == HISTORY {
            history.pop_front();
        }
        history.push_back(event);
        // A number may come after its turn only when numbers were skipped for lost events.
        let late = event.seq < self.next && !self.incomplete;
        let nonsense = if EventKind::from_code(event.kind).is_none() {
            Some(format!("of unknown kind {}", event.kind))
        } else if u32::from(event.cpu) != cpu {
            Some(format!("that CPU {} wrote", event.cpu))
        } else if event.seq == 0 || late {
            Some(format!("with the number {}, which has been used", event.seq))
        } else {
            None
        };
        let Some(nonsense) = nonsense else {
            self.pending.push(Reverse(Ticket(event)));
            return;
        };
        self.missing = self.missing.saturating_add(1);
        let object = format!("CPU {cpu}'s event ring");
        let detail = format!("CPU {cpu}'s event ring holds an event {nonsense}: {}", Line(&event));
        self.confused(findings, Violation::new(kind::EVENTS, object, detail).on(cpu));
    }

    fn confused(&mut self, findings: &mut Findings, violation: Violation) {
        self.incomplete = true;
        findings.report(violation);
    }
}

/// An event as a line of a report.
pub struct Line<'a>(pub &'a Event);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event { seq, tsc, cpu, thread, .. } = self.0;
        write!(f, "#{seq} tsc {tsc} CPU {cpu} ")?;
        if *thread != u32::MAX {
            write!(f, "thread {thread} ")?;
        }
        Text(self.0).fmt(f)
    }
}

/// What an event says, without when and where.
pub struct Text<'a>(pub &'a Event);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event { kind, args, .. } = self.0;
        let [a0, a1, a2, a3, a4] = *args;
        match EventKind::from_code(*kind) {
            Some(EventKind::Booted) => write!(f, "booted"),
            Some(EventKind::PlugDone) => write!(f, "plug of CPU {a0} (command {a2}): {}", Plug(a1)),
            Some(EventKind::UnplugDone) => {
                write!(f, "unplug of CPU {a0} (command {a2}): {}", Plug(a1))
            }
            Some(EventKind::CpuChanged) => match CpuState::from_code(a1 as u32) {
                Some(state) => write!(f, "CPU {a0} is now {state:?}"),
                None => write!(f, "CPU {a0} is now in unknown state {a1}"),
            },
            Some(EventKind::Alloc) => {
                write!(f, "alloc {a0:#x}, {a1} bytes, align {a2}, {}", Content(a3, a4))
            }
            Some(EventKind::Free) => write!(f, "free {a0:#x}"),
            Some(EventKind::Filled) => write!(f, "fill {a0:#x}, {}", Content(a3, a4)),
            Some(EventKind::CounterInit) => {
                write!(f, "counter {a0:#x} made, initial {}, slot {a2}, ", a1 as i64)?;
                match a3 {
                    ALL_ROWS => write!(f, "all rows"),
                    IN_ACCOUNT => write!(f, "account"),
                    row => write!(f, "row {row}"),
                }
            }
            Some(EventKind::CounterDestroy) => write!(f, "counter {a0:#x} destroyed"),
            Some(EventKind::SumInit) => write!(f, "sum {a1:#x} made, initial {a3}, slot {a2}"),
            Some(EventKind::LifeBegun) => write!(f, "{} began, slot {a2}", Lived(a0, a1, a3)),
            Some(EventKind::LifeEnding) => write!(f, "{} is to end", Lived(a0, a1, a3)),
            Some(EventKind::LifeResumed) => write!(f, "{} goes on", Lived(a0, a1, a3)),
            Some(EventKind::LifeEnded) => write!(f, "{} ended, held {a2}", Lived(a0, a1, a3)),
            Some(EventKind::Violation) => {
                let (seen, expected) = (a3 as i64, a4 as i64);
                match u32::try_from(a0).ok().and_then(Invariant::from_code) {
                    Some(invariant) => write!(f, "guest saw {invariant:?} broken: ")?,
                    None => write!(f, "guest saw unknown invariant {a0} broken: ")?,
                }
                write!(f, "CPU {a1}, {a2:#x}: {seen} for {expected}")
            }
            Some(EventKind::TestDone) => {
                write!(f, "test {}", if a0 == 1 { "passed" } else { "failed" })
            }
            Some(EventKind::AllocFailed) => write!(f, "no memory for {a0} bytes"),
            Some(EventKind::TrialDone) => match Trial::from_code(a0 as u32) {
                Some(trial) => write!(f, "trial {trial:?} (command {a3}): {a2} of {a1}"),
                None => write!(f, "unknown trial {a0}"),
            },
            Some(EventKind::Note) => write!(f, "note {a0} {a1:#x} {a2:#x} {a3:#x} {a4:#x}"),
            None => write!(f, "kind {kind} {args:x?}"),
        }
    }
}

/// Result code of a plug.
struct Plug(u64);

impl fmt::Display for Plug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, u32::try_from(self.0).ok().and_then(PlugError::from_code)) {
            (0, _) => f.write_str("done"),
            (_, Some(error)) => write!(f, "{error:?}"),
            (code, None) => write!(f, "unknown error {code}"),
        }
    }
}

/// A life of an object: what it is, where, which life.
struct Lived(u64, u64, u64);

impl fmt::Display for Lived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u32::try_from(self.0).ok().and_then(Holder::from_code) {
            Some(holder) => write!(f, "{holder:?} {:#x}, life {},", self.1, self.2),
            None => write!(f, "unknown holder {} {:#x}, life {},", self.0, self.1, self.2),
        }
    }
}

/// Content of an area.
struct Content(u64, u64);

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u32::try_from(self.0).ok().and_then(AreaContent::from_code) {
            Some(AreaContent::Zero) => f.write_str("zero"),
            Some(AreaContent::Pattern) => write!(f, "pattern of seed {:#x}", self.1),
            Some(AreaContent::Any) => f.write_str("any content"),
            None => write!(f, "unknown content {}", self.0),
        }
    }
}
