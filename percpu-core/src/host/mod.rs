//! Threads of a Linux process as CPUs: for tests, and for per-CPU data outside of a kernel.
//!
//! [`boot`] sets up the areas and brings all CPUs up. A thread that calls [`enter`] *is* that CPU
//! until it drops the [`CpuThread`]: nobody else is, and the thread is no other. On x86-64 it runs
//! the very instructions that a kernel would, with the thread's own GS base.
//!
//! ```
//! use percpu_core::{cpu::CpuId, host, percpu};
//!
//! percpu! { static HITS: PerCpu<u32> = 0; }
//!
//! host::boot(2).unwrap();
//! host::on_each_cpu(|_| HITS.inc());
//! let (zero, one) = (CpuId::new(0).unwrap(), CpuId::new(1).unwrap());
//! assert_eq!((HITS.read_on(zero), HITS.read_on(one)), (1, 1));
//! ```
//!
//! # Interrupts, preemption, hotplug
//!
//! Nothing interrupts such a CPU and nothing preempts it: masking interrupts only counts. A signal
//! handler must not use per-CPU data that the code it interrupts uses under an
//! [`IrqGuard`](crate::irq::IrqGuard).
//!
//! [`hotplug`] works as in a kernel: `start` spawns a thread that arrives as the new
//! CPU, and its hotplug thread becomes the CPU for a moment whenever nobody else is. So
//! [`cpu_down`](hotplug::cpu_down) waits until the thread that is the CPU leaves, and fails if that
//! takes [too long](set_answer_timeout); an offline CPU cannot be entered. A thread that is a CPU panics
//! where hotplug, [`Platform::run_on_cpu`](crate::platform::Platform::run_on_cpu) or [`on_each_cpu`]
//! would wait for it to leave that CPU.
//!
//! A callback of a hotplug step that panics on a CPU's own thread ends that thread, not the process: the
//! panic hook prints the message, and the thread that asked gets
//! [`StepError::PANICKED`](hotplug::StepError::PANICKED).
//!
//! # Threads that are no CPU
//!
//! What reads, changes or lends *this CPU's* copy needs a CPU, and panics on a thread that is none, before
//! it has changed anything: the operations on variables, [`with`](crate::var::PerCpu::with) and its
//! like, [`preempt::disable`](crate::preempt::disable), local locks, and each add to a
//! [counter]. Everything else works on any thread: to make and to drop, to read and to sum,
//! to allocate, CPU hotplug, and to take and give back [references](crate::refcount). A drop never needs a
//! CPU.
//!
//! # The platform
//!
//! With the feature `host` this module is the program's
//! [platform](crate::set_platform): a program that has one of its own is built without the feature.
//!
//! # Several copies in a process
//!
//! A plugin that is loaded with `dlopen` and was linked with this crate (a `cdylib`) has a copy of its
//! own: other areas, other CPUs, other statics than the program's, which do not know of each other.
//! [`boot`] and all that needs no CPU work on any thread. On x86-64 a thread has one GS base, so it is a
//! CPU of one copy at a time: where it is one already, [`enter`] of another copy says
//! [`OtherCopy`](EnterError::OtherCopy). A thread that a CPU has started is none.
//!
//! Two copies in one executable or library, say of two versions, do not link: both define the symbols
//! `PERCPU_CORE_PLATFORM` and `__percpu_anchor`.
//!
//! # Rust dylibs
//!
//! The template is the per-CPU statics of the executable, `cdylib` or `staticlib` of which this crate
//! is a part. In a `dylib`, or with `-C prefer-dynamic` a library that is one, the crate would be
//! apart from the statics of the crates that use the library: an operation on such a static would go
//! to a stray address. Set-up refuses that: [`SetupError::RustDylib`].

mod memory;
mod object;
mod ops;
mod platform;
mod seat;

use core::fmt;
use core::time::Duration;

pub(crate) use object::is_in_rust_dylib;
pub use ops::{StartFault, inject_start_fault, set_answer_timeout, set_arrival_timeout};
pub use platform::Host;
pub use seat::{CpuThread, EnterError, enter, enter_any, enter_when_free};

use crate::area::{self, Config, SetupError};
use crate::cpu::{self, CpuId};
use crate::hotplug::{self, HotplugError, RegisterError};
use crate::sync::Mutex;
use crate::{alloc, arch, counter};
use platform::irq_depth;

crate::set_platform!(Host);

/// Why [`boot`] failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootError {
    /// The program has booted already, with this other number of CPUs.
    Booted(usize),
    /// The program has booted already, and brought this other number of CPUs up.
    BroughtUp(usize),
    /// The areas could not be set up.
    Setup(SetupError),
    /// There is no room for the crate's own hotplug steps. The next call tries again.
    Register(RegisterError),
    /// A CPU did not come up. The next call goes on with it.
    Hotplug(HotplugError),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Booted(cpus) => write!(f, "the program has booted with {cpus} CPUs already"),
            Self::BroughtUp(up) => {
                write!(
                    f,
                    "the program has booted already and brought {up} CPUs up: bring others up with \
                     hotplug::cpu_up"
                )
            }
            Self::Setup(error) => write!(f, "the per-CPU areas cannot be set up: {error}"),
            Self::Register(error) => write!(f, "the crate's hotplug steps have no place: {error}"),
            Self::Hotplug(error) => write!(f, "a CPU does not come up: {error}"),
        }
    }
}

