//! One run as text: what was run, what happened, how it ended.

use std::io::{self, Write};

use percpu_guest::abi::Stay;

use super::picture::{Picture, wrap};
use super::{Machines, Minimal};
use crate::error::Error;
use crate::machine::{Change, Ending, Outcome, Plug, Scenario, Strategy, What};

/// Changes of a schedule that are listed, at most.
const CHANGES: usize = 12;

/// Writes what came of one run; with `trace`, all that happened.
pub fn write_replay(
    out: &mut impl Write,
    machines: &mut Machines<'_>,
    picture: &mut Picture,
    (scenario, outcome): (&Scenario, &Outcome),
    trace: bool,
) -> Result<(), Error> {
    let strikes = machines.strikes(scenario)?;
    // As in `run`: a closed pipe is the reader's choice.
    let _ = write_run(out, picture, (scenario, outcome), &strikes, trace.then_some(true));
    Ok(())
}

/// Writes a minimal scenario, and what matters of its run CPU by CPU.
pub fn write_minimal(
    out: &mut impl Write,
    machines: &mut Machines<'_>,
    picture: &mut Picture,
    minimal: &Minimal,
) -> Result<(), Error> {
    let Minimal { scenario, outcome, from, runs, .. } = minimal;
    let strikes = machines.strikes(scenario)?;
    let _ = writeln!(out, "seed {}: {from}", from.seed)
        .and_then(|()| writeln!(out, "minimal after {runs} runs: {scenario}"))
        .and_then(|()| write_run(out, picture, (scenario, outcome), &strikes, Some(false)));
    Ok(())
}

/// `drawn`: whether the run is, and whether all of it.
fn write_run(
    out: &mut impl Write,
    picture: &mut Picture,
    (scenario, outcome): (&Scenario, &Outcome),
    strikes: &[Option<Stay>],
    drawn: Option<bool>,
) -> io::Result<()> {
    write_ending(out, picture, &outcome.ending)?;
    writeln!(out, "seed {}: {scenario}", scenario.seed)?;
    for line in listed(picture, scenario, strikes) {
        writeln!(out, "  {line}")?;
    }
    if let Some(all) = drawn {
        writeln!(out)?;
        let drawing = picture.drawing((scenario, outcome), strikes, all);
        picture.draw(out, &drawing)?;
        if matches!(outcome.ending, Ending::Broken(_)) {
            write_ending(out, picture, &outcome.ending)?;
        }
        writeln!(out)?;
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
    )
}

/// A scenario's plugs, and the changes of a schedule that is given, each with where it strikes.
pub(super) fn listed(
    picture: &mut Picture,
    scenario: &Scenario,
    strikes: &[Option<Stay>],
) -> Vec<String> {
    let plug = |plug: &Plug| {
        let Plug { after, cpu, fail } = plug;
        let fail = fail.map_or(String::new(), |step| format!(", hotplug step {step} fails"));
        format!("CPU {cpu} in or out, {after} steps after what was before{fail}")
    };
    let mut lines: Vec<_> = scenario.plugs.iter().map(plug).collect();
    let Strategy::Given(schedule) = &scenario.strategy else { return lines };
    let order: Vec<_> = schedule.order.iter().map(ToString::to_string).collect();
    lines.push(format!("CPU {} before the others, in this order: {}", order[0], order.join(", ")));
    for (i, Change { at, what }) in schedule.changes.iter().enumerate().take(CHANGES) {
        let what = match what {
            What::Demote => "the CPU that runs goes last from now on".into(),
            What::Interrupt => "the CPU that runs is interrupted by its timer".into(),
            What::Promote(cpu) => format!("CPU {cpu} goes first from now on"),
        };
        let place = match strikes.get(i) {
            None => String::new(),
            Some(None) => ", which does nothing".into(),
            Some(Some(stay)) => {
                let place = picture.place(stay).map_or("somewhere".into(), |place| place);
                format!(": CPU {} stops at step {} in {place}", stay.cpu, stay.steps)
            }
        };
        lines.push(format!("change {} at {at} {}: {what}{place}", i + 1, schedule.unit));
    }
    let more = schedule.changes.len().saturating_sub(CHANGES);
    if more > 0 {
        lines.push(format!("and {more} more changes"));
    }
    lines
}

fn write_ending(out: &mut impl Write, picture: &Picture, ending: &Ending) -> io::Result<()> {
    let style = picture.style();
    let paint = style.paint();
    let mut say = |text: &str| -> io::Result<()> {
        let lines =
            if style.width.is_some() { wrap(text, style.columns()) } else { vec![text.into()] };
        lines.iter().try_for_each(|line| writeln!(out, "{}", paint.bad(line)))
    };
    match ending {
        Ending::Held => writeln!(out, "{}", paint.good("HELD")),
        Ending::Broken(violations) => violations.iter().try_for_each(|violation| {
            say(&format!("BROKEN {}: {}", violation.invariant, violation.detail))
        }),
        Ending::Crashed(crash) => {
            say(&format!("CRASHED: {}", crash.text))?;
            crash.cpus.iter().try_for_each(|cpu| write!(out, "\n{cpu}"))
        }
        Ending::Hung(crash) => {
            say(&format!("HUNG: {}", crash.text))?;
            crash.cpus.iter().try_for_each(|cpu| write!(out, "\n{cpu}"))
        }
    }
}
