//! A trace as rows: each a stretch in which one CPU ran.

use std::collections::BTreeMap;

use percpu_guest::abi::{CpuState, Event, EventKind, Stay, StayEnd};

use super::place::{Place, Places};
use crate::judge::EventText;
use crate::machine::{Entry, Outcome, Scenario};

/// Rows of a picture, at most, unless all are wanted.
const MOST: usize = 50;
/// The last rows, which are never folded: what led to the end.
const LAST: usize = 6;

/// Why a CPU ran no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It is another one's turn.
    Switched,
    /// It waits for another one.
    Waits,
    /// It has nothing to do.
    Idle,
    /// It is dead.
    Dead,
    /// Its timer interrupts it.
    Interrupted,
    /// It has started another one, and goes on.
    Started(u32),
    /// The run is over.
    Over,
}

/// A stretch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Steps of all CPUs at its end.
    pub steps: u64,
    pub cpu: u32,
    pub why: Why,
    /// Where it ended.
    pub place: Option<Place>,
    /// What happened in it.
    pub notes: Vec<String>,
    /// A change of the schedule that ended it: number, from 1.
    pub change: Option<usize>,
    /// Something in it changed the state of things.
    pub telling: bool,
}

/// A row of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Row {
    Stretch(Stretch),
    /// The host gave an order.
    Order {
        steps: u64,
        text: String,
    },
    /// So many stretches, up to a step, that are left out.
    Folded {
        stretches: usize,
        steps: u64,
        early: bool,
    },
}

impl Row {
    /// Whether a reader would miss it.
    fn matters(&self) -> bool {
        match self {
            Self::Stretch(stretch) => {
                let waits = matches!(stretch.why, Why::Waits | Why::Idle);
                stretch.telling || stretch.change.is_some() || !waits
            }
            Self::Order { .. } => true,
            Self::Folded { .. } => false,
        }
    }
}

/// All rows of a run. `strikes` are the steps and CPUs at which changes of the schedule strike.
pub(super) fn all(
    scenario: &Scenario,
    outcome: &Outcome,
    strikes: &[Option<Stay>],
    places: &mut Places,
) -> Vec<Row> {
    let entries = outcome.trace.entries();
    let mut rows = Vec::new();
    let mut clocks = Vec::new();
    // What a CPU's next stretch begins with.
    let mut first: BTreeMap<u32, String> = BTreeMap::new();
    let mut ended_at = None;
    for entry in entries {
        match entry {
            Entry::Stay(stay) => {
                let Some(why) = why(stay) else { continue };
                let cpu = u32::from(stay.cpu);
                if why == Why::Interrupted && ended_at == Some(stay.steps) {
                    // It did not run before: this is how it begins.
                    first.insert(cpu, "a timer interrupt".into());
                    continue;
                }
                ended_at = Some(stay.steps);
                let change = strikes.iter().position(|strike| strike.as_ref() == Some(stay));
                let stretch = Stretch {
                    steps: stay.steps,
                    cpu,
                    why,
                    place: places.of(&stay.sites),
                    notes: first.remove(&cpu).into_iter().collect(),
                    change: change.map(|change| change + 1),
                    telling: false,
                };
                clocks.push((stay.clock, rows.len()));
                rows.push(Row::Stretch(stretch));
            }
            Entry::Ordered { steps, after, up, cpu, fail } => {
                let fails =
                    fail.map_or(String::new(), |step| format!(", and hotplug step {step} to fail"));
                let what = if *up { "in" } else { "out" };
                let text = format!("the host wants CPU {cpu} {what} {after} steps later{fails}");
                rows.push(Row::Order { steps: *steps, text });
            }
            Entry::Rang { .. } | Entry::Event(_) => {}
        }
    }
    let (cpu, sites) = &outcome.last;
    clocks.push((u64::MAX, rows.len()));
    rows.push(Row::Stretch(Stretch {
        steps: outcome.steps,
        cpu: *cpu,
        why: Why::Over,
        place: places.of(sites),
        notes: first.remove(cpu).into_iter().collect(),
        change: None,
        telling: true,
    }));
    note_events(&mut rows, &clocks, entries);
    note_workloads(scenario, &mut rows);
    rows
}

