//! What a run has shown, in forms for people and for programs.

pub mod chart;
pub(crate) mod events;
pub(crate) mod failure;
pub(crate) mod file;
mod html;
pub(crate) mod junit;
mod live;
mod overview;
pub mod page;
mod terminal;
pub(crate) mod timeline;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use events::EventReport;
pub use file::check_writable;
pub use live::{LiveLine, Progress};
pub(crate) use terminal::Paint;
pub use terminal::{colours_wanted, write_table};
pub use timeline::{CpuLane, Phase, Sample, Span, Stretch, Timeline};

use crate::diag::CpuReport;
use crate::error::{Error, Status};
use crate::judge::{self, Violation};
use crate::vm::Engine;

/// Version of the JSON form: grows when a field changes its meaning or goes away.
pub const SCHEMA: u32 = 1;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every invariant held.
    Held,
    /// An invariant was broken.
    Broken,
    /// The guest crashed.
    Crashed,
    /// A CPU hung.
    Hung,
}

impl Verdict {
    /// The status with which the process ends.
    pub fn status(self) -> Status {
        match self {
            Self::Held => Status::Held,
            Self::Broken => Status::Broken,
            Self::Crashed => Status::Crashed,
            Self::Hung => Status::Hung,
        }
    }
}

/// CPUs of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cpus {
    /// That could exist.
    pub possible: u32,
    /// That the guest brought up at boot.
    pub boot: u32,
    /// The most that were online at once.
    pub max_online: u32,
}

/// Hotplug events of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Plugs {
    /// CPUs brought up.
    pub up: u64,
    /// CPUs taken down.
    pub down: u64,
    /// Orders that the guest refused or could not fulfil.
    pub failed: u64,
    /// Orders fulfilled a second.
    pub per_second: f64,
}

/// A workload's share of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WorkloadReport {
    /// Its name.
    pub name: String,
    /// Operations on all CPUs.
    pub ops: u64,
    /// Operations on the CPU that did the fewest, of those that were ever online.
    pub least_on_a_cpu: u64,
}

/// What the guest's balance work did, by its own account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BalanceReport {
    /// Times it was done.
    pub done: u64,
    /// Chunks given back.
    pub freed_chunks: u64,
    /// Pages of a unit whose memory was given back.
    pub depopulated_pages: u64,
    /// Pages of a unit that got memory.
    pub populated_pages: u64,
    /// Times that it found no memory.
    pub out_of_memory: u64,
    /// Atomic allocations that found no populated room.
    pub atomic_failures: u64,
}

/// How far the trace's replay came, by the guest's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TraceReport {
    /// Operations that ended.
    pub ops: u64,
    /// Times that the whole trace was replayed and everything freed.
    pub passes: u64,
}

/// How the guest came to an early end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// What happened, in a sentence or as the guest's panic message.
    pub text: String,
    /// Every CPU.
    pub cpus: Vec<CpuReport>,
}

impl std::fmt::Display for Crash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.cpus.iter().try_for_each(|cpu| write!(f, "\n{cpu}"))
    }
}

/// All that a run has shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// How it ended.
    pub verdict: Verdict,
    /// Seed of every random choice.
    pub seed: u64,
    /// What ran the guest.
    pub engine: Engine,
    /// Why that.
    pub engine_reason: String,
    /// Privilege level the guest ran at.
    pub ring: u8,
    /// How CPUs were started: `sipi` or `direct`.
    pub boot: String,
    /// CPUs.
    pub cpus: Cpus,
    /// Hotplug.
    pub plugs: Plugs,
    /// Workloads.
    pub workloads: Vec<WorkloadReport>,
    /// The allocator's balance work.
    pub balance: BalanceReport,
    /// The trace's replay, if there was one.
    pub trace: Option<TraceReport>,
    /// Objects held against each invariant.
    pub checks: BTreeMap<String, u64>,
    /// What was broken.
    pub violations: Vec<Violation>,
    /// Violations beyond those listed.
    pub suppressed: u64,
    /// Length of the run.
    pub seconds: f64,
    /// From the start of the process to the guest's first instruction.
    pub start_ms: f64,
    /// Whether the run was ended from outside.
    pub interrupted: bool,
    /// How the guest came to an early end, if it did.
    pub crash: Option<Crash>,
    /// Every CPU when an invariant was found broken.
    pub broken_at: Vec<CpuReport>,
    /// Of a run that did not hold: the guest's last events, of all CPUs in one order.
    pub events: Vec<EventReport>,
    /// What happened when.
    pub timeline: Timeline,
    /// The command that runs this again.
    pub replay: String,
}

