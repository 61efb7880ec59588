//! One run as text: what was run, what happened, how it ended.

use std::io::{self, Write};

use super::Minimal;
use crate::machine::{Ending, Entry, Outcome, Scenario};

/// Writes what came of one run.
pub fn write_replay(
    out: &mut impl Write,
    scenario: &Scenario,
    outcome: &Outcome,
    trace: bool,
) -> io::Result<()> {
    writeln!(out, "seed {}: {scenario}", scenario.seed)?;
    if trace {
        for entry in outcome.trace.entries() {
            writeln!(out, "{entry}")?;
        }
    }
    writeln!(
        out,
        "{} steps ({} points), {} exits, {} plugs ({} failed), {} checks, trace {:#018x}",
        outcome.steps,
        outcome.points,
        outcome.bells,
        outcome.plugs + outcome.failed_plugs,
        outcome.failed_plugs,
        outcome.checks,
        outcome.trace.hash(),
    )?;
    write_ending(out, &outcome.ending)
}

/// Rows of a trace that are shown, the last ones.
const ROWS: usize = 50;
/// Columns of a CPU in a trace.
const COLUMN: usize = 36;

/// Writes a minimal scenario, and its run CPU by CPU: what each did and where it stood when another
/// took over.
pub fn write_minimal(out: &mut impl Write, minimal: &Minimal) -> io::Result<()> {
    let Minimal { scenario, outcome, places, from, runs } = minimal;
    writeln!(out, "seed {}: {from}", from.seed)?;
    writeln!(out, "minimal after {runs} runs: {scenario}")?;
    for plug in &scenario.plugs {
        let fail = plug.fail.map_or(String::new(), |step| format!(", step {step} fails"));
        writeln!(out, "  CPU {} plugged in or out after {} steps{fail}", plug.cpu, plug.after)?;
    }
    let cpus = scenario.topology.possible;
    let columns: Vec<_> =
        (0..cpus).map(|cpu| format!("{:COLUMN$}", format!("CPU {cpu}"))).collect();
    writeln!(out, "{:>9}  {}", "step", columns.join(""))?;
    let mut places = places.iter();
    let mut rows = Vec::new();
    for entry in outcome.trace.entries() {
        match entry {
            Entry::Stay(stay) => {
                let place = places.next().map_or("", String::as_str);
                rows.push((stay.steps, u32::from(stay.cpu), entry.to_string(), place));
            }
            Entry::Rang { cpu, steps, .. } => rows.push((*steps, *cpu, entry.to_string(), "")),
            Entry::Ordered { steps, .. } => rows.push((*steps, 0, entry.to_string(), "")),
            Entry::Event(_) => {}
        }
    }
    let skip = rows.len().saturating_sub(ROWS);
    if skip > 0 {
        writeln!(out, "{:>9}  ({skip} rows before these)", "...")?;
    }
    for (steps, cpu, what, place) in &rows[skip..] {
        let indent = *cpu as usize * COLUMN;
        writeln!(out, "{steps:>9}  {:indent$}{what}", "")?;
        for part in place.split(" < ").filter(|part| !part.is_empty()) {
            writeln!(out, "{:>9}  {:indent$}  {part}", "", "")?;
        }
    }
    write_ending(out, &outcome.ending)
}

fn write_ending(out: &mut impl Write, ending: &Ending) -> io::Result<()> {
    match ending {
        Ending::Held => writeln!(out, "HELD"),
        Ending::Broken(violations) => violations.iter().try_for_each(|violation| {
            writeln!(out, "BROKEN {}: {}", violation.invariant, violation.detail)
        }),
        Ending::Crashed(crash) => writeln!(out, "CRASHED: {crash}"),
        Ending::Hung(crash) => writeln!(out, "HUNG: {crash}"),
    }
}
