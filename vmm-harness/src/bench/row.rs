//! One thing that was measured: the form in which every program of this workspace says so.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Parts of the rounds that are compared, to see how much the values differ by themselves.
const PARTS: usize = 4;

/// A row of a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `core`, `alloc`, `counter`, `plug`, `boot`, or another program's own.
    pub group: String,
    /// Heading within the group.
    pub family: String,
    /// What it is. Rows of one group, family and name are a series: they differ in `x`.
    pub name: String,
    /// Of what `x` is a number: `CPUs online`, say. Empty where there is none.
    #[serde(default)]
    pub axis: String,
    /// How many of them.
    #[serde(default)]
    pub x: Option<u32>,
    /// In what the values are.
    pub unit: Unit,
    /// The values.
    #[serde(flatten)]
    pub values: Values,
    /// What was measured in turns with it.
    #[serde(default)]
    pub beside: Vec<Beside>,
    /// The bound that is to be kept, if there is one.
    #[serde(default)]
    pub target: Option<Target>,
}

/// Units of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Nanoseconds, for one operation: less is better.
    #[serde(rename = "ns")]
    Nanoseconds,
    /// Operations a second: more is better.
    #[serde(rename = "1/s")]
    PerSecond,
    /// Bytes: less is better.
    #[serde(rename = "B")]
    Bytes,
    /// A number of things: less is better.
    #[serde(rename = "1")]
    Number,
}

/// What all rounds have shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Values {
    /// The one that counts, and that is compared: the least or the one in the middle, as the row's
    /// kind has it.
    pub value: f64,
    /// The least.
    pub min: f64,
    /// The one in the middle.
    pub median: f64,
    /// The one that 99 in 100 do not exceed.
    pub p99: f64,
    /// The most, where that is known.
    #[serde(default)]
    pub max: Option<f64>,
    /// By how much the quarters of the rounds differ in the value that counts.
    pub noise: f64,
    /// Rounds that counted; 0 if it could not be measured here.
    pub rounds: u32,
}

/// Which of the rounds' values counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// The least: what disturbs makes it longer and never shorter.
    Min,
    /// The one in the middle: where CPUs wait for each other, chance makes it shorter too.
    Median,
}

/// A yardstick: what was measured in turns with a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beside {
    /// What part it plays: `bare` (the instructions by hand), `atomic`, `lock`, `baseline`.
    pub role: String,
    /// What it is.
    pub name: String,
    /// The value that counts, as in [`Values`].
    pub value: f64,
    /// The one in the middle.
    pub median: f64,
}

/// A bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// At most so many times the bare instructions.
    TimesBare(f64),
    /// At most so many nanoseconds.
    Nanoseconds(f64),
    /// The shared atomic takes at least so many times as long.
    PartOfShared(f64),
}

impl Values {
    /// Of rounds in the order of time.
    pub fn of(rounds: &[f64], counts: Counts) -> Self {
        let sorted = |values: &[f64]| {
            let mut values = values.to_vec();
            values.sort_by(f64::total_cmp);
            values
        };
        let counted = |sorted: &[f64]| match counts {
            Counts::Min => sorted[0],
            Counts::Median => sorted[sorted.len() / 2],
        };
        let all = sorted(rounds);
        let Some(&max) = all.last() else { return Self::default() };
        let parts = rounds.chunks(rounds.len().div_ceil(PARTS)).map(|part| counted(&sorted(part)));
        let (least, most) = parts
            .fold((f64::MAX, f64::MIN), |(least, most), part| (least.min(part), most.max(part)));
        Self {
            value: counted(&all),
            min: all[0],
            median: all[all.len() / 2],
            p99: all[(all.len() * 99).div_ceil(100) - 1],
            max: Some(max),
            noise: most - least,
            rounds: all.len() as u32,
        }
    }

    /// Of something that knows no chance.
    pub fn exactly(value: f64) -> Self {
        Self::of(&[value], Counts::Min)
    }
}

impl Row {
    /// What tells it from the others.
    pub fn key(&self) -> (&str, &str, &str, Option<u32>) {
        (&self.group, &self.family, &self.name, self.x)
    }

    /// The noise as a part of the value. `None` where too few rounds say too little of it.
    pub fn relative_noise(&self) -> Option<f64> {
        let Values { value, noise, rounds, .. } = self.values;
        let is_exact = matches!(self.unit, Unit::Bytes | Unit::Number);
        if !is_exact && (rounds as usize) < PARTS {
            return None;
        }
        Some(if value > 0.0 { noise / value } else { 0.0 })
    }

    /// Whether it is of the same series.
    pub fn is_beside(&self, other: &Self) -> bool {
        (&self.group, &self.family, &self.name) == (&other.group, &other.family, &other.name)
    }

    /// Its name, with how many of what.
    pub fn title(&self) -> String {
        match self.x {
            Some(x) => format!("{}, {x} {}", self.name, self.axis),
            None => self.name.clone(),
        }
    }

    /// The yardstick that plays this part.
    pub fn yardstick(&self, role: &str) -> Option<&Beside> {
        self.beside.iter().find(|beside| beside.role == role)
    }

    /// How many times the yardstick's value it has.
    pub fn times(&self, role: &str) -> Option<f64> {
        let beside = self.yardstick(role)?;
        (self.values.rounds > 0 && beside.value > 0.0).then(|| self.values.value / beside.value)
    }