impl Default for RunReport {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            verdict: Verdict::Held,
            seed: 0,
            engine: Engine::default(),
            engine_reason: String::new(),
            ring: 0,
            boot: String::new(),
            cpus: Cpus::default(),
            plugs: Plugs::default(),
            workloads: Vec::new(),
            balance: BalanceReport::default(),
            trace: None,
            checks: BTreeMap::new(),
            violations: Vec::new(),
            suppressed: 0,
            seconds: 0.0,
            start_ms: 0.0,
            interrupted: false,
            crash: None,
            broken_at: Vec::new(),
            events: Vec::new(),
            timeline: Timeline::default(),
            replay: String::new(),
        }
    }
}

impl RunReport {
    /// The report as JSON.
    pub fn to_json(&self) -> String {
        file::to_json(self)
    }

    /// Each invariant that was checked or broken, in order: its name, how often it was checked, how
    /// many violations of it are listed.
    pub fn invariants(&self) -> Vec<(&str, u64, usize)> {
        let mut names: Vec<_> = self.checks.keys().map(String::as_str).collect();
        names.extend(self.violations.iter().map(|violation| violation.invariant));
        names.sort_by_key(|name| (judge::order(name), *name));
        names.dedup();
        let of = |name: &str| {
            let broken = self.violations.iter().filter(|v| v.invariant == name).count();
            (self.checks.get(name).copied().unwrap_or(0), broken)
        };
        names
            .into_iter()
            .map(|name| {
                let (checked, broken) = of(name);
                (name, checked, broken)
            })
            .collect()
    }

    /// The report as JUnit's XML.
    pub fn to_junit(&self) -> String {
        junit::text(&junit::of_run(self))
    }

    /// The report as a page for a browser.
    pub fn page(&self) -> page::Page {
        html::page(self)
    }

    /// Writes the report as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_json(&self, path: &Path) -> Result<(), Error> {
        file::write_json(path, self)
    }
}

/// `n` with a unit, three significant digits: `123`, `45.6 k`, `1.23 M`.
pub(crate) fn short_number(n: f64) -> String {
    let (value, unit) = match n {
        n if n < 1e3 => (n, ""),
        n if n < 1e6 => (n / 1e3, " k"),
        n if n < 1e9 => (n / 1e6, " M"),
        n => (n / 1e9, " G"),
    };
    let whole = unit.is_empty() && value.fract() == 0.0;
    let digits = if whole || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}{unit}")
}

/// `n` with its thousands apart.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_fields_that_programs_rely_on() {
        let report = RunReport {
            seed: u64::MAX,
            violations: vec![
                Violation::new("K1", "counter 0x10", "it lost one").on(2).values(1, 2),
            ],
            checks: BTreeMap::from([("K1".into(), 3)]),
            verdict: Verdict::Broken,
            ..RunReport::default()
        };
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["verdict"], "broken");
        assert_eq!(json["seed"], u64::MAX);
        assert_eq!(json["checks"]["K1"], 3);
        assert_eq!(json["violations"][0]["invariant"], "K1");
        assert_eq!(json["violations"][0]["cpu"], 2);
        assert_eq!(json["violations"][0]["seen"], "1");
        assert_eq!(json["crash"], serde_json::Value::Null);
        for field in
            ["ring", "boot", "cpus", "plugs", "workloads", "seconds", "start_ms", "interrupted"]
        {
            assert!(json.get(field).is_some(), "{field}");
        }
    }

    #[test]
    fn a_report_that_cannot_be_written_is_an_error_that_names_the_file() {
        let error = RunReport::default().write_json(Path::new("/nonexistent/r.json")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/r.json"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn numbers_are_short_and_grouped() {
        assert_eq!(short_number(0.0), "0");
        assert_eq!(short_number(7.25), "7.25");
        assert_eq!(short_number(999.0), "999");
        assert_eq!(short_number(45_600.0), "45.6 k");
        assert_eq!(short_number(1_234_567.0), "1.23 M");
        assert_eq!(grouped(1_234_567), "1 234 567");
        assert_eq!(grouped(12), "12");
    }
}
