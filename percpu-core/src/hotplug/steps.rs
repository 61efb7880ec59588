//! The table of steps: a fixed number of slots, and the order in which they run.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu::{CpuId, NR_CPUS};
use crate::sync::SpinLock;

/// The most steps there can be at a time.
pub const MAX_STEPS: usize = 64;

/// Starts something up for a CPU, or says why not.
pub type Startup = fn(CpuId) -> Result<(), StepError>;
/// Tears down for a CPU what its start-up started. It cannot refuse.
pub type Teardown = fn(CpuId);

/// Where and when a step runs; see the [module's documentation](super).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Section {
    /// On the thread that brings the CPU up or down. Linux: `CPUHP_BP_PREPARE_DYN`.
    Prepare,
    /// On the CPU, with interrupts masked. Linux: `CPUHP_AP_*_STARTING`.
    Starting,
    /// On the CPU's hotplug thread. Linux: `CPUHP_AP_ONLINE_DYN`.
    Online,
}

/// A registered step, until it is unregistered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepId(u32);

impl StepId {
    /// The step's slot, below [`MAX_STEPS`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The step in this slot, if there is one.
    pub fn from_index(index: usize) -> Option<Self> {
        steps().map(|(id, ..)| id).find(|id| id.index() == index)
    }
}

/// What a failing step says: a number of its own choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepError(pub i32);

impl StepError {
    /// The failure that [`inject_failure`] ordered.
    pub const INJECTED: Self = Self(i32::MIN);
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::INJECTED => f.write_str("injected failure"),
            Self(code) => write!(f, "error {code}"),
        }
    }
}

impl core::error::Error for StepError {}

/// A step: what [`register`](super::register) was given.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) id: StepId,
    pub(super) section: Section,
    pub(super) name: &'static str,
    pub(super) startup: Option<Startup>,
    pub(super) teardown: Option<Teardown>,
}

impl Step {
    /// Runs the start-up, unless a failure was ordered.
    pub(super) fn start_up(&self, cpu: CpuId) -> Result<(), StepError> {
        if take_failure(self.id, cpu) {
            return Err(StepError::INJECTED);
        }
        self.startup.map_or(Ok(()), |f| f(cpu))
    }

    /// Runs the tear-down, unless it may fail and a failure was ordered.
    ///
    /// Only an ONLINE tear-down may fail: afterwards the CPU is past the point of no return.
    pub(super) fn tear_down(&self, cpu: CpuId) -> Result<(), StepError> {
        if self.section == Section::Online && take_failure(self.id, cpu) {
            return Err(StepError::INJECTED);
        }
        self.undo(cpu);
        Ok(())
    }

    /// Runs the tear-down.
    pub(super) fn undo(&self, cpu: CpuId) {
        if let Some(f) = self.teardown {
            f(cpu);
        }
    }
}

/// The steps. Changed only by whoever holds the control lock, so positions stand still during a
/// CPU's way up or down; the lock here is for those who just look.
struct Table {
    slots: [Option<Step>; MAX_STEPS],
    /// Slots in the order of start-up; the first `len` count.
    order: [u8; MAX_STEPS],
    len: usize,
}

static TABLE: SpinLock<Table> =
    SpinLock::new(Table { slots: [None; MAX_STEPS], order: [0; MAX_STEPS], len: 0 });

impl Table {
    fn at(&self, position: usize) -> Option<Step> {
        self.order[..self.len].get(position).and_then(|&slot| self.slots[slot as usize])
    }
}

/// Adds a step at the end of its section. `None` if there is no room.
pub(super) fn insert(
    section: Section,
    name: &'static str,
    startup: Option<Startup>,
    teardown: Option<Teardown>,
) -> Option<Step> {
    let mut table = TABLE.lock();
    let slot = table.slots.iter().position(Option::is_none)?;
    let step = Step { id: StepId(slot as u32), section, name, startup, teardown };
    table.slots[slot] = Some(step);
    let len = table.len;
    let position =
        (0..len).find(|&p| table.at(p).is_some_and(|other| other.section > section)).unwrap_or(len);
    table.order.copy_within(position..len, position + 1);
    table.order[position] = slot as u8;
    table.len += 1;
    Some(step)
}

/// Takes a step out.
pub(super) fn remove(id: StepId) {
    let mut table = TABLE.lock();
    let len = table.len;
    if let Some(position) = table.order[..len].iter().position(|&s| usize::from(s) == id.index()) {
        table.order.copy_within(position + 1..len, position);
        table.len -= 1;
        table.slots[id.index()] = None;
    }
}

/// The step with this id.
pub(super) fn get(id: StepId) -> Option<Step> {
    TABLE.lock().slots.get(id.index()).copied().flatten()
}

/// The step in this slot.
pub(super) fn in_slot(slot: u32) -> Option<Step> {
    get(StepId(slot))
}

/// Positions of a section's steps in the order of start-up.
pub(super) fn positions(section: Section) -> core::ops::Range<usize> {
    let table = TABLE.lock();
    let before = |limit: fn(Section, Section) -> bool| {
        (0..table.len).filter(|&p| table.at(p).is_some_and(|s| limit(s.section, section))).count()
    };
    before(|a, b| a < b)..before(|a, b| a <= b)
}

/// The step at a position.
pub(super) fn at(position: usize) -> Step {
    TABLE.lock().at(position).expect("a position of `positions`, under the control lock")
}

/// The steps in the order of start-up: id, section, name.
pub fn steps() -> impl Iterator<Item = (StepId, Section, &'static str)> {
    (0..MAX_STEPS).map_while(|p| TABLE.lock().at(p)).map(|s| (s.id, s.section, s.name))
}

/// Failures that were ordered, by CPU: bit = slot of a step that is to fail. Not in per-CPU memory:
/// they can be ordered for a CPU that has none yet.
static FAILURES: [AtomicU64; NR_CPUS] = [const { AtomicU64::new(0) }; NR_CPUS];

/// Makes the next run of a step for `cpu` fail once, for tests: its start-up in any section, or its
/// tear-down in the ONLINE section. Linux: the `fail` file of a CPU's `hotplug` directory.
pub fn inject_failure(step: StepId, cpu: CpuId) {
    FAILURES[cpu.index()].fetch_or(1 << step.index(), Ordering::Relaxed);
}

/// Takes the order back, if there was one.
pub(super) fn take_failure(step: StepId, cpu: CpuId) -> bool {
    let bit = 1 << step.index();
    FAILURES[cpu.index()].fetch_and(!bit, Ordering::Relaxed) & bit != 0
}
