//! CPU hotplug: taking CPUs into service and out of it while the system runs. Linux:
//! `kernel/cpu.c`.
//!
//! A CPU goes up, and down, through named [steps](register) in three sections:
//!
//! | section | runs | up | down |
//! |---|---|---|---|
//! | [`Prepare`](Section::Prepare) | on the thread that asked, may sleep | first | last, when the CPU is dead |
//! | [`Starting`](Section::Starting) | on the CPU itself, interrupts masked | second | second |
//! | [`Online`](Section::Online) | on the CPU's own hotplug thread, may sleep | last | first |
//!
//! Going down runs the tear-downs in exactly the reverse order of the start-ups. When a step fails,
//! the steps done so far are undone in reverse, the failing one itself is not, and the CPU is what
//! it was before.
//!
//! A start-up that panics has failed; a tear-down that panics is done. On the CPU's hotplug thread a
//! panic is reported to the thread that asked, as [`StepError::PANICKED`] or in the log, and then
//! unwinds that hotplug thread. On the thread that asked it unwinds through [`cpu_up`] or
//! [`register`], which undo what was done first.
//!
//! # What the kernel does
//!
//! - It sets up the per-CPU areas, with all units or with the boot CPU's, then calls [`init`] with its [`CpuOps`] and [`set_present`] for
//!   each CPU that is plugged in.
//! - A thread that may sleep calls [`cpu_up`] and [`cpu_down`].
//! - A CPU that was started installs its offset and calls [`arrive`] with interrupts masked. If that
//!   succeeds it starts its scheduler; else it executes nothing more.
//! - Each CPU has a thread bound to it that calls [`serve`] in a loop. On [`Serve::Die`] it masks
//!   interrupts, calls [`die`], sees to it that nothing runs here any more, and as its last act
//!   calls [`dead`].
//!
//! # Masks
//!
//! A CPU is online from the end of its last STARTING step until [`die`], and active while no step
//! is pending. It is starting from before it is started until it is online, and dying from before it
//! leaves the online mask until its last PREPARE tear-down. It is [counted](crate::cpu::counted) from
//! before it is started until the counters' tear-down has folded what it counted.

mod callback;
mod control;
mod failure;
mod instances;
mod multi;
mod newcomer;
mod readers;
mod record;
mod registration;
mod standing;
mod steps;

use core::fmt;

pub use control::{cpu_down, cpu_up, init, set_present};
pub use failure::{inject_failure, inject_instance_failure};
pub use instances::{InstanceStartup, InstanceTeardown};
pub use multi::{AddError, Instance, MultiStep, register_multi};
pub use newcomer::{ArriveError, Serve, arrive, dead, die, has_work, serve};
pub use readers::{CpusReadGuard, cpus_read_lock};
pub(crate) use record::is_down;
#[cfg(loom)]
#[doc(hidden)]
pub use record::set_down;
pub(crate) use registration::register_own;
pub use registration::{register, register_nocalls, unregister, unregister_nocalls};
pub use standing::{CpuState, state};
pub use steps::{MAX_STEPS, Section, Startup, StepError, StepId, Teardown, steps};

use crate::cpu::CpuId;

/// What the state machine needs from the kernel: to start a CPU, and to know that it stopped.
pub trait CpuOps: Sync {
    /// Makes `cpu` begin to execute, so that it will call [`arrive`]. Does not wait for that:
    /// `arrive` goes on only after this has returned.
    ///
    /// After a start that timed out it may be called again; a CPU that the earlier call started
    /// after all is then stopped first, or taken for the newly started one.
    fn start(&self, cpu: CpuId) -> Result<(), StartError>;

    /// Returns once `cpu`, which called [`dead`] or to which [`arrive`] returned an error, executes
    /// nothing more.
    fn reap(&self, cpu: CpuId);

    /// How long a started CPU may take until it calls [`arrive`]. Linux: 10 s.
    fn arrival_timeout_ns(&self) -> u64;

    /// Tells the kernel that there is work for `cpu`'s hotplug thread. A kernel whose thread polls
    /// [`serve`] need not do anything.
    fn wake(&self, cpu: CpuId) {
        let _ = cpu;
    }

