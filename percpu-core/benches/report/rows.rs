//! The numbers in the form that all benchmarks of this workspace have (`docs/benchmarks.md`): rows, to
//! be written as JSON and to be shown, compared and drawn by whoever collects them.

use serde::Serialize;

/// Version of the form.
pub const SCHEMA: u32 = 2;
/// Parts of the rounds that are compared, to see how much the values differ by themselves.
const PARTS: usize = 4;

/// All rows of a run.
#[derive(Serialize)]
pub struct Rows {
    pub schema: u32,
    pub quick: bool,
    pub rows: Vec<Row>,
    pub notes: Vec<String>,
}

/// One thing that was measured.
#[derive(Serialize)]
pub struct Row {
    pub group: &'static str,
    pub family: &'static str,
    pub name: String,
    pub axis: &'static str,
    pub x: u32,
    pub unit: &'static str,
    #[serde(flatten)]
    pub values: Values,
    pub beside: Vec<Beside>,
}

/// A yardstick.
#[derive(Serialize)]
pub struct Beside {
    pub role: &'static str,
    pub name: &'static str,
    pub value: f64,
    pub median: f64,
}

/// Of all rounds.
#[derive(Clone, Copy, Serialize)]
pub struct Values {
    /// The one that counts: the least.
    pub value: f64,
    pub min: f64,
    pub median: f64,
    pub p99: f64,
    pub max: f64,
    /// By how much the least of each quarter of the rounds differ.
    pub noise: f64,
    pub rounds: usize,
}

impl Values {
    /// Of rounds in the order of time, of which there is one at least.
    pub fn of(rounds: &[f64]) -> Self {
        let least = |values: &[f64]| values.iter().copied().fold(f64::MAX, f64::min);
        let parts: Vec<f64> = rounds.chunks(rounds.len().div_ceil(PARTS)).map(least).collect();
        let most = parts.iter().copied().fold(0.0, f64::max);
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            value: sorted[0],
            min: sorted[0],
            median: sorted[sorted.len() / 2],
            p99: sorted[(sorted.len() * 99).div_ceil(100) - 1],
            max: sorted[sorted.len() - 1],
            noise: most - least(&parts),
            rounds: rounds.len(),
        }
    }

    /// The yardstick that they are.
    pub fn beside(&self, role: &'static str, name: &'static str) -> Beside {
        Beside { role, name, value: self.value, median: self.median }
    }
}
