//! The words by which the host and a guest whose CPUs run one at a time speak: the step count, the
//! schedule, what CPUs did.

use std::mem::offset_of;

use kvm_bindings::kvm_regs;
use percpu_guest::abi::{
    ChangeKind, ChangeSlot, Context, MAX_CPUS, MOST_CHANGES, MOST_STAYS, SHARED, SavedRegisters,
    Shared, SharedHeader, Standing, Stay, Steps, Turns, TurnsState,
};

use super::scenario::Unit;
use super::schedule::{Schedule, What};
use crate::memory::{GuestMem, Wild};
use crate::vm::Registers;

/// A moment that never comes.
pub(super) const NEVER: u64 = u64::MAX;
/// Address of what says who runs when.
const TURNS: u64 = SHARED + offset_of!(Shared, turns) as u64;
/// Where the part of it lies that is put back between runs.
pub(super) const STATE: std::ops::Range<u64> = TURNS..TURNS + size_of::<TurnsState>() as u64;

/// The guest's CPUs, as contexts of one vCPU.
#[derive(Clone, Debug)]
pub(super) struct Cpus {
    mem: GuestMem,
}

impl Cpus {
    pub(super) fn new(mem: GuestMem) -> Self {
        Self { mem }
    }

    /// Address of a word of the state.
    fn state(offset: usize) -> u64 {
        STATE.start + offset as u64
    }

    /// Address of a word of a CPU.
    fn context(cpu: u32, offset: usize) -> u64 {
        let at = offset_of!(TurnsState, contexts) + cpu as usize * size_of::<Context>();
        Self::state(at + offset)
    }

    /// The CPU that runs. Whatever the guest says, one that there is room for.
    pub(super) fn running(&self) -> Result<u32, Wild> {
        let cpu = self.mem.load_u64(Self::state(offset_of!(TurnsState, running)))?;
        Ok((cpu % MAX_CPUS as u64) as u32)
    }

    /// Says when the guest is to ring next.
    pub(super) fn ask_at(&self, moment: u64) -> Result<(), Wild> {
        self.mem.store_u64(Self::state(offset_of!(TurnsState, host_due)), moment)
    }

    /// Gives the guest a schedule, which begins at moment `now` and after so many points.
    pub(super) fn follow(&self, schedule: &Schedule, now: u64, points: u64) -> Result<(), Wild> {
        let state = |offset, value| self.mem.store_u64(Self::state(offset), value);
        let changes = &schedule.changes[..schedule.changes.len().min(MOST_CHANGES)];
        let (at_points, base) = match schedule.unit {
            Unit::Steps => (0, now),
            Unit::Points => (1, points),
        };
        state(offset_of!(TurnsState, changes), changes.len() as u64)?;
        state(offset_of!(TurnsState, at_points), at_points)?;
        state(offset_of!(TurnsState, next_change), 0)?;
        state(offset_of!(TurnsState, waits), schedule.waits)?;
        state(offset_of!(TurnsState, highest), schedule.order.len() as u64)?;
        let priorities = (1..=schedule.order.len() as u64).rev();
        let known = |(cpu, _): &(&u32, u64)| **cpu < MAX_CPUS as u32;
        for (cpu, priority) in schedule.order.iter().zip(priorities).filter(known) {
            self.mem.store_u64(Self::context(*cpu, offset_of!(Context, priority)), priority)?;
        }
        let mut bytes = Vec::with_capacity(changes.len() * size_of::<ChangeSlot>());
        for change in changes {
            let (kind, cpu) = match change.what {
                What::Demote => (ChangeKind::Demote, 0),
                What::Interrupt => (ChangeKind::Interrupt, 0),
                What::Promote(cpu) => (ChangeKind::Promote, cpu),
            };
            bytes.extend_from_slice(&base.saturating_add(change.at).to_le_bytes());
            bytes.extend_from_slice(&(kind as u32).to_le_bytes());
            bytes.extend_from_slice(&cpu.to_le_bytes());
        }
        self.mem.write(TURNS + offset_of!(Turns, changes) as u64, &bytes)
    }

    /// Changes of the schedule that have come.
    pub(super) fn changes_done(&self) -> Result<u64, Wild> {
        self.mem.load_u64(Self::state(offset_of!(TurnsState, next_change)))
    }

    /// Takes what CPUs did since the last call, into `stays`.
    pub(super) fn take_stays(&self, stays: &mut Vec<Stay>) -> Result<(), Wild> {
        let noted = self.mem.load_u64(Self::state(offset_of!(TurnsState, noted)))?;
        let read = self.mem.load_u64(Self::state(offset_of!(TurnsState, read)))?;
        // Whatever the guest says, not more than there can be.
        let n = noted.wrapping_sub(read).min(MOST_STAYS as u64);
        for stay in (0..n).map(|i| read.wrapping_add(i) % MOST_STAYS as u64) {
            let at = TURNS + offset_of!(Turns, stays) as u64 + stay * size_of::<Stay>() as u64;
            stays.push(self.mem.read(at)?);
        }
        self.mem.store_u64(Self::state(offset_of!(TurnsState, read)), noted)
    }

    /// The registers with which a CPU goes on that was started and does not run.
    pub(super) fn registers(&self, cpu: u32) -> Result<Option<Registers>, Wild> {
        let word = |offset| self.mem.load_u64(Self::context(cpu, offset));
        let standing = self.mem.load_u32(Self::context(cpu, offset_of!(Context, standing)))?;
        if standing == Standing::Off as u32 {
            return Ok(None);
        }
        let rsp = word(offset_of!(Context, rsp))?;
        let saved: SavedRegisters = self.mem.read_virt(rsp)?;
        let SavedRegisters { pad: _, r15, r14, r13, r12, rbx, rbp, rip } = saved;
        let rsp = rsp.wrapping_add(size_of::<SavedRegisters>() as u64);
        let regs = kvm_regs { r15, r14, r13, r12, rbx, rbp, rip, rsp, ..Default::default() };
        Ok(Some(Registers { regs, cr2: 0, gs_base: word(offset_of!(Context, gs_base))?, cpl: 3 }))
    }

    /// Has the guest find, at a moment, the command that was posted.
    pub(super) fn command_at(&self, moment: u64) -> Result<(), Wild> {
        // 0 would be no moment.
        self.mem.store_u64(Self::state(offset_of!(TurnsState, command_due)), moment.max(1))
    }
}

/// The words of [`Steps`].
#[derive(Clone, Debug)]
pub(super) struct Clock {
    mem: GuestMem,
}

impl Clock {
    pub(super) fn new(mem: GuestMem) -> Self {
        Self { mem }
    }

    fn word(&self, offset: usize) -> Result<u64, Wild> {
        self.mem.load_u64(SHARED + (offset_of!(SharedHeader, steps) + offset) as u64)
    }

    /// Steps of all CPUs so far.
    pub(super) fn steps(&self) -> Result<u64, Wild> {
        self.word(offset_of!(Steps, done))
    }

    /// The guest's clock.
    pub(super) fn now(&self) -> Result<u64, Wild> {
        Ok(self.steps()?.wrapping_add(self.word(offset_of!(Steps, skipped))?))
    }

    /// Steps of all CPUs so far that come before an operation on shared or per-CPU data.
    pub(super) fn points(&self) -> Result<u64, Wild> {
        self.word(offset_of!(Steps, points))
    }
}
