//! The table of steps: a fixed number of slots, and the order in which they run.

use core::{fmt, mem};

use super::instances::{InstanceRef, Instances};
use super::{failure, standing};
use crate::cpu::CpuId;
use crate::platform::{Global, Platform};
use crate::sync::SpinLock;
use crate::unwind::AtEnd;

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

/// A registered step. No two registrations have the same id: one that is kept beyond
/// [`unregister`](super::unregister) names no step any more, also when the slot is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepId(
    /// The number of the registration times [`MAX_STEPS`], and the slot. 2^58 registrations cannot be
    /// made in a lifetime.
    u64,
);

impl StepId {
    /// Returns the step's slot, below [`MAX_STEPS`].
    pub const fn index(self) -> usize {
        (self.0 % MAX_STEPS as u64) as usize
    }

    /// Returns the step that is in this slot now, or `None` if the slot is empty.
    pub fn from_index(index: usize) -> Option<Self> {
        steps().map(|(id, ..)| id).find(|id| id.index() == index)
    }

    const fn new(registration: u64, slot: usize) -> Self {
        Self(registration * MAX_STEPS as u64 + slot as u64)
    }

    /// The id as a number below 2^62, for [`from_bits`](Self::from_bits).
    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

/// What a failing step says: a number of its own choice. The three smallest are the state machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepError(pub i32);

impl StepError {
    /// The failure that [`inject_failure`](super::inject_failure) ordered.
    pub const INJECTED: Self = Self(i32::MIN);
    /// The start-up panicked.
    pub const PANICKED: Self = Self(i32::MIN + 1);
    /// The CPU's hotplug thread did not take the request up within
    /// [`CpuOps::answer_timeout_ns`](super::CpuOps::answer_timeout_ns). Nothing was run.
    pub const UNRESPONSIVE: Self = Self(i32::MIN + 2);
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::INJECTED => f.write_str("injected failure"),
            Self::PANICKED => f.write_str("the callback panicked"),
            Self::UNRESPONSIVE => {
                f.write_str("the CPU's hotplug thread did not take up the request in time")
            }
            Self(code) => write!(f, "error {code}"),
        }
    }
}

impl core::error::Error for StepError {}

/// What a step calls.
#[derive(Clone, Copy)]
pub(super) enum Callbacks {
    /// One function each.
    Single(Option<Startup>, Option<Teardown>),
    /// Those of each instance.
    Multi(Instances),
}

/// A step: what [`register`](super::register) was given.
///
/// Its callbacks are run only under the control lock: by its holder, or by the CPU that this one
/// waits for. Meanwhile the step and its instances stay as they are, and so this copy is good.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) id: StepId,
    pub(super) section: Section,
    pub(super) name: &'static str,
    pub(super) callbacks: Callbacks,
    pub(super) owner: Owner,
}

/// Who registered a step. The crate's own come first in their section, whenever they are registered: their
/// tear-downs find what users' tear-downs have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    /// The crate itself, whose counters and allocator rely on it: it stays.
    Crate,
    /// A user of the crate.
    User,
}

impl Step {
    /// Runs the start-up, unless a failure was ordered: of all instances, or of the one that is
    /// about to be added.
    pub(super) fn start_up(&self, cpu: CpuId, added: Option<InstanceRef>) -> Result<(), StepError> {
        // What the CPU is up without begins with no instance alone.
        if added.is_some() && standing::is_missing(self.id, cpu) {
            return Ok(());
        }
        if failure::take(self.id, cpu) {
            return Err(StepError::INJECTED);
        }
        match (self.callbacks, added) {
            (Callbacks::Single(startup, _), _) => startup.map_or(Ok(()), |f| f(cpu)),
            // SAFETY: the instances stay as they are, see the type.
            (Callbacks::Multi(list), None) => unsafe { list.start_up(self.id, cpu) },
            (Callbacks::Multi(list), Some(added)) => list.start_up_new(added, self.id, cpu),
        }
    }

    /// Runs the tear-down, unless it may fail and a failure was ordered.
    ///
    /// Only an ONLINE tear-down may fail: afterwards the CPU is past the point of no return.
    pub(super) fn tear_down(&self, cpu: CpuId) -> Result<(), StepError> {
        if self.section != Section::Online || standing::is_missing(self.id, cpu) {
            self.undo(cpu, None);
            return Ok(());
        }
        if failure::take(self.id, cpu) {
            return Err(StepError::INJECTED);
        }
        let Callbacks::Multi(list) = self.callbacks else {
            self.undo(cpu, None);
            return Ok(());
        };
        // SAFETY: the instances stay as they are, see the type.
        unsafe { list.tear_down(self.id, cpu) }.map_err(|(error, started_again)| {
            if let Err(error) = started_again {
                self.give_up(cpu, error);
            }
            error
        })
    }

