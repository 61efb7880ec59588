//! `core` and `counter`: what single operations cost, measured by the guest itself.

use std::time::{Duration, Instant};

use percpu_guest::abi::{BenchGroup, BootParams, MAX_CPUS};

use super::guest::{Guest, Stop};
use super::guest_table::Table;
use super::{Bench, Subject};
use crate::error::Error;
use crate::run::boot_params;

/// CPUs that can be, at least, while operations of one CPU are measured.
const POSSIBLE: u32 = 8;
/// How long the guest may take for one row, boot included.
const ROW_LIMIT: Duration = Duration::from_secs(60);
/// Microseconds between timer interrupts: seldom, since each takes time from what is measured.
const TICK_US: u32 = 100_000;
/// CPUs that do something at the same time, at most: no row has more.
const AT_ONCE: u32 = 8;

/// Measures the rows of a group.
pub(super) fn measure(bench: &mut Bench<'_>, subject: Subject) -> Result<(), Stop> {
    let group = match subject {
        Subject::Counter => BenchGroup::Counter,
        _ => BenchGroup::Core,
    };
    // CPUs that share a core of the host would be measured one after the other.
    let at_once = bench.cpus.min(bench.report.host.cores).min(AT_ONCE);
    let possible = match group {
        BenchGroup::Core => bench.cpus.max(POSSIBLE),
        BenchGroup::Counter => bench.host.max_vcpus.min(MAX_CPUS as u32).max(bench.cpus),
    };
    let boot = BootParams {
        possible,
        boot_cpus: bench.cpus,
        tick_us: TICK_US,
        bench_rounds: bench.effort.rounds,
        bench_us: bench.effort.stretch_us,
        bench_group: group as u32,
        bench_at_once: at_once,
        ..boot_params(bench.ring, bench.host)
    };
    let mut guest = Guest::start(bench.image, boot, bench.interrupted)?;
    let mem = guest.mem.clone();
    let mut table = Table::new(&mem, subject.name(), guest.tsc_mhz()?);
    let limit = ROW_LIMIT * bench.patience;
    let mut deadline = Instant::now() + limit;
    let mut done = 0;
    while !table.is_complete() {
        guest.follow(|_, _| {})?;
        let rows = table.new_rows().map_err(|nonsense| guest.nonsense(&nonsense))?;
        if !rows.is_empty() {
            deadline = Instant::now() + limit;
        } else if Instant::now() > deadline {
            return Err(guest.hung(&format!("no row was measured within {limit:?}")));
        }
        done += rows.len();
        let last = rows.last().map(|row| row.title());
        bench.report.rows.extend(rows);
        if let Some(last) = last {
            bench.live.within(done, table.planned(), &last);
        }
    }
    guest.vm.park_all();
    if table.has_debug_assertions() {
        let note = format!("{}: this image has debug assertions, which cost time", subject.name());
        bench.report.notes.push(note);
    }
    if at_once < AT_ONCE {
        let note = format!(
            "{}: rows of more than {at_once} CPUs at the same time are left out, \
             for want of CPUs (--cpus) or of the host's cores",
            subject.name()
        );
        bench.report.notes.push(note);
    }
    let cpus = format!(
        "{}: {} CPUs online of {possible} where rows do not say otherwise, ring {}",
        subject.name(),
        bench.cpus,
        bench.ring
    );
    bench.report.notes.push(cpus);
    Ok(())
}

/// Refuses numbers of CPUs that cannot be.
pub fn check_cpus(cpus: u32) -> Result<(), Error> {
    crate::run::check_cpus(cpus, cpus.max(POSSIBLE))
}
