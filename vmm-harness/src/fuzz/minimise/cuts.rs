//! Scenarios with one thing less. Each is valid if the scenario was; whether it still fails has to be
//! seen.

use crate::machine::{Change, Plug, Scenario, Schedule, Strategy, What};

/// The schedule, which is given.
pub(super) fn schedule(scenario: &Scenario) -> &Schedule {
    match &scenario.strategy {
        Strategy::Given(schedule) => schedule,
        Strategy::Pct { .. } | Strategy::Walk { .. } => unreachable!("the first run has fixed it"),
    }
}

/// The same with another schedule.
pub(super) fn with_schedule(scenario: &Scenario, change: impl FnOnce(&mut Schedule)) -> Scenario {
    let mut schedule = schedule(scenario).clone();
    change(&mut schedule);
    Scenario { strategy: Strategy::Given(schedule), ..scenario.clone() }
}

/// All changes come earlier by `by`, those before that moment at once.
pub(super) fn earlier(scenario: &Scenario, by: u64) -> Scenario {
    with_schedule(scenario, |schedule| {
        schedule.changes.iter_mut().for_each(|change| change.at = change.at.saturating_sub(by));
    })
}

/// Without plug number `i`; the others keep their place in time.
pub(super) fn without_plug(scenario: &Scenario, i: usize) -> Scenario {
    let mut fewer = scenario.clone();
    let Plug { after, .. } = fewer.plugs.remove(i);
    if let Some(next) = fewer.plugs.get_mut(i) {
        next.after += after;
    }
    fewer
}

/// Without plugs `i` and the next one of the same CPU: what it was before both it is after them.
pub(super) fn without_two_plugs(scenario: &Scenario, i: usize) -> Option<Scenario> {
    let cpu = scenario.plugs[i].cpu;
    let next = (i + 1..scenario.plugs.len()).find(|&next| scenario.plugs[next].cpu == cpu)?;
    Some(without_plug(&without_plug(scenario, next), i))
}

/// Without the `length` changes from number `start` on.
pub(super) fn without_changes(scenario: &Scenario, start: usize, length: usize) -> Scenario {
    with_schedule(scenario, |schedule| {
        let end = (start + length).min(schedule.changes.len());
        schedule.changes.drain(start..end);
    })
}

/// With one CPU less at boot; with `plug`, the plug is left out that would have taken it out first.
pub(super) fn without_boot_cpu(scenario: &Scenario, plug: bool) -> Option<Scenario> {
    let boot_cpus = scenario.topology.boot_cpus.checked_sub(1).filter(|&n| n > 0)?;
    let mut fewer = scenario.clone();
    fewer.topology.boot_cpus = boot_cpus;
    if plug {
        let first = fewer.plugs.iter().position(|plug| plug.cpu == boot_cpus)?;
        return Some(without_plug(&fewer, first));
    }
    Some(fewer)
}

/// With one CPU more at boot, and without the plug that would have put it in first.
pub(super) fn without_first_plug_in(scenario: &Scenario) -> Option<Scenario> {
    let cpu = scenario.topology.boot_cpus;
    let first = scenario.plugs.iter().position(|plug| plug.cpu == cpu)?;
    let mut fewer = without_plug(scenario, first);
    fewer.topology.boot_cpus += 1;
    Some(fewer)
}

/// Without a CPU, which is not the boot CPU: those above it have numbers lower by one.
pub(super) fn without_cpu(scenario: &Scenario, cpu: u32) -> Option<Scenario> {
    if cpu == 0 || cpu >= scenario.topology.possible {
        return None;
    }
    let mut fewer = scenario.clone();
    while let Some(i) = fewer.plugs.iter().position(|plug| plug.cpu == cpu) {
        fewer = without_plug(&fewer, i);
    }
    let lower = |n: &mut u32| *n -= u32::from(*n > cpu);
    fewer.plugs.iter_mut().for_each(|plug| lower(&mut plug.cpu));
    fewer.topology.possible -= 1;
    if cpu < fewer.topology.boot_cpus {
        fewer.topology.boot_cpus -= 1;
    }
    Some(with_schedule(&fewer, |schedule| {
        schedule.order.retain(|&n| n != cpu);
        schedule.order.iter_mut().for_each(lower);
        schedule.changes.retain(|change| change.what != What::Promote(cpu));
        for Change { what, .. } in &mut schedule.changes {
            if let What::Promote(n) = what {
                lower(n);
            }
        }
    }))
}
