//! Axes: where a value lies between the ends, and which values are written.

/// How values are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Scale {
    /// Equal distances for equal differences.
    #[default]
    Linear,
    /// Equal distances for equal ratios; what is not above zero lies at the lower end.
    Log,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows, with the unit.
    pub label: String,
    /// How.
    pub scale: Scale,
    /// Values that are written; empty: round ones are chosen.
    pub ticks: Vec<f64>,
    /// How values are written.
    pub format: fn(f64) -> String,
}

impl Axis {
    /// A linear axis of plain numbers.
    pub fn new(label: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            scale: Scale::Linear,
            ticks: Vec::new(),
            format: crate::report::short_number,
        }
    }

    /// Equal distances for equal ratios.
    pub fn log(mut self) -> Self {
        self.scale = Scale::Log;
        self
    }

    /// These values are written and no others.
    pub fn ticks(mut self, ticks: impl Into<Vec<f64>>) -> Self {
        self.ticks = ticks.into();
        self
    }

    /// Values are written like this.
    pub fn format(mut self, format: fn(f64) -> String) -> Self {
        self.format = format;
        self
    }

    /// The axis for these values; one of values that start at zero, unless `tight`.
    pub(super) fn fit(&self, values: impl Iterator<Item = f64>, tight: bool) -> Fitted<'_> {
        let usable =
            |value: &f64| value.is_finite() && (self.scale == Scale::Linear || *value > 0.0);
        let (mut low, mut high) = values
            .chain(self.ticks.iter().copied())
            .filter(usable)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            (low, high) = (if self.scale == Scale::Log { 1.0 } else { 0.0 }, 1.0);
        }
        if self.scale == Scale::Linear && !tight {
            low = low.min(0.0);
        }
        if low == high {
            high = low + if low == 0.0 { 1.0 } else { low.abs() };
        }
        let ticks = match (&self.ticks, self.scale) {
            (given, _) if !given.is_empty() => given.clone(),
            (_, Scale::Linear) => round_steps(low, high),
            (_, Scale::Log) => round_ratios(low, high),
        };
        if !tight {
            // So that the topmost value is below a number.
            low = ticks.first().map_or(low, |first| first.min(low));
            high = ticks.last().map_or(high, |last| last.max(high));
        }
        Fitted { axis: self, low, high, ticks }
    }
}

/// An axis with its ends.
#[derive(Debug)]
pub(super) struct Fitted<'a> {
    axis: &'a Axis,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Fitted<'_> {
    /// Where a value lies, from 0 to 1.
    pub(super) fn place(&self, value: f64) -> f64 {
        let (low, high, value) = match self.axis.scale {
            Scale::Linear => (self.low, self.high, value),
            Scale::Log => (self.low.ln(), self.high.ln(), value.max(self.low).ln()),
        };
        let place = (value - low) / (high - low);
        if place.is_finite() { place.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// The values that are written: where, and as what.
    pub(super) fn ticks(&self) -> impl Iterator<Item = (f64, String)> + '_ {
        let inside = |tick: &&f64| (self.low..=self.high).contains(*tick);
        self.ticks.iter().filter(inside).map(|&tick| (self.place(tick), (self.axis.format)(tick)))
    }
}

/// Ticks at a round distance, three to seven of them, around the values.
fn round_steps(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let unit = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * unit)
        .find(|step| *step >= rough)
        .unwrap_or(10.0 * unit);
    let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
    (first..=last).map(|n| n as f64 * step).collect()
}

/// Powers of ten around the values, and halves between them if there are few.
fn round_ratios(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let factors: &[f64] = match last - first {
        ..=1 => &[1.0, 2.0, 5.0],
        2..=3 => &[1.0, 3.0],
        _ => &[1.0],
    };
    let every = ((last - first) / 8 + 1) as usize;
    let all = (first..=last)
        .step_by(every)
        .flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
    // One below and one above the values is enough.
    let all: Vec<_> = all.collect();
    let from = all.iter().rposition(|tick| *tick <= low).unwrap_or(0);
    let to = all.iter().position(|tick| *tick >= high).unwrap_or(all.len() - 1);
    all[from..=to.max(from)].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_axis_starts_at_zero_and_ends_at_a_round_number() {
        let axis = Axis::new("n");
        let fitted = axis.fit([3.0, 87.0].into_iter(), false);
        let ticks: Vec<_> = fitted.ticks().map(|(_, text)| text).collect();
        assert_eq!(ticks, ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(fitted.place(50.0), 0.5);
        assert_eq!(
            (fitted.place(-9.0), fitted.place(1e9), fitted.place(f64::NAN)),
            (0.0, 1.0, 0.0)
        );
    }

    #[test]
    fn a_logarithmic_axis_gives_ratios_equal_room() {
        let axis = Axis::new("CPUs").log().ticks([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]);
        let fitted = axis.fit([1.0, 64.0].into_iter(), true);
        let at: Vec<_> = fitted.ticks().map(|(at, _)| (at * 6.0).round()).collect();
        assert_eq!(at, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(fitted.place(0.0), 0.0);
        let wide = Axis::new("ns").log();
        let wide = wide.fit([0.5, 3e6].into_iter(), false);
        assert!((3..=9).contains(&wide.ticks().count()), "{wide:?}");
    }

    #[test]
    fn values_that_make_no_axis_make_one_all_the_same() {
        for values in
            [vec![], vec![f64::NAN], vec![0.0], vec![7.0, 7.0], vec![-1.0], vec![f64::INFINITY]]
        {
            for axis in [Axis::new("n"), Axis::new("n").log()] {
                let fitted = axis.fit(values.iter().copied(), false);
                assert!(fitted.ticks().count() >= 2, "{values:?} {fitted:?}");
                assert!((0.0..=1.0).contains(&fitted.place(7.0)));
            }
        }
    }
}