fn why(stay: &Stay) -> Option<Why> {
    Some(match StayEnd::from_code(stay.end)? {
        StayEnd::Due => Why::Switched,
        StayEnd::Yield => Why::Waits,
        StayEnd::Idle => Why::Idle,
        StayEnd::Dead => Why::Dead,
        StayEnd::Started => Why::Started(stay.argument),
        StayEnd::Interrupted => Why::Interrupted,
    })
}

/// Puts events into the stretches in which they happened. `clocks` are moments at which stretches
/// ended, and their rows.
fn note_events(rows: &mut [Row], clocks: &[(u64, usize)], entries: &[Entry]) {
    let mut events: BTreeMap<usize, Vec<&Event>> = BTreeMap::new();
    let of = |row: usize| match &rows[row] {
        Row::Stretch(stretch) => stretch.cpu,
        Row::Order { .. } | Row::Folded { .. } => u32::MAX,
    };
    let events_of_run = || {
        entries.iter().filter_map(|entry| match entry {
            Entry::Event(event) => Some(event),
            _ => None,
        })
    };
    // What the guest did before the run begins is no news.
    let booted = events_of_run().position(|event| event.kind == EventKind::Booted as u16);
    for event in events_of_run().skip(booted.map_or(0, |booted| booted + 1)) {
        let from = clocks.partition_point(|(clock, _)| *clock < event.tsc);
        // All CPUs may have waited meanwhile, so it may be a later one.
        let its = clocks[from..].iter().find(|(_, row)| of(*row) == u32::from(event.cpu));
        if let Some((_, row)) = its {
            events.entry(*row).or_default().push(event);
        }
    }
    for (row, events) in events {
        let Row::Stretch(stretch) = &mut rows[row] else { continue };
        let mut routine: BTreeMap<&str, u32> = BTreeMap::new();
        for event in &events {
            match kind_of_routine(event) {
                Some(kind) => *routine.entry(kind).or_default() += 1,
                None => {
                    stretch.telling = true;
                    stretch.notes.push(EventText(event).to_string());
                }
            }
        }
        let counted = |(kind, n): (&str, u32)| match n {
            1 => kind.to_owned(),
            n => format!("{kind} ({n} times)"),
        };
        let routine: Vec<_> = routine.into_iter().map(counted).collect();
        if !routine.is_empty() {
            stretch.notes.push(routine.join(", "));
        }
    }
}

/// What goes on all the time is counted.
fn kind_of_routine(event: &Event) -> Option<&'static str> {
    Some(match EventKind::from_code(event.kind)? {
        EventKind::Alloc => "an area is allocated",
        EventKind::Free => "an area is freed",
        EventKind::Filled => "an area is filled",
        EventKind::AllocFailed => "an allocation fails",
        EventKind::CounterInit => "a counter is made",
        EventKind::CounterDestroy => "a counter is destroyed",
        EventKind::SumInit => "a sum is made",
        EventKind::LifeBegun => "an object's life begins",
        EventKind::LifeEnding => "an object's last reference is dropped",
        EventKind::LifeResumed => "an object's life goes on",
        EventKind::LifeEnded => "an object's life ends",
        // A word of the host's, which knows already.
        EventKind::CpuChanged if CpuState::from_code(event.args[1] as u32).is_none() => {
            "a CPU is in no state"
        }
        _ => return None,
    })
}

/// Where several workloads are mixed, says which one a stretch is of.
fn note_workloads(scenario: &Scenario, rows: &mut [Row]) {
    if scenario.workloads.len() < 2 {
        return;
    }
    for row in rows {
        if let Row::Stretch(Stretch { place: Some(place), notes, .. }) = row
            && let Some(workload) = &place.workload
        {
            notes.insert(0, format!("in {workload}"));
        }
    }
}

