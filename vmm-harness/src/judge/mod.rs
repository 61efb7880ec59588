//! The judge: reads the guest's raw memory and decides by itself whether the invariants hold.
//!
//! [`Judge::drain`] follows the guest's events into a [shadow model](Shadow) of what must exist.
//! [`Judge::check_instant`] looks while the guest runs, at what holds at any time;
//! [`Judge::check_quiescent`] looks while all workload threads stand at an operation boundary, and
//! compares every bitmap, hint, counter and byte with the shadow; around a trial of the guest,
//! [`Judge::before_trial`] and [`Judge::after_trial`] compare the state with itself.
//!
//! Nothing that is read is trusted: each pointer is translated and checked, each walk is bounded,
//! and what makes no sense is a finding like any other.
//!
//! # Implementation
//!
//! A file a family of invariants. A look collects findings of its own; those of a quiescent look
//! are confirmed by further looks, because kernel threads of the guest (the allocator's balance
//! work) may be about while the workload stands still.

mod areas;
mod bits;
mod caches;
mod chunks;
mod content;
mod counters;
mod events;
mod finding;
mod header;
mod kept;
mod layout;
mod lives;
mod maps;
mod own;
mod owners;
mod pages;
mod plugs;
mod refs;
mod shadow;
mod snapshot;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod specimen;
mod still;
mod sums;
#[cfg(test)]
mod tests;
mod trials;

use std::collections::{BTreeMap, VecDeque};
use std::mem::offset_of;

use percpu_guest::abi::{CpuState, Event, MAX_CPUS, PlugError, SHARED, SharedHeader};

pub use events::{Line as EventLine, Text as EventText};
pub use finding::{Violation, invariants, kind, meaning, order};
pub use header::HeaderGuard;
pub use own::{Check, Checks, Found, GuestView, Statics};
pub use shadow::{Area, Counter, Ledger, Shadow, Sum};
pub use trials::TrialEnd;

use crate::image::Image;
use crate::memory::{AddressSpace, GuestMem, Wild};
use events::Rings;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use events::ring_address;
use finding::{Findings, Tally};
use kept::Kept;
use layout::Layout;
use own::Own;
use snapshot::Snapshot;
use still::Still;
use sums::LedgerBook;

/// Further looks that must agree before a quiescent look's finding counts.
const CONFIRMATIONS: u32 = 2;

/// Something the guest announced that the orchestrator may be waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Set-up is done.
    Booted,
    /// A plug command is done.
    PlugDone {
        /// The CPU, as the command named it.
        cpu: u32,
        /// How it went.
        result: Result<(), PlugError>,
        /// Sequence number of the command.
        command: u64,
    },
    /// An unplug command is done.
    UnplugDone {
        /// The CPU, as the command named it.
        cpu: u32,
        /// How it went.
        result: Result<(), PlugError>,
        /// Sequence number of the command.
        command: u64,
    },
    /// A CPU has a new state.
    CpuChanged {
        /// The CPU.
        cpu: u32,
        /// Its state.
        state: CpuState,
    },
    /// A guest test ended.
    TestDone {
        /// Whether it passed.
        passed: bool,
    },
    /// A trial is over.
    TrialDone(TrialEnd),
}

/// What became of a quiescent look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quiescent {
    /// Everything was looked at.
    Checked,
    /// The guest does not stand still; the text says what moves. Try again a little later.
    NotYet(String),
}

/// How much there is of what the judge follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// CPUs online.
    pub online: u32,
    /// Live areas.
    pub areas: u64,
    /// Bytes of these, as asked for.
    pub bytes: u64,
    /// Chunks, by the guest's account.
    pub chunks: u64,
    /// Populated pages that nothing is in, likewise.
    pub empty_pages: u64,
    /// Live counters.
    pub counters: u64,
    /// Conserved sums that are no counters.
    pub sums: u64,
}

/// The judge of one run.
#[derive(Debug)]
pub struct Judge {
    mem: GuestMem,
    possible: u32,
    guard: HeaderGuard,
    rings: Rings,
    shadow: Shadow,
    layout: Option<Layout>,
    /// The largest counter batch that can have been in force.
    max_batch: i64,
    /// What was seen of the chunks that are never depopulated.
    kept: Kept,
    /// The state before the trial that is under way.
    before: Option<Snapshot>,
    /// The counters before the plug that is under way.
    still: Still,
    /// What the guest announced, each with its time stamp.
    signals: VecDeque<(u64, Signal)>,
    /// Events as they were followed, for whoever wants them all.
    recorded: Option<Vec<Event>>,
    tally: Tally,
    /// The guest's own checks.
    own: Own,
}

impl Judge {
    /// A judge of the guest in `mem`, to be made after the host has written the shared header and
    /// before the guest runs.
    pub fn new(mem: GuestMem, possible: u32) -> Result<Self, Wild> {
        let possible = possible.min(MAX_CPUS as u32);
        Ok(Self {
            guard: HeaderGuard::new(&mem)?,
            rings: Rings::new(mem.clone(), possible),
            shadow: Shadow::new(possible),
            layout: None,
            max_batch: 0,
            kept: Kept::default(),
            before: None,
            still: Still::default(),
            signals: VecDeque::new(),
            recorded: None,
            tally: Tally::default(),
            own: Own::default(),
            mem,
            possible,
        })
    }

