//! Where CPUs run one at a time: the guest's CPUs as contexts of one vCPU, and the schedule that the
//! host writes and the guest follows.
//!
//! Everything here is written by one side while the other stands still.

use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

use percpu_core::view::View;

use super::{MAX_CPUS, Standing};

/// Changes that a schedule can have.
pub const MOST_CHANGES: usize = 4096;
/// Stays that the guest notes before the host has to read them.
pub const MOST_STAYS: usize = 2048;
/// Return addresses that are noted of where a CPU stands.
pub const SITES: usize = 5;

/// Steps of a machine that runs its CPUs one at a time: every load, store and branch of an
/// instrumented guest is one.
///
/// The clock, in which moments are given, is `done + skipped`.
#[repr(C)]
pub struct Steps {
    /// Steps of all CPUs so far, counted by the guest.
    pub done: AtomicU64,
    /// When `done` reaches this the guest looks who runs next.
    pub next: AtomicU64,
    /// Those of the steps that come before an operation on a per-CPU copy or an atomic
    /// read-modify-write: where a switch is likelier to matter.
    pub points: AtomicU64,
    /// As `next`, for `points`.
    pub next_point: AtomicU64,
    /// Steps by which the clock is ahead of `done`, because all CPUs waited.
    pub skipped: AtomicU64,
}

/// CPUs and the schedule.
#[repr(C)]
pub struct Turns {
    /// What is put back between two runs.
    pub state: TurnsState,
    /// The schedule, by `at` ascending.
    pub changes: [ChangeSlot; MOST_CHANGES],
    /// What CPUs did; stay n lies in slot n mod length.
    pub stays: [[AtomicU64; 8]; MOST_STAYS],
}

/// The small part of [`Turns`].
#[repr(C)]
pub struct TurnsState {
    /// Changes in [`Turns::changes`]. Written by the host.
    pub changes: AtomicU64,
    /// Not 0: a change's `at` is a number of points, else a moment. Written by the host.
    pub at_points: AtomicU64,
    /// The next change.
    pub next_change: AtomicU64,
    /// The moment at which the guest rings [`Doorbell::Switch`](super::Doorbell::Switch). Written by
    /// the host.
    pub host_due: AtomicU64,
    /// The moment at which the guest interrupts the CPU that takes commands, for the command that lies
    /// there already; 0 = no such moment. Written by the host, 0 by the guest.
    pub command_due: AtomicU64,
    /// Out of which the guest chooses how long a CPU that waits is let be.
    pub waits: AtomicU64,
    /// Stays ever noted.
    pub noted: AtomicU64,
    /// Stays ever read. Written by the host.
    pub read: AtomicU64,
    /// The CPU that runs.
    pub running: AtomicU64,
    /// The highest priority that any CPU has been given.
    pub highest: AtomicI64,
    /// The lowest likewise.
    pub lowest: AtomicI64,
    /// With what the vCPU goes on: by the scheduler to the code that switches.
    pub decision: Decision,
    /// By CPU.
    pub contexts: [Context; MAX_CPUS],
}

/// The outcome of a look at who runs next.
#[repr(C)]
pub struct Decision {
    /// The CPU's stack.
    pub rsp: AtomicU64,
    /// Its GS base.
    pub gs_base: AtomicU64,
    /// The next [`Steps::next`].
    pub next: AtomicU64,
    /// The next [`Steps::next_point`].
    pub next_point: AtomicU64,
}

/// A CPU.
#[repr(C)]
pub struct Context {
    /// While it does not run: its stack, on which [`SavedRegisters`] lie.
    pub rsp: AtomicU64,
    /// While it does not run: its GS base.
    pub gs_base: AtomicU64,
    /// Of CPUs that can run the one with the highest does.
    pub priority: AtomicI64,
    /// If it waits: the moment until which it is let be.
    pub until: AtomicU64,
    /// [`Standing`].
    pub standing: AtomicU32,
    /// 0.
    pub reserved: AtomicU32,
}

impl Context {
    /// Whether the CPU can run.
    pub fn standing(&self) -> Standing {
        Standing::from_code(self.standing.load(Ordering::Relaxed)).unwrap_or(Standing::Off)
    }

    /// Says so, and from when on.
    pub fn stand(&self, standing: Standing, until: u64) {
        self.standing.store(standing as u32, Ordering::Relaxed);
        self.until.store(until, Ordering::Relaxed);
    }
}

/// What lies on the stack of a CPU that does not run.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SavedRegisters {
    /// Keeps the stack aligned.
    pub pad: u64,
    /// Registers that a function keeps.
    pub r15: u64,
    /// Likewise.
    pub r14: u64,
    /// Likewise.
    pub r13: u64,
    /// Likewise.
    pub r12: u64,
    /// Likewise.
    pub rbx: u64,
    /// Frame pointer.
    pub rbp: u64,
    /// Where it goes on.
    pub rip: u64,
}
// SAFETY: `repr(C)` of integers without padding.
unsafe impl View for SavedRegisters {}

/// A change of the schedule.
#[repr(C)]
pub struct ChangeSlot {
    /// The moment, or the point.
    pub at: AtomicU64,
    /// [`ChangeKind`](super::ChangeKind).
    pub kind: AtomicU32,
    /// CPU.
    pub cpu: AtomicU32,
}

/// What a CPU did: it ran until something, or was interrupted.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stay {
    /// Steps of all CPUs by then.
    pub steps: u64,
    /// The CPU.
    pub cpu: u16,
    /// [`StayEnd`](super::StayEnd).
    pub end: u16,
    /// With what: a vector, a CPU.
    pub argument: u32,
    /// Where it stood: return addresses, the innermost first, 0 where there are no more.
    pub sites: [u64; SITES],
    /// The clock then; after a stay that all CPUs waited for, by when one went on.
    pub clock: u64,
}
// SAFETY: `repr(C)` of integers without padding.
unsafe impl View for Stay {}

const _: () = assert!(size_of::<Stay>() == 64);