/// Leaves out what does not matter.
pub(super) fn fold(rows: Vec<Row>) -> Vec<Row> {
    let last = rows.len().saturating_sub(LAST);
    let mut folded: Vec<Row> = Vec::new();
    for (i, row) in rows.into_iter().enumerate() {
        match (row, folded.last_mut()) {
            (row, _) if i >= last || row.matters() => folded.push(row),
            (Row::Stretch(stretch), Some(Row::Folded { stretches, steps, .. })) => {
                *stretches += 1;
                *steps = stretch.steps;
            }
            (Row::Stretch(stretch), _) => {
                folded.push(Row::Folded { stretches: 1, steps: stretch.steps, early: false });
            }
            (row, _) => folded.push(row),
        }
    }
    shorten(folded)
}

/// Leaves out the earliest of what is left where that is too much, except where changes strike.
fn shorten(rows: Vec<Row>) -> Vec<Row> {
    let struck = |row: &Row| matches!(row, Row::Stretch(Stretch { change: Some(_), .. }));
    let mut too_many = rows.len().saturating_sub(MOST - 1);
    let mut shortened = Vec::new();
    for row in rows {
        if too_many == 0 || struck(&row) {
            shortened.push(row);
            continue;
        }
        too_many -= 1;
        let (n, at) = match row {
            Row::Stretch(stretch) => (1, stretch.steps),
            Row::Order { steps, .. } => (0, steps),
            Row::Folded { stretches, steps, .. } => (stretches, steps),
        };
        match shortened.last_mut() {
            Some(Row::Folded { stretches, steps, early: true }) => {
                *stretches += n;
                *steps = at;
            }
            _ => shortened.push(Row::Folded { stretches: n, steps: at, early: true }),
        }
    }
    shortened
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(steps: u64, why: Why) -> Row {
        Row::Stretch(Stretch {
            steps,
            cpu: 0,
            why,
            place: None,
            notes: Vec::new(),
            change: None,
            telling: false,
        })
    }

    fn struck(steps: u64) -> Row {
        match stretch(steps, Why::Waits) {
            Row::Stretch(stretch) => Row::Stretch(Stretch { change: Some(1), ..stretch }),
            row => row,
        }
    }

    #[test]
    fn waiting_is_folded_and_what_matters_is_not() {
        let mut rows: Vec<_> = (0..10).map(|steps| stretch(steps, Why::Waits)).collect();
        rows.push(struck(10));
        rows.extend((11..30).map(|steps| stretch(steps, Why::Idle)));
        rows.push(Row::Order { steps: 30, text: "out".into() });
        rows.extend((31..40).map(|steps| stretch(steps, Why::Waits)));
        let folded = fold(rows.clone());
        let stretches = |rows: &[Row]| -> usize {
            let n = |row: &Row| match row {
                Row::Stretch(_) => 1,
                Row::Folded { stretches, .. } => *stretches,
                Row::Order { .. } => 0,
            };
            rows.iter().map(n).sum()
        };
        assert_eq!(stretches(&folded), stretches(&rows), "each is there or counted");
        assert_eq!(folded[0], Row::Folded { stretches: 10, steps: 9, early: false });
        assert_eq!(folded[1], struck(10));
        assert_eq!(folded[2], Row::Folded { stretches: 19, steps: 29, early: false });
        assert!(matches!(folded[3], Row::Order { steps: 30, .. }));
        assert_eq!(folded[4], Row::Folded { stretches: 3, steps: 33, early: false });
        assert_eq!(folded[5..], rows[rows.len() - LAST..]);
    }

    #[test]
    fn a_long_trace_has_its_end_and_all_strikes() {
        let mut rows: Vec<_> = (0..1000).map(|steps| stretch(steps, Why::Switched)).collect();
        rows[3] = struck(3);
        rows[500] = struck(500);
        let folded = fold(rows.clone());
        assert!((40..=MOST + 3).contains(&folded.len()), "{}", folded.len());
        assert_eq!(folded[0], Row::Folded { stretches: 3, steps: 2, early: true });
        assert_eq!(folded[1], struck(3));
        assert_eq!(folded[3], struck(500));
        assert_eq!(folded[folded.len() - 20..], rows[980..]);
    }
}