    /// With the checks that the image has of its own.
    pub fn with_checks_of(mut self, image: &Image) -> Self {
        if let Some(statics) = image.statics() {
            self.own = Own::new(image.checks(), statics);
        }
        self
    }

    /// Empties the event rings, follows the events, and returns what they announce. To be called
    /// often: a full ring loses events, and that ends the comparison with the shadow.
    pub fn drain(&mut self) -> Vec<Signal> {
        self.drain_timed().into_iter().map(|(_, signal)| signal).collect()
    }

    /// As [`drain`](Self::drain), each with the time stamp that the guest gave it.
    pub fn drain_timed(&mut self) -> Vec<(u64, Signal)> {
        self.follow_events();
        self.signals.drain(..).collect()
    }

    /// Whether events wait for one with a lower number, which some CPU is about to write.
    pub fn waits(&self) -> bool {
        self.rings.waiting() > 0
    }

    /// Keeps every event from now on, for [`take_recorded`](Self::take_recorded).
    pub fn record(&mut self) {
        self.recorded = Some(Vec::new());
    }

    /// The events that were followed since this was called last.
    pub fn take_recorded(&mut self) -> Vec<Event> {
        self.recorded.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// What must exist, by the guest's account.
    pub fn shadow(&self) -> &Shadow {
        &self.shadow
    }

    /// Objects held against each invariant so far.
    pub fn checks(&self) -> &BTreeMap<&'static str, u64> {
        &self.tally.checks
    }

    /// What was found, each once, the first 64.
    pub fn violations(&self) -> &[Violation] {
        &self.tally.violations
    }

    /// Violations beyond those that are kept.
    pub fn suppressed(&self) -> u64 {
        self.tally.suppressed
    }

    /// The last events of a CPU, oldest first.
    pub fn history(&self, cpu: u32) -> Vec<Event> {
        self.rings.history(cpu)
    }

    /// The last events of all CPUs, oldest first.
    pub fn recent(&self) -> Vec<Event> {
        self.rings.recent()
    }

    /// How much there is of everything; zeros where the guest has not booted.
    pub fn census(&self) -> Census {
        let allocator = self.layout.as_ref().and_then(|layout| {
            let space = self.mem.address_space();
            layout.allocator(&space).ok()
        });
        let shadow = &self.shadow;
        Census {
            online: shadow.online(),
            areas: shadow.areas.len() as u64,
            bytes: shadow.areas.values().map(|area| u64::from(area.size)).sum(),
            chunks: allocator.as_ref().map_or(0, |allocator| allocator.nr_chunks.into()),
            empty_pages: allocator.map_or(0, |allocator| allocator.nr_empty_pop_pages.into()),
            counters: shadow.counters.len() as u64,
            sums: shadow.sums.len() as u64,
        }
    }

    fn follow_events(&mut self) {
        let mut findings = Findings::default();
        for event in self.rings.collect(&mut findings) {
            if let Some(recorded) = &mut self.recorded {
                recorded.push(event);
            }
            let signal = self.shadow.apply(&event, self.layout.as_ref(), &mut findings);
            self.own.on_event(&event, &mut findings);
            if signal == Some(Signal::Booted) {
                self.boot(&mut findings);
            }
            self.signals.extend(signal.map(|signal| (event.tsc, signal)));
        }
        self.tally.add(findings, self.shadow.now);
    }

    /// Learns which CPUs have got a unit.
    fn learn_units(&mut self) {
        if let Some(layout) = &mut self.layout {
            layout.learn_units(&self.mem.address_space());
        }
    }

    /// The roots are valid from now on.
    fn boot(&mut self, findings: &mut Findings) {
        match Layout::read(&self.mem.address_space(), self.possible) {
            Ok(layout) => {
                self.guard.booted(layout.roots);
                self.layout = Some(layout);
            }
            Err(violation) => findings.report(violation),
        }
    }

    /// Checks what holds at any instant; the guest may run.
    pub fn check_instant(&mut self) {
        let mut findings = Findings::default();
        self.guard.judge(&self.mem, &mut findings);
        self.learn_units();
        if let Some(layout) = self.layout.clone() {
            let mem = self.mem.clone();
            let space = mem.address_space();
            self.note_batch(&space, &layout);
            self.kept.check_instant(&space, &mut findings);
            areas::check_offsets(&space, &layout, &mut findings);
            let (shadow, batch) = (&self.shadow, self.max_batch);
            if self.rings.is_complete() {
                counters::check_locals_now(&space, &layout, shadow, batch, &mut findings);
                sums::check_stats(&mem, &layout, shadow, &mut findings);
            }
            self.own.at_any_instant(&mem, &layout, shadow, &mut findings);
        }
        self.tally.add(findings, self.shadow.now);
        self.check_offline_locals(|_| true);
    }