impl core::error::Error for BootError {}

/// Sets up per-CPU areas for `cpus` CPUs and brings all of them up. Further calls with the same
/// number do nothing, so that every test can begin with it.
///
/// # Errors
///
/// The program has booted with other numbers, or there is no memory or no thread.
///
/// # Panics
///
/// If the thread holds an [`IrqGuard`](crate::irq::IrqGuard).
pub fn boot(cpus: usize) -> Result<(), BootError> {
    boot_with(cpus, cpus, &Config::default())
}

/// As [`boot`], with per-CPU areas as `config` says, and brings up only the first `up` of the `cpus`
/// possible CPUs, but at least one.
///
/// Further calls with the same two numbers do nothing, whatever their `config`.
///
/// # Errors
///
/// As [`boot`]; [`Setup`](BootError::Setup) also if `config` breaks a rule, or names a boot CPU
/// other than 0.
///
/// # Panics
///
/// As [`boot`], and if `config.distance` does, or boots itself; nothing has changed then.
pub fn boot_with(cpus: usize, up: usize, config: &Config) -> Result<(), BootError> {
    /// What was booted with.
    struct Booted {
        cpus: usize,
        up: usize,
        /// All CPUs that were to come up are up.
        complete: bool,
    }
    static BOOTED: Mutex<Option<Booted>> = Mutex::new(None);

    // It waits for other threads.
    assert!(irq_depth() == 0, "a thread boots while it holds an irq guard");
    let up = up.clamp(1, cpus.max(1));
    let mut booted = BOOTED.lock();
    let boot = match &*booted {
        Some(before) if before.cpus != cpus => return Err(BootError::Booted(before.cpus)),
        Some(before) if before.up != up => return Err(BootError::BroughtUp(before.up)),
        Some(before) if before.complete => return Ok(()),
        Some(_) => CpuId::new(0).expect("CPU 0 is possible"),
        None => {
            set_up(cpus, config)?;
            let boot = CpuId::new(0).expect("CPU 0 is possible");
            *booted = Some(Booted { cpus, up, complete: false });
            hotplug::init(&ops::THREADS, boot);
            ops::adopt_boot_cpu(boot);
            boot
        }
    };
    counter::register_hotplug_steps().map_err(BootError::Register)?;
    alloc::register_hotplug_steps().map_err(BootError::Register)?;
    for cpu in cpu::possible().iter() {
        hotplug::set_present(cpu);
        if cpu != boot && cpu.index() < up {
            match hotplug::cpu_up(cpu) {
                Ok(()) | Err(HotplugError::AlreadyOnline) => {}
                Err(error) => return Err(BootError::Hotplug(error)),
            }
        }
    }
    if let Some(booted) = &mut *booted {
        booted.complete = true;
    }
    Ok(())
}

fn set_up(cpus: usize, config: &Config) -> Result<(), BootError> {
    if let Some(other) = config.boot_cpu.filter(|&cpu| cpu != 0) {
        return Err(BootError::Setup(SetupError::BootCpu(other)));
    }
    // A number that is too large is refused there.
    let last = u32::try_from(cpus).unwrap_or(u32::MAX);
    // SAFETY: no thread is a CPU yet, so nobody has used or could now use a per-CPU variable: an
    // access panics.
    unsafe { area::setup_per_cpu_areas(0..last, config) }.map_err(BootError::Setup)
}

/// Runs `f` on every online CPU at the same time, each on a thread of its own, and returns the
/// results in the order of CPUs. Waits for CPUs that are taken. Linux: `on_each_cpu`.
///
/// # Panics
///
/// If `f` panics, or a CPU goes down meanwhile. If the calling thread is a CPU: it would wait for itself
/// to leave it.
pub fn on_each_cpu<R: Send>(f: impl Fn(CpuId) -> R + Sync) -> std::vec::Vec<R> {
    assert!(
        arch::host::offset_of_thread().is_none(),
        "on_each_cpu is called by a thread that is a CPU, and would wait until it leaves that CPU"
    );
    std::thread::scope(|scope| {
        let threads: std::vec::Vec<_> = cpu::online()
            .iter()
            .map(|cpu| {
                let f = &f;
                scope.spawn(move || {
                    let _cpu = enter_when_free(cpu).expect("the CPU stays online");
                    f(cpu)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// How long a started CPU may take to arrive, and a CPU to answer, unless [`set_arrival_timeout`] or
/// [`set_answer_timeout`] says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
