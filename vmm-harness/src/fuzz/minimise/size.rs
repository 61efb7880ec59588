//! What counts as smaller: how much there is to understand about a scenario.

use crate::machine::{Scenario, Strategy, Unit, What};

/// What each thing weighs. A plug or a change of the schedule is a thing to keep in mind; of
/// operations there may be a few; how long something takes hardly matters.
const WORKLOAD: u64 = 128;
const PLUG: u64 = 96;
const CHANGE: u64 = 64;
const CPU: u64 = 48;
const THREAD: u64 = 32;
const FAILURE: u64 = 32;
const BOOT_CPU: u64 = 8;
const OPERATION: u64 = 8;
const DISORDER: u64 = 4;
const OTHER: u64 = 2;

/// The size of a scenario whose schedule is given.
pub(super) fn size(scenario: &Scenario) -> u64 {
    let Scenario { seed: _, workloads, threads, operations, tick_us, topology, plugs, strategy } =
        scenario;
    let n = |n: usize| n as u64;
    let mut size = WORKLOAD * n(workloads.len())
        + THREAD * u64::from(*threads) * n(workloads.len())
        + OPERATION * operations
        + CPU * u64::from(topology.possible)
        + BOOT_CPU * u64::from(topology.boot_cpus)
        // Timer interrupts come the more often, the shorter this is.
        + u64::from((Scenario::LONGEST_TICK_US / tick_us.max(&1)).checked_ilog2().unwrap_or(0));
    for plug in plugs {
        size += PLUG + u64::from(plug.fail.is_some()) * FAILURE + bits(plug.after);
    }
    if let Strategy::Given(schedule) = strategy {
        size += CHANGE * n(schedule.changes.len());
        let to_one = |what: &What| matches!(what, What::Promote(_));
        size += n(schedule.changes.iter().filter(|change| to_one(&change.what)).count()) * OTHER;
        let disorder = (0..).zip(&schedule.order).filter(|(i, cpu)| i != *cpu).count();
        size += DISORDER * n(disorder);
        size += OTHER * u64::from(schedule.waits != 0);
        size += OTHER * u64::from(schedule.unit == Unit::Steps);
    }
    size
}

fn bits(n: u64) -> u64 {
    u64::from(u64::BITS - n.leading_zeros())
}