    /// K5 of `cpus` while the guest runs: counters come and go, so what looks wrong counts only if the
    /// counter still lives after the look and the CPU stayed offline all the while.
    fn check_offline_locals(&mut self, cpus: impl Fn(u32) -> bool) {
        let Some(layout) = self.layout.clone() else { return };
        let mut findings = Findings::default();
        let offline = counters::Offline::now(&self.mem, &layout, &mut findings).only(cpus);
        let suspects = {
            let space = self.mem.address_space();
            counters::offline_locals(&space, &layout, &self.shadow, &offline, &mut findings)
        };
        if suspects.is_empty() {
            return self.tally.add(findings, self.shadow.now);
        }
        self.follow_events();
        let still = counters::Offline::now(&self.mem, &layout, &mut findings);
        // Events that wait for their turn may be the end of a suspect.
        if self.rings.is_complete() && self.rings.waiting() == 0 {
            let space = self.mem.address_space();
            for suspect in suspects {
                let lives = self
                    .shadow
                    .counters
                    .get(&suspect.counter.address)
                    .is_some_and(|counter| counter.born == suspect.counter.born);
                if lives && offline.same(&still, suspect.cpu) && suspect.persists(&space) {
                    findings.report(suspect.violation());
                }
            }
        }
        self.tally.add(findings, self.shadow.now);
    }

    /// Checks everything, while all workload threads stand at an operation boundary and no plug is
    /// in flight.
    pub fn check_quiescent(&mut self) -> Quiescent {
        // Rest first, events second: what a thread announced just before it came to rest must be
        // known before the look.
        if let Some(reason) = self.unrest() {
            self.follow_events();
            return Quiescent::NotYet(reason);
        }
        self.follow_events();
        if let Some(reason) = self.unrest() {
            return Quiescent::NotYet(reason);
        }
        self.learn_units();
        let Some(layout) = self.layout.clone() else {
            return Quiescent::NotYet("the guest has not booted".into());
        };
        let mut findings = self.look(&layout);
        for _ in 0..CONFIRMATIONS {
            if findings.found.is_empty() {
                break;
            }
            let again = self.look(&layout);
            if let Some(reason) = self.unrest() {
                return Quiescent::NotYet(reason);
            }
            findings.confirm(&again);
        }
        self.tally.add(findings, self.shadow.now);
        Quiescent::Checked
    }

    /// What keeps the guest from being quiescent.
    fn unrest(&self) -> Option<String> {
        let word = |offset: usize| self.mem.load_u32(SHARED + offset as u64).unwrap_or(0);
        let busy = word(offset_of!(SharedHeader, busy));
        if busy != 0 {
            return Some(format!("{busy} workload threads are inside an operation"));
        }
        if self.rings.is_complete() && self.rings.waiting() > 0 {
            return Some(format!("event {} is not written yet", self.rings.next_seq()));
        }
        let layout = self.layout.as_ref()?;
        let allocator = layout.allocator(&self.mem.address_space()).ok()?;
        if allocator.lock != 0 {
            return Some("the allocator's lock is held".into());
        }
        let locked = caches::locked(&self.mem.address_space(), &allocator).ok()??;
        Some(format!("the lock of CPU {locked}'s cache is held"))
    }

    /// One look at everything.
    fn look(&mut self, layout: &Layout) -> Findings {
        let mut findings = Findings::default();
        self.guard.judge(&self.mem, &mut findings);
        let mem = self.mem.clone();
        let space = mem.address_space();
        areas::check_offsets(&space, layout, &mut findings);
        self.note_batch(&space, layout);
        let batch = counters::check_batch(&space, layout, &mut findings);
        batch.unwrap_or_else(|violation| findings.report(violation));
        // What the guest announced is the truth only as long as nothing of it was lost.
        let shadow = self.rings.is_complete().then_some(&self.shadow);
        let registered = counters::registered(&space, layout, &mut findings);
        chunks::check(&space, layout, shadow, &registered, &mut self.kept, &mut findings);
        if let Some(shadow) = shadow {
            content::check(&space, layout, shadow, &mut findings);
            let book = LedgerBook::read(&mem, layout.possible());
            if let Some(book) = findings.sound(book) {
                let batch = self.max_batch;
                counters::check(&space, layout, shadow, &registered, batch, &book, &mut findings);
                sums::check(&space, layout, shadow, &book, &mut findings);
                shadow.lives.check(&book, &mut findings);
                refs::check(&space, layout, shadow, &book, &mut findings);
            }
        }
        self.own.at_rest(&space, layout, &self.shadow, &mut findings);
        findings
    }

    /// Remembers the largest batch: locals that were fine under it may stay when it shrinks.
    fn note_batch(&mut self, space: &AddressSpace<'_>, layout: &Layout) {
        let online = layout.masks(space).map_or(0, |masks| masks.online.count_ones());
        let online = online.max(self.shadow.max_online);
        self.max_batch = self.max_batch.max(layout.batch_for(online));
    }
}