    /// Whether the target was reached, if there is one and something was measured.
    pub fn met(&self) -> Option<bool> {
        if self.values.rounds == 0 {
            return None;
        }
        match self.target? {
            Target::TimesBare(bound) => self.times("bare").map(|times| times <= bound),
            Target::Nanoseconds(bound) => Some(self.values.value <= bound),
            Target::PartOfShared(bound) => self.times("atomic").map(|times| times * bound <= 1.0),
        }
    }
}

impl Unit {
    /// A value in three digits or so, with its unit in the size that fits.
    pub fn show(self, value: f64) -> String {
        let scaled = |units: &[(f64, &str)]| {
            let (size, name) =
                units.iter().rev().find(|(size, _)| value.abs() >= *size).unwrap_or(&units[0]);
            let value = value / size;
            let digits = match value.abs() {
                100.0.. => 0,
                10.0.. => 1,
                _ => 2,
            };
            format!("{value:.digits$} {name}").trim_end().to_owned()
        };
        match self {
            Self::Nanoseconds => scaled(&[(1.0, "ns"), (1e3, "µs"), (1e6, "ms"), (1e9, "s")]),
            Self::PerSecond => scaled(&[(1.0, "/s"), (1e3, "k/s"), (1e6, "M/s")]),
            Self::Bytes if value < 1024.0 => format!("{value:.0} B"),
            Self::Bytes => scaled(&[(1024.0, "KiB"), (1048576.0, "MiB"), (1073741824.0, "GiB")]),
            Self::Number => format!("{value:.0}"),
        }
    }

    /// Whether more is better.
    pub fn more_is_better(self) -> bool {
        self == Self::PerSecond
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimesBare(bound) => write!(f, "{bound} x bare"),
            Self::Nanoseconds(bound) => write!(f, "{bound} ns"),
            Self::PartOfShared(bound) => write!(f, "atomic / {bound}"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn row(name: &str, x: Option<u32>, value: f64) -> Row {
        let beside = |role: &str, value| Beside {
            role: role.into(),
            name: format!("the {role}"),
            value,
            median: value,
        };
        Row {
            group: "core".into(),
            family: "this_cpu".into(),
            name: name.into(),
            axis: if x.is_some() { "CPUs".into() } else { String::new() },
            x,
            unit: Unit::Nanoseconds,
            values: Values { rounds: 5, ..Values::exactly(value) },
            beside: vec![beside("bare", 1.0), beside("atomic", 10.0)],
            target: None,
        }
    }

    #[test]
    fn percentiles_are_of_all_rounds_and_noise_is_between_their_quarters() {
        let rounds: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let values = Values::of(&rounds, Counts::Min);
        assert_eq!((values.value, values.min, values.median), (1.0, 1.0, 101.0));
        assert_eq!((values.p99, values.max, values.rounds), (198.0, Some(200.0), 200));
        // The quarters begin at 151, 101, 51 and 1.
        assert_eq!(values.noise, 150.0);
        let middle = Values::of(&rounds, Counts::Median);
        assert_eq!((middle.value, middle.noise), (101.0, 150.0));
    }

    #[test]
    fn few_rounds_are_no_matter() {
        assert_eq!(Values::of(&[], Counts::Min).rounds, 0);
        let one = Values::of(&[7.0], Counts::Median);
        assert_eq!((one.value, one.p99, one.noise, one.rounds), (7.0, 7.0, 0.0, 1));
        let two = Values::of(&[7.0, 3.0], Counts::Min);
        assert_eq!((two.value, two.p99, two.noise), (3.0, 7.0, 4.0));
    }

    #[test]
    fn of_few_rounds_the_noise_is_not_known_but_memory_is_exact() {
        let mut few = row("add", None, 2.0);
        few.values.rounds = 3;
        assert_eq!(few.relative_noise(), None);
        assert_eq!(Row { unit: Unit::Bytes, ..few }.relative_noise(), Some(0.0));
        assert_eq!(row("add", None, 2.0).relative_noise(), Some(0.0));
    }

    #[test]
    fn targets_are_bounds() {
        let met = |target| Row { target: Some(target), ..row("add", None, 2.0) }.met();
        assert_eq!(met(Target::TimesBare(2.0)), Some(true));
        assert_eq!(met(Target::TimesBare(1.9)), Some(false));
        assert_eq!(met(Target::Nanoseconds(2.0)), Some(true));
        assert_eq!(met(Target::Nanoseconds(1.9)), Some(false));
        assert_eq!(met(Target::PartOfShared(5.0)), Some(true));
        assert_eq!(met(Target::PartOfShared(5.1)), Some(false));
        let mut unmeasured =
            Row { target: Some(Target::Nanoseconds(2.0)), ..row("add", None, 0.0) };
        unmeasured.values.rounds = 0;
        assert_eq!(unmeasured.met(), None);
    }

    #[test]
    fn values_are_shown_in_the_unit_that_fits() {
        let shown = |value| Unit::Nanoseconds.show(value);
        assert_eq!([0.25, 12.34, 999.4].map(shown), ["0.25 ns", "12.3 ns", "999 ns"]);
        assert_eq!([1500.0, 2.5e7, 3e9].map(shown), ["1.50 µs", "25.0 ms", "3.00 s"]);
        assert_eq!(Unit::PerSecond.show(95.21), "95.2 /s");
        assert_eq!(Unit::Bytes.show(1536.0), "1.50 KiB");
        assert_eq!(Unit::Number.show(17.0), "17");
    }
}
