//! What a benchmark has shown: a table for people, JSON for programs.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::BenchConfig;
use crate::error::{Error, Status};
use crate::report::Crash;

/// Version of the JSON form: grows when a field changes its meaning or goes away.
const SCHEMA: u32 = 1;

/// All that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchReport {
    /// Version of this form.
    pub schema: u32,
    /// `core`.
    pub bench: &'static str,
    /// Privilege level the guest ran at.
    pub ring: u8,
    /// CPUs online, except where a row's name says otherwise.
    pub cpus: u32,
    /// CPUs that could be.
    pub possible: u32,
    /// Millions of ticks of the time stamp counter in a second.
    pub tsc_mhz: u32,
    /// Rounds of each row.
    pub rounds: u32,
    /// Microseconds for which each subject was run at a stretch in a round.
    pub stretch_us: u32,
    /// Whether the image was built with debug assertions: then it is slower than it has to be.
    pub debug_assertions: bool,
    /// What was measured.
    pub rows: Vec<BenchRow>,
    /// Whether it was ended from outside.
    pub interrupted: bool,
    /// How the guest came to an early end, if it did.
    pub crash: Option<Crash>,
    #[serde(skip)]
    status: Status,
}

/// One thing that was measured. Times are ticks of the time stamp counter for one operation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchRow {
    /// Heading.
    pub family: String,
    /// What it is.
    pub name: String,
    /// The bare instructions that it is held against.
    pub bare_name: String,
    /// CPUs that did it at the same time.
    pub cpus: u32,
    /// Rounds that counted.
    pub rounds: u32,
    /// The bound that is to be kept, if there is one.
    pub target: Option<Target>,
    /// What it takes.
    pub subject: Spread,
    /// What the bare instructions take.
    pub bare: Spread,
    /// What a `lock xadd` takes, on a word that all those CPUs share.
    pub shared: Spread,
}

/// Of all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The shortest.
    pub min: f64,
    /// The one in the middle.
    pub median: f64,
}

/// A bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// At most so many times the bare instructions.
    TimesBare(f64),
    /// At most so many nanoseconds.
    Nanoseconds(f64),
    /// The shared `lock xadd` takes at least so many times as long.
    PartOfShared(f64),
}

impl BenchRow {
    /// The time that counts: the shortest, or, where several CPUs are at it, the one in the middle,
    /// since they are faster whenever the host takes one of them off.
    fn time(&self, spread: Spread) -> f64 {
        if self.cpus > 1 { spread.median } else { spread.min }
    }

    /// How many times as long as the bare instructions it takes.
    pub fn times_bare(&self) -> f64 {
        self.time(self.subject) / self.time(self.bare)
    }

    /// How many times as long the shared `lock xadd` takes.
    pub fn shared_times(&self) -> f64 {
        self.time(self.shared) / self.time(self.subject)
    }

    /// Nanoseconds of an operation.
    pub fn ns(&self, tsc_mhz: u32) -> f64 {
        self.time(self.subject) * 1000.0 / f64::from(tsc_mhz)
    }

    /// Whether the target was reached, if there is one and something was measured.
    pub fn met(&self, tsc_mhz: u32) -> Option<bool> {
        if self.rounds == 0 {
            return None;
        }
        self.target.map(|target| match target {
            Target::TimesBare(bound) => self.times_bare() <= bound,
            Target::Nanoseconds(bound) => self.ns(tsc_mhz) <= bound,
            Target::PartOfShared(bound) => self.shared_times() >= bound,
        })
    }
}

impl BenchReport {
    pub(super) fn new(config: &BenchConfig, tsc_mhz: u32) -> Self {
        Self {
            schema: SCHEMA,
            bench: "core",
            ring: config.ring,
            cpus: config.cpus,
            possible: config.possible(),
            tsc_mhz,
            rounds: config.effort.rounds,
            stretch_us: config.effort.stretch_us,
            debug_assertions: false,
            rows: Vec::new(),
            interrupted: false,
            crash: None,
            status: Status::Held,
        }
    }

    pub(super) fn ended_early(&mut self, status: Status, crash: Crash) {
        self.status = status;
        self.crash = Some(crash);
    }

    /// With what the process ends. A target that was missed is no failure: the host may be busy.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Writes the report as JSON.
    pub fn write_json(&self, path: &Path) -> Result<(), Error> {
        crate::report::file::write_json(path, self)
    }
}