    /// How long a CPU's hotplug thread may take until it takes up a request ([`serve`]), and readers
    /// until they drop their [`CpusReadGuard`]s; then the request is taken back and the call that made it
    /// fails. A callback that runs is waited for: after each such time a line in the log says so. As long
    /// as a CPU may take to arrive, unless the kernel says otherwise; `u64::MAX` waits for ever.
    fn answer_timeout_ns(&self) -> u64 {
        self.arrival_timeout_ns()
    }

    /// Returns whether the calling thread, which runs on `cpu`, is that CPU's hotplug thread, with
    /// interrupts and preemption on. [`serve`] refuses every other; a kernel that leaves this out answers
    /// for its callers.
    fn is_hotplug_thread(&self, cpu: CpuId) -> bool {
        let _ = cpu;
        true
    }

    /// Returns the CPU whose hotplug thread cannot run as long as the calling thread waits: none where a
    /// thread that waits lets others run on its CPU. What would wait for that CPU panics instead.
    fn occupied(&self) -> Option<CpuId> {
        None
    }
}

/// The kernel could not start a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartError(
    /// Why.
    pub &'static str,
);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the CPU cannot be started: {}", self.0)
    }
}

impl core::error::Error for StartError {}

/// Why a CPU did not go up or down. It is what it was before, unless the variant says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HotplugError {
    /// The CPU is not plugged in.
    NotPresent,
    /// The CPU is up already.
    AlreadyOnline,
    /// The CPU is down already.
    NotOnline,
    /// It is the last one that is up. Linux: `EBUSY`.
    LastCpu,
    /// There is no memory for the CPU's unit.
    NoMemory,
    /// The CPU could not be started.
    Start(StartError),
    /// The CPU was started, but did not arrive in time. Should it arrive later, it is sent away.
    TimedOut,
    /// The CPU's hotplug thread did not take up the request to go down within
    /// [`CpuOps::answer_timeout_ns`]. The CPU is up, perhaps without ONLINE steps: the log names them.
    Unresponsive,
    /// The masks are locked by [`CpusReadGuard`]s that were not dropped within
    /// [`CpuOps::answer_timeout_ns`]: perhaps by the caller's own, or by one that was forgotten.
    Readers,
    /// A step failed, and those before it were undone.
    Step {
        /// The step.
        id: StepId,
        /// Its name.
        name: &'static str,
        /// What it said.
        error: StepError,
    },
}

impl fmt::Display for HotplugError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPresent => f.write_str("the CPU is not plugged in"),
            Self::AlreadyOnline => f.write_str("the CPU is up already"),
            Self::NotOnline => f.write_str("the CPU is not up"),
            Self::LastCpu => f.write_str("the last CPU that is up cannot go down"),
            Self::NoMemory => f.write_str("there is no memory for the CPU's per-CPU data"),
            Self::Start(error) => error.fmt(f),
            Self::TimedOut => f.write_str("the CPU was started but did not arrive in time"),
            Self::Unresponsive => f.write_str(
                "the CPU's hotplug thread did not take up the request to go down in time",
            ),
            Self::Readers => f.write_str("a CpusReadGuard is held for too long"),
            Self::Step { name, error, .. } => write!(f, "step {name} failed: {error}"),
        }
    }
}

impl core::error::Error for HotplugError {}

impl HotplugError {
    fn is_unresponsive(&self) -> bool {
        matches!(self, Self::Step { error: StepError::UNRESPONSIVE, .. })
    }
}

/// Why a step was not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterError {
    /// There are [`MAX_STEPS`] steps already.
    Full,
    /// There is no memory for the instance.
    NoMemory,
    /// The start-up failed on a CPU that is up, and was undone on the CPUs before it.
    Step {
        /// The CPU.
        cpu: CpuId,
        /// What the start-up said.
        error: StepError,
    },
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(f, "there are {MAX_STEPS} hotplug steps already"),
            Self::NoMemory => f.write_str("there is no memory for the instance"),
            Self::Step { cpu, error } => write!(f, "the start-up failed on CPU {cpu}: {error}"),
        }
    }
}

impl core::error::Error for RegisterError {}