    /// Runs the tear-down: of all instances, or of one. What the CPU is up without is not torn
    /// down.
    pub(super) fn undo(&self, cpu: CpuId, only: Option<InstanceRef>) {
        let missing = match only {
            None => standing::take_missing(self.id, cpu),
            Some(_) => standing::is_missing(self.id, cpu),
        };
        if missing {
            return;
        }
        match (self.callbacks, only) {
            (Callbacks::Single(_, Some(teardown)), _) => teardown(cpu),
            (Callbacks::Single(_, None), _) => {}
            // SAFETY: the instances stay as they are, see the type.
            (Callbacks::Multi(list), None) => unsafe { list.undo(cpu) },
            (Callbacks::Multi(_), Some(instance)) => instance.tear_down(cpu),
        }
    }

    /// Runs the start-up as part of a roll-back: if it fails there is nothing better left to do
    /// than to say so, and to remember it.
    pub(super) fn redo(&self, cpu: CpuId) {
        let panicked = AtEnd(|| self.give_up(cpu, StepError::PANICKED));
        let result = self.start_up(cpu, None);
        mem::forget(panicked);
        if let Err(error) = result {
            self.give_up(cpu, error);
        }
    }

    /// Says and remembers that `cpu` is up without the step.
    pub(super) fn give_up(&self, cpu: CpuId, error: StepError) {
        standing::set_missing(self.id, cpu);
        let name = self.name;
        Global::log(format_args!("hotplug: CPU {cpu} stays up without step {name}: {error}"));
    }
}

/// The steps. Changed only by whoever holds the control lock, so positions stand still during a
/// CPU's way up or down; the lock here is for those who just look.
struct Table {
    slots: [Option<Step>; MAX_STEPS],
    /// Slots in the order of start-up; the first `len` count.
    order: [u8; MAX_STEPS],
    len: usize,
    /// How many steps were ever registered.
    registrations: u64,
}

static TABLE: SpinLock<Table> = SpinLock::new(Table {
    slots: [None; MAX_STEPS],
    order: [0; MAX_STEPS],
    len: 0,
    registrations: 0,
});

impl Table {
    fn get(&self, id: StepId) -> Option<Step> {
        self.slots[id.index()].filter(|step| step.id == id)
    }

    fn at(&self, position: usize) -> Option<Step> {
        self.order[..self.len].get(position).and_then(|&slot| self.slots[slot as usize])
    }
}

/// Adds a step at the end of its section, or of the crate's own there. `None` if there is no room.
pub(super) fn insert(
    section: Section,
    name: &'static str,
    callbacks: Callbacks,
    owner: Owner,
) -> Option<Step> {
    let mut table = TABLE.lock();
    let slot = table.slots.iter().position(Option::is_none)?;
    let id = StepId::new(table.registrations, slot);
    let step = Step { id, section, name, callbacks, owner };
    table.registrations += 1;
    table.slots[slot] = Some(step);
    let len = table.len;
    let comes_after = |other: Step| (other.section, other.owner) > (section, owner);
    let position = (0..len).find(|&p| table.at(p).is_some_and(comes_after)).unwrap_or(len);
    table.order.copy_within(position..len, position + 1);
    table.order[position] = slot as u8;
    table.len += 1;
    drop(table);
    // What was ordered and remembered for an earlier step in this slot.
    failure::clear(step.id);
    standing::clear_missing(step.id);
    Some(step)
}

/// Takes a step out.
pub(super) fn remove(id: StepId) {
    let mut table = TABLE.lock();
    let len = table.len;
    let Some(step) = table.get(id) else { return };
    let slot = step.id.index();
    if let Some(position) = table.order[..len].iter().position(|&s| usize::from(s) == slot) {
        table.order.copy_within(position + 1..len, position);
        table.len -= 1;
        table.slots[slot] = None;
    }
}

/// The step with this id.
pub(super) fn get(id: StepId) -> Option<Step> {
    TABLE.lock().get(id)
}

/// Returns whether the crate has a step of its own with this name.
pub(super) fn has_own(name: &str) -> bool {
    let is_it = |step: &Step| step.owner == Owner::Crate && step.name == name;
    TABLE.lock().slots.iter().flatten().any(is_it)
}

/// Calls `f` if there is a step with this id, which stays meanwhile.
pub(super) fn if_registered(id: StepId, f: impl FnOnce()) {
    let table = TABLE.lock();
    if table.get(id).is_some() {
        f();
    }
}

/// Changes the instances of a step that has some.
pub(super) fn change_instances(id: StepId, change: impl FnOnce(&mut Instances)) {
    let mut table = TABLE.lock();
    if let Some(Step { id: found, callbacks: Callbacks::Multi(list), .. }) =
        &mut table.slots[id.index()]
        && *found == id
    {
        change(list);
    }
}

/// The step in this slot.
pub(super) fn in_slot(slot: u32) -> Option<Step> {
    TABLE.lock().slots.get(slot as usize).copied().flatten()
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