/// Writes the report as a table.
pub fn write_table(out: &mut impl Write, report: &BenchReport) -> io::Result<()> {
    if let Some(crash) = &report.crash {
        writeln!(out, "{}", crash.text)?;
        for cpu in &crash.cpus {
            write!(out, "\n{cpu}")?;
        }
        writeln!(out)?;
    }
    writeln!(
        out,
        "{} CPUs online of {}, ring {}; cycles of the TSC ({} MHz) for one operation, minimum of {} \
         rounds (of several CPUs: median)",
        report.cpus, report.possible, report.ring, report.tsc_mhz, report.rounds
    )?;
    if report.debug_assertions {
        writeln!(out, "NOTE: this image has debug assertions, which cost time")?;
    }
    let mut family = "";
    for row in &report.rows {
        if row.family != family {
            family = &row.family;
            writeln!(
                out,
                "\n{family:<36} {:>8} {:>8} {:>8} {:>8} {:>7} {:>10} {:>7}  target",
                "cycles", "median", "ns", "bare", "x bare", "lock xadd", "/ this"
            )?;
        }
        write_row(out, row, report.tsc_mhz)?;
    }
    if report.interrupted {
        writeln!(out, "\n(interrupted)")?;
    }
    Ok(())
}

fn write_row(out: &mut impl Write, row: &BenchRow, tsc_mhz: u32) -> io::Result<()> {
    if row.rounds == 0 {
        return writeln!(
            out,
            "{:<36} not measured: this host cannot do it, or not with CPUs at the same time",
            row.name
        );
    }
    write!(
        out,
        "{:<36} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>7.2} {:>10.2} {:>7.1}",
        row.name,
        row.time(row.subject),
        row.subject.median,
        row.ns(tsc_mhz),
        row.time(row.bare),
        row.times_bare(),
        row.time(row.shared),
        row.shared_times(),
    )?;
    match (row.target, row.met(tsc_mhz)) {
        (Some(target), Some(met)) => {
            let met = if met { "met" } else { "MISSED" };
            match target {
                Target::TimesBare(bound) => writeln!(out, "  {bound} x bare: {met}"),
                Target::Nanoseconds(bound) => writeln!(out, "  {bound} ns: {met}"),
                Target::PartOfShared(bound) => writeln!(out, "  lock xadd / {bound}: {met}"),
            }
        }
        _ => writeln!(out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cpus: u32, target: Option<Target>) -> BenchRow {
        BenchRow {
            family: "counters".into(),
            name: "add".into(),
            bare_name: "add gs:[r], r".into(),
            cpus,
            rounds: 3,
            target,
            subject: Spread { min: 2.0, median: 3.0 },
            bare: Spread { min: 1.0, median: 2.0 },
            shared: Spread { min: 10.0, median: 60.0 },
        }
    }

    #[test]
    fn one_cpu_goes_by_the_minimum_and_several_by_the_median() {
        let one = row(1, None);
        assert_eq!((one.times_bare(), one.shared_times(), one.ns(1000)), (2.0, 5.0, 2.0));
        let two = row(2, None);
        assert_eq!((two.times_bare(), two.shared_times(), two.ns(1000)), (1.5, 20.0, 3.0));
    }

    #[test]
    fn targets_are_bounds() {
        let met = |target| row(1, Some(target)).met(1000);
        assert_eq!(met(Target::TimesBare(2.0)), Some(true));
        assert_eq!(met(Target::TimesBare(1.9)), Some(false));
        assert_eq!(met(Target::Nanoseconds(2.0)), Some(true));
        assert_eq!(met(Target::Nanoseconds(1.9)), Some(false));
        assert_eq!(met(Target::PartOfShared(5.0)), Some(true));
        assert_eq!(met(Target::PartOfShared(5.1)), Some(false));
        let unmeasured = BenchRow { rounds: 0, ..row(1, Some(Target::Nanoseconds(2.0))) };
        assert_eq!(unmeasured.met(1000), None);
    }

    #[test]
    fn the_table_says_which_targets_were_missed() {
        let config = BenchConfig {
            cpus: 2,
            ring: 3,
            effort: super::super::Effort { rounds: 3, stretch_us: 1 },
        };
        let mut report = BenchReport::new(&config, 1000);
        report.rows =
            vec![row(1, Some(Target::TimesBare(1.1))), row(2, Some(Target::PartOfShared(10.0)))];
        report.rows.push(BenchRow { rounds: 0, ..row(2, None) });
        let mut out = Vec::new();
        write_table(&mut out, &report).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("add ")).collect();
        assert!(lines[0].ends_with("1.1 x bare: MISSED"), "{text}");
        assert!(lines[1].ends_with("lock xadd / 10: met"), "{text}");
        assert!(lines[2].contains("not measured"), "{text}");
        assert_eq!(text.matches("counters").count(), 1, "{text}");
    }
}
