//! Scenarios on the parallel machine: a thread a vCPU, all at once, interrupted by real timers.
//!
//! What a seed stands for is the same (workloads, CPUs, plugs, failing steps), but for how the CPUs
//! take turns: that is the hardware's. So it finds what the deterministic machine cannot show, what
//! comes of weak ordering above all, and what it finds cannot be replayed step by step.
//!
//! An operation takes microseconds where one step after the other takes a millisecond, so that there
//! are many more of them: a run lasts long enough for plugs to fall among them.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use percpu_guest::abi::{BootMode, Fault};

use crate::coverage::Features;
use crate::error::Error;
use crate::guest::program;
use crate::host::HostInfo;
use crate::image::Image;
use crate::machine::{Ending, Outcome, Scenario, Schedule, Span, Trace};
use crate::plug::GivenPlug;
use crate::report::{RunReport, Verdict};
use crate::run::{self, GivenWork, Length, RunConfig};

/// Operations for each of the scenario's.
const MORE: u64 = 100;
/// How long a run may take; a plug alone may take some seconds to fail.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs scenarios, each on a VM of its own.
pub struct Parallel<'a> {
    image: &'a Image,
    host: HostInfo,
    ring: u8,
    interrupted: &'a AtomicBool,
}

impl<'a> Parallel<'a> {
    /// The machine for `image`, which must be the ordinary one: steps are counted for nobody here.
    pub fn new(
        image: &'a Image,
        host: HostInfo,
        ring: u8,
        interrupted: &'a AtomicBool,
    ) -> Result<Self, Error> {
        if image.header().restore != 0 {
            return Err(Error::instrumented(image.path()));
        }
        Ok(Self { image, host, ring, interrupted })
    }

    /// Boots a guest and lets it go through a scenario.
    pub fn run(&self, scenario: &Scenario) -> Result<Outcome, Error> {
        let config = RunConfig {
            cpus: scenario.topology.boot_cpus,
            max_cpus: scenario.topology.possible,
            length: Length::Time(LIMIT),
            work: Some(work(scenario)),
            workloads: scenario.workloads.clone(),
            boot: BootMode::Direct,
            ring: self.ring,
            seed: scenario.seed,
            fault: Fault::None,
            live: false,
            replay: String::new(),
            process_start: Instant::now(),
        };
        run::run(self.image, &config, &self.host, self.interrupted).map(outcome)
    }
}

/// The scenario as it is here.
pub(super) fn describe(scenario: &Scenario) -> String {
    let operations = work(scenario).operations;
    format!("{scenario}; here {operations} operations, and turns as the hardware has them")
}

/// What can be done about a failure of `seed`, whose scenario is in `file`; it is `given` if it is not
/// the seed's own.
pub(super) fn replay(seed: u64, file: Option<&str>, given: bool) -> String {
    let fuzz = format!("{} fuzz", program());
    let seeds = format!("--seeds {seed}..{}", seed.saturating_add(1));
    let mut text =
        "it cannot be replayed exactly: the CPUs took turns as the hardware had it".to_owned();
    let scenario = file.map(|file| format!("--scenario {file}"));
    match &scenario {
        Some(scenario) if given => {
            text += &format!("\n  once more:\n    {fuzz} --machine parallel {scenario} {seeds}");
        }
        _ if given => {}
        _ => text += &format!("\n  once more:\n    {fuzz} --machine parallel {seeds}"),
    }
    if let Some(scenario) = scenario {
        text += &format!(
            "\n  the same work again and again, with other random choices:\n    \
             {fuzz} --machine parallel {scenario} --time 60\n  \
             the same one CPU at a time, where what is found can be replayed:\n    \
             {fuzz} {scenario} --time 60"
        );
    }
    text
}

/// What the scenario asks for. Its plugs are so many steps apart, which here are a part of all
/// operations.
fn work(scenario: &Scenario) -> GivenWork {
    let operations = scenario.operations.saturating_mul(MORE);
    let part = |steps: u64| {
        let part = u128::from(steps) * u128::from(operations);
        u64::try_from(part / u128::from(scenario.expected_steps().max(1))).unwrap_or(u64::MAX)
    };
    let plugs = scenario
        .plugs
        .iter()
        .map(|plug| GivenPlug { after: part(plug.after), cpu: plug.cpu, fail: plug.fail })
        .collect();
    GivenWork { operations, threads: scenario.threads, tick_us: scenario.tick_us, plugs }
}

/// The report of a run in the terms of both machines; there are no steps, and no trace.
fn outcome(report: RunReport) -> Outcome {
    let crash = report.crash.unwrap_or_default();
    Outcome {
        ending: match report.verdict {
            Verdict::Held => Ending::Held,
            Verdict::Broken => Ending::Broken(report.violations),
            Verdict::Crashed => Ending::Crashed(crash),
            Verdict::Hung => Ending::Hung(crash),
        },
        trace: Trace::default(),
        schedule: Schedule::default(),
        steps: 0,
        points: 0,
        last: (0, Vec::new()),
        length: Span::default(),
        bells: 0,
        plugs: report.plugs.up + report.plugs.down,
        failed_plugs: report.plugs.failed,
        checks: crate::counts::total(report.checks.values().copied()),
        features: Features::new(),
        reset: Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Violation;
    use crate::machine::Plug;
    use crate::report::Plugs;

    #[test]
    fn plugs_stay_where_they_are_in_the_work() {
        let mut scenario = Scenario::from_seed(1, &crate::machine::scenario::WORKLOADS);
        let after = scenario.expected_steps() / 4;
        scenario.plugs = vec![Plug { after, cpu: 1, fail: Some(2) }];
        let work = work(&scenario);
        assert_eq!(work.operations, scenario.operations * MORE);
        assert!(work.plugs[0].after.abs_diff(work.operations / 4) <= 1, "{work:?}");
        assert_eq!((work.plugs[0].cpu, work.plugs[0].fail), (1, Some(2)));
    }

    #[test]
    fn what_a_run_has_shown_is_what_both_machines_say() {
        let violation = Violation::new("K1", "counter 0x10", "it lost one");
        let plugs = Plugs { up: 2, down: 1, failed: 1, per_second: 0.0 };
        let checks = [("K1".to_owned(), 3), ("I1".to_owned(), 4)].into();
        let violations = vec![violation];
        let report = RunReport { plugs, checks, violations, ..RunReport::default() };
        let held = outcome(report.clone());
        assert_eq!(held.ending.name(), "held");
        assert_eq!((held.plugs, held.failed_plugs, held.checks), (3, 1, 7));
        let verdict = |verdict| outcome(RunReport { verdict, ..report.clone() });
        assert_eq!(verdict(Verdict::Broken).ending.name(), "K1");
        assert_eq!(verdict(Verdict::Hung).ending.name(), "hang");
        assert_eq!(verdict(Verdict::Crashed).ending.name(), "crash");
    }

    #[test]
    fn a_failure_says_that_it_cannot_be_replayed_and_what_can_be_done() {
        let text = replay(354, Some("a.toml"), false);
        assert!(text.contains("cannot be replayed"), "{text}");
        for command in [
            "fuzz --machine parallel --seeds 354..355\n",
            "fuzz --machine parallel --scenario a.toml --time",
            "fuzz --scenario a.toml --time",
        ] {
            assert!(text.contains(command), "{text}");
        }
        // The seed's own scenario is another one.
        let text = replay(354, Some("a.toml"), true);
        assert!(text.contains("parallel --scenario a.toml --seeds 354..355"), "{text}");
        assert!(!replay(354, None, true).contains("cargo"));
    }
}
