//! `boot`: from the start of the process to the first instruction of the guest, to all CPUs online,
//! and to the end of the process; and how long the deterministic machine takes to be put back.
//!
//! The process is this program, started anew for each: what a user waits for includes that it is
//! loaded and that the host is asked what it can do. `/proc/self/stat` knows when a process started
//! to a hundredth of a second only, so the parent looks at the clock before it starts the child, which
//! tells it by the same clock (`CLOCK_MONOTONIC`) when it got how far.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use percpu_guest::abi::{BootMode, BootParams, EventKind};
use serde::{Deserialize, Serialize};

use super::guest::{Guest, Seen, Stop};
use super::row::{Counts, Row, Unit, Values};
use super::{Bench, Subject, plug};
use crate::error::Error;
use crate::host::HostInfo;
use crate::image::Image;
use crate::machine::{Machine, Scenario, Topology};
use crate::run::{boot_mode_name, boot_params};
use crate::vm::Engine;

/// CPUs of the parallel machine.
const CPUS: [u32; 7] = [1, 2, 4, 8, 16, 32, 64];
/// How long a guest may take to boot.
const LIMIT: Duration = Duration::from_secs(60);
/// Operations of a scenario of which the machine is put back.
const OPERATIONS: u64 = 200;

/// When one process got how far: nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Moments {
    /// The guest has executed its first instructions.
    first_instruction: u64,
    /// All CPUs are online.
    online: u64,
    /// The machine begins to be taken down.
    teardown: u64,
    /// It is gone.
    gone: u64,
}

/// Boots a guest with all of `cpus` online, takes it down, and says when was what.
pub fn once(
    image: &Image,
    cpus: u32,
    mode: BootMode,
    ring: u8,
    host: &HostInfo,
) -> Result<Moments, Stop> {
    let usual = boot_params(ring, host);
    let boot = BootParams {
        possible: cpus,
        boot_cpus: cpus,
        boot_mode: mode as u32,
        tick_us: usual.tick_us.max(plug::TICK_US),
        ..usual
    };
    let never = AtomicBool::new(false);
    let mut guest = Guest::start(image, boot, &never)?;
    let mut first_instruction = 0;
    let online = guest.until(LIMIT, "the guest boots", |seen, at| match seen {
        Seen::Hello => {
            first_instruction = clock_at(at);
            None
        }
        Seen::Event(_, EventKind::Booted) => Some(clock_at(at)),
        Seen::Event(..) => None,
    })?;
    let teardown = clock();
    drop(guest);
    Ok(Moments { first_instruction, online, teardown, gone: clock() })
}

/// Measures boots in both modes, and the deterministic machine.
pub(super) fn measure(bench: &mut Bench<'_>) -> Result<(), Stop> {
    for mode in [BootMode::Direct, BootMode::Sipi] {
        for cpus in CPUS {
            if cpus <= bench.host.max_vcpus && cpus <= bench.most_cpus {
                of_processes(bench, mode, cpus)?;
            }
        }
    }
    let Some(image) = bench.steps_image else {
        let note = "boot: without --steps-image the deterministic machine is not measured";
        bench.report.notes.push(note.into());
        return Ok(());
    };
    for possible in [1, 2, Topology::MOST_CPUS] {
        of_reset(bench, image, possible)?;
    }
    Ok(())
}

fn row(family: &str, name: &str, cpus: u32, samples: &[f64]) -> Row {
    Row {
        group: Subject::Boot.name().into(),
        family: family.into(),
        name: name.into(),
        axis: "CPUs".into(),
        x: Some(cpus),
        unit: Unit::Nanoseconds,
        values: Values::of(samples, Counts::Median),
        beside: Vec::new(),
        target: None,
    }
}

fn of_processes(bench: &mut Bench<'_>, mode: BootMode, cpus: u32) -> Result<(), Stop> {
    let family = boot_mode_name(mode);
    bench.live.step(&format!("{family}, {cpus} CPUs"));
    let mut samples: [Vec<f64>; 4] = Default::default();
    let began = Instant::now();
    for _ in 0..bench.effort.boots {
        let start = clock();
        let moments = process(bench, mode, cpus)?;
        let end = clock();
        let spans = [
            (start, moments.first_instruction),
            (start, moments.online),
            (moments.teardown, moments.gone),
            (start, end),
        ];
        for (samples, (from, to)) in samples.iter_mut().zip(spans) {
            samples.push(to.saturating_sub(from) as f64);
        }
        if began.elapsed() > bench.effort.boot_time {
            break;
        }
    }
    let names = ["first instruction", "all CPUs online", "teardown", "whole process"];
    for (name, samples) in names.iter().zip(&samples) {
        bench.report.rows.push(row(family, name, cpus, samples));
    }
    Ok(())
}

/// Starts this program once more, to boot a guest.
fn process(bench: &Bench<'_>, mode: BootMode, cpus: u32) -> Result<Moments, Stop> {
    let program = std::env::current_exe().map_err(Error::thread)?;
    let output = Command::new(program)
        .args(["boot-once", "--boot", boot_mode_name(mode), "--cpus", &cpus.to_string()])
        .args(["--ring", &bench.ring.to_string(), "--image"])
        .arg(bench.image.path())
        .stdin(Stdio::null())
        .output()
        .map_err(Error::thread)?;
    // It gets the same Ctrl-C.
    if bench.interrupted.load(Ordering::Relaxed) {
        return Err(Stop::Interrupted);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let moments = serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success());
    moments.ok_or_else(|| {
        let why = said.trim().trim_start_matches("error: ");
        Stop::Failed(Error::GuestBoot(format!("{cpus} CPUs, {}: {why}", boot_mode_name(mode))))
    })
}

/// How long it takes to boot the deterministic machine, and to put it back after a run.
fn of_reset(bench: &mut Bench<'_>, image: &Image, possible: u32) -> Result<(), Stop> {
    let family = "deterministic machine";
    bench.live.step(&format!("{family}, {possible} CPUs"));
    let topology = Topology { possible, boot_cpus: possible };
    let began = Instant::now();
    let mut machine = Machine::boot(image, topology, Engine::Kvm, bench.ring)?;
    let booted = began.elapsed().as_nanos() as f64;
    let workloads = image.workloads().for_seeds();
    let mut resets = Vec::new();
    for seed in 0..bench.effort.resets {
        let scenario = Scenario {
            topology,
            operations: OPERATIONS,
            plugs: Vec::new(),
            ..Scenario::from_seed(seed, &workloads)
        };
        let outcome = machine.run(&scenario)?;
        // The first is put back to where it is.
        if seed > 0 {
            resets.push(outcome.reset.as_nanos() as f64);
        }
    }
    let began = Instant::now();
    drop(machine);
    let gone = began.elapsed().as_nanos() as f64;
    bench.report.rows.extend([
        row(family, "boot", possible, &[booted]),
        row(family, "reset", possible, &resets),
        row(family, "teardown", possible, &[gone]),
    ]);
    Ok(())
}

/// Nanoseconds of `CLOCK_MONOTONIC`, which all processes of a host share.
fn clock() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes a timespec, which `now` is.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The same at an earlier moment.
fn clock_at(at: Instant) -> u64 {
    clock().saturating_sub(at.elapsed().as_nanos() as u64)
}
