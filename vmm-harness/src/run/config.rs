//! What is asked of a run, what of that cannot be, and how much a host can be asked for.

use std::time::{Duration, Instant};

use percpu_guest::abi::{BootMode, BootParams, Fault, MAX_CPUS, TRACE};

use crate::error::Error;
use crate::host::HostInfo;
use crate::image::Image;
use crate::plug::GivenPlug;
use crate::vm::Engine;

/// Microseconds between timer interrupts: often, since each is a chance to be preempted in a bad
/// place.
const TICK_US: u32 = 1000;
/// The same where a tick's own instructions take milliseconds.
const EMULATED_TICK_US: u32 = 20_000;
const EMULATED_THREADS: u32 = 6;
/// With five kinds enough for 64 CPUs. Each thread makes the turns of all others, which may hold a
/// lock that many want, come later.
const MOST_THREADS: u32 = 16;
/// KiB that one allocation may take over all CPUs: no bound in practice.
const REACH_KIB: u32 = 1 << 20;
/// Linux's.
const SMALLEST_BATCH: u32 = 32;
const EMULATED_REACH_KIB: u32 = 8;
/// How many times slower everything may be where ring 0 is emulated.
const EMULATION_FACTOR: u32 = 4;

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// After this time.
    Time(Duration),
    /// After so many plugs and unplugs.
    Plugs(u64),
    /// After so many passes of the trace.
    Passes(u64),
}

/// Work that is given to its last operation, where threads and plugs else go on until it is time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenWork {
    /// Operations of all threads together, after which they end.
    pub operations: u64,
    /// Threads of each workload.
    pub threads: u32,
    /// Microseconds between timer interrupts; more where interrupts are slow.
    pub tick_us: u32,
    /// Plugs, one after the other.
    pub plugs: Vec<GivenPlug>,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// CPUs online at the start.
    pub cpus: u32,
    /// CPUs that can be.
    pub max_cpus: u32,
    /// How long; at most, if the work is given: not to be done by then is to hang.
    pub length: Length,
    /// Work that ends.
    pub work: Option<GivenWork>,
    /// What the guest does meanwhile: workloads of its image, by name.
    pub workloads: Vec<String>,
    /// How CPUs are started.
    pub boot: BootMode,
    /// 0 or 3.
    pub ring: u8,
    /// Seed of every random choice.
    pub seed: u64,
    /// Deliberate misbehaviour of the guest.
    pub fault: Fault,
    /// Whether a line shows how it goes.
    pub live: bool,
    /// The command line that repeats the run, for the report.
    pub replay: String,
    /// When the process started.
    pub process_start: Instant,
}

/// Refuses numbers of CPUs that cannot be.
pub fn check_cpus(cpus: u32, max_cpus: u32) -> Result<(), Error> {
    if cpus == 0 {
        return Err(Error::Usage("--cpus must be at least 1: the boot CPU is always there".into()));
    }
    if cpus > max_cpus {
        return Err(Error::Usage(format!(
            "--cpus {cpus} is more than --max-cpus {max_cpus}: raise --max-cpus or lower --cpus"
        )));
    }
    if max_cpus as usize > MAX_CPUS {
        return Err(Error::Usage(format!(
            "--max-cpus {max_cpus} is more than the guest supports: give at most {MAX_CPUS}"
        )));
    }
    Ok(())
}

/// Refuses to wait for passes of a trace that is not replayed.
pub fn check_length(length: Length, workloads: &[String]) -> Result<(), Error> {
    if matches!(length, Length::Passes(_)) && !workloads.iter().any(|name| name == TRACE) {
        return Err(Error::Usage(
            "--passes counts passes of the workload trace: add --workload trace, or all".into(),
        ));
    }
    Ok(())
}

/// Refuses a ring that the image cannot run in.
pub fn check_ring(image: &Image, ring: u8) -> Result<(), Error> {
    if image.header().ring3_only != 0 && ring != 3 {
        return Err(Error::Usage(
            "this image was built for the host's own target and runs in ring 3 only: \
             add the rustup target x86_64-unknown-none, or run with --ring 3"
                .into(),
        ));
    }
    Ok(())
}

/// Refuses to start CPUs as this engine cannot.
pub fn check_boot(boot: BootMode, engine: Engine) -> Result<(), Error> {
    if boot == BootMode::Sipi && engine == Engine::Threads {
        return Err(Error::Usage(
            "--boot sipi starts CPUs in real mode, which needs a virtual machine: \
             give --boot direct, or --engine kvm"
                .into(),
        ));
    }
    Ok(())
}

/// What the guest is told at boot.
pub(crate) fn boot_params(ring: u8, host: &HostInfo) -> BootParams {
    BootParams {
        tick_us: if is_emulated(ring, host) { EMULATED_TICK_US } else { TICK_US },
        reach_kib: if is_emulated(ring, host) { EMULATED_REACH_KIB } else { REACH_KIB },
        emulated: u32::from(is_emulated(ring, host)),
        ..boot_defaults(ring)
    }
}

/// The same for `config`.
pub(super) fn boot_of_run(image: &Image, config: &RunConfig, host: &HostInfo) -> BootParams {
    let usual = BootParams {
        seed: config.seed,
        possible: config.max_cpus,
        boot_cpus: config.cpus,
        boot_mode: config.boot as u32,
        workloads: image.workloads().bits(&config.workloads),
        fault: config.fault as u32,
        threads: threads(config, host),
        ..boot_params(config.ring, host)
    };
    let Some(work) = &config.work else { return usual };
    BootParams {
        operations: work.operations,
        threads: work.threads,
        tick_us: if usual.emulated != 0 { usual.tick_us } else { work.tick_us },
        ..usual
    }
}

/// The same on a host of which nothing is known.
pub(crate) fn boot_defaults(ring: u8) -> BootParams {
    BootParams {
        seed: 0,
        memory_start: 0,
        memory_end: 0,
        test: 0,
        operations: 0,
        tsc_mhz: 0,
        possible: 1,
        boot_cpus: 1,
        boot_mode: BootMode::Direct as u32,
        ring: u32::from(ring),
        workloads: 0,
        fault: Fault::None as u32,
        tick_us: TICK_US,
        threads: 0,
        reach_kib: REACH_KIB,
        bench_rounds: 0,
        bench_us: 0,
        emulated: 0,
        smallest_batch: SMALLEST_BATCH,
        bench_group: 0,
        bench_at_once: 1,
    }
}

fn is_emulated(ring: u8, host: &HostInfo) -> bool {
    ring == 0 && host.emulates_ring0()
}

/// By how much time limits are longer in this ring on this host.
pub(crate) fn patience(ring: u8, host: &HostInfo) -> u32 {
    if is_emulated(ring, host) { EMULATION_FACTOR } else { 1 }
}

/// Threads of each workload: enough to keep all CPUs at work, but no more than can soon come to
/// rest where everything is slow.
fn threads(config: &RunConfig, host: &HostInfo) -> u32 {
    let most = if is_emulated(config.ring, host) { EMULATED_THREADS } else { MOST_THREADS };
    config.max_cpus.clamp(2, most)
}

/// The name of a boot mode on the command line and in reports.
pub fn boot_mode_name(mode: BootMode) -> &'static str {
    match mode {
        BootMode::Sipi => "sipi",
        BootMode::Direct => "direct",
    }
}
