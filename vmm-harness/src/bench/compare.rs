//! Two reports side by side: how many times its earlier value each row has, and whether that is more
//! than chance.

use super::report::BenchReport;
use super::row::Row;

/// Differences that are never taken for anything: two builds of one source differ by as much, by
/// where the linker puts a loop.
const LEAST: f64 = 0.03;

/// A row that is in both reports.
#[derive(Clone, Debug)]
pub struct Compared {
    /// As it was.
    pub old: Row,
    /// As it is.
    pub new: Row,
    /// The new value divided by the old one.
    pub ratio: f64,
    /// The same of the row's first yardstick, which the change under test has not touched.
    pub yardstick: Option<f64>,
    /// How far from 1 a ratio may be by the noise of both, if that is known.
    pub noise: Option<f64>,
    /// What it comes to.
    pub verdict: Verdict,
}

/// What a ratio comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Within the noise, or it is not known how large that is.
    Same,
    /// Beyond it, for the better.
    Better,
    /// Beyond it, for the worse.
    Worse,
    /// Beyond it, but no further than the yardstick: it is the host that has changed.
    Host,
}

/// All rows of two reports.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// When the earlier one was made, and of what.
    pub old: String,
    /// Why the two can hardly be compared, if so.
    pub warnings: Vec<String>,
    /// Rows in both, in the order of the new report.
    pub rows: Vec<Compared>,
    /// Rows of the old one that the new one has not.
    pub missing: Vec<Row>,
    /// Rows of the new one that the old one has not.
    pub added: Vec<Row>,
}

impl Comparison {
    /// Compares. Rows that one of the two could not measure are not there.
    pub fn of(old: &BenchReport, new: &BenchReport) -> Self {
        let measured = |report: &BenchReport| -> Vec<Row> {
            report.rows.iter().filter(|row| row.values.rounds > 0).cloned().collect()
        };
        let (old_rows, new_rows) = (measured(old), measured(new));
        let find = |rows: &[Row], row: &Row| rows.iter().find(|r| r.key() == row.key()).cloned();
        // A group that was not asked for is not missing.
        let asked = |row: &Row| new_rows.iter().any(|new| new.group == row.group);
        let unmatched = |rows: &[Row], others: &[Row]| -> Vec<Row> {
            rows.iter().filter(|row| find(others, row).is_none()).cloned().collect()
        };
        let missing = unmatched(&old_rows, &new_rows).into_iter().filter(asked).collect();
        let commit = old.commit.as_ref().map_or(String::new(), |commit| format!(", {commit}"));
        Self {
            old: format!("{}{commit}", old.date),
            warnings: warnings(old, new),
            rows: new_rows
                .iter()
                .filter_map(|new| Some(Compared::of(find(&old_rows, new)?, new.clone())))
                .collect(),
            missing,
            added: unmatched(&new_rows, &old_rows),
        }
    }

    /// Rows of a verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|row| row.verdict == verdict).count()
    }
}

fn warnings(old: &BenchReport, new: &BenchReport) -> Vec<String> {
    let mut warnings = Vec::new();
    if old.host != new.host {
        let host = |report: &BenchReport| {
            let host = &report.host;
            format!(
                "{}, {} cores, Linux {}, {} ({}), ring {}",
                host.cpu, host.cores, host.kernel, host.engine, host.kvm, host.ring
            )
        };
        warnings.push(format!("another host: then {}; now {}", host(old), host(new)));
    }
    if old.quick || new.quick {
        warnings.push("a quick one is among them: its noise is larger than it knows".into());
    }
    warnings
}

impl Compared {
    fn of(old: Row, new: Row) -> Self {
        let quotient = |new: f64, old: f64| if old > 0.0 { new / old } else { f64::NAN };
        let ratio = quotient(new.values.value, old.values.value);
        let yardstick = new.beside.first().and_then(|new| {
            let old = old.yardstick(&new.role).filter(|old| old.value > 0.0 && new.value > 0.0)?;
            Some(quotient(new.value, old.value))
        });
        let both = old.relative_noise().zip(new.relative_noise());
        let noise = both.map(|(old, new)| (old + new).max(LEAST));
        // Ratios are far from 1 in either direction alike.
        let beyond = |ratio: f64| noise.is_some_and(|noise| ratio.ln().abs() > noise.ln_1p());
        let verdict = match ratio {
            ratio if ratio.is_nan() || old.unit != new.unit || !beyond(ratio) => Verdict::Same,
            ratio if yardstick.is_some_and(|yardstick| !beyond(ratio / yardstick)) => Verdict::Host,
            ratio if (ratio < 1.0) != new.unit.more_is_better() => Verdict::Better,
            _ => Verdict::Worse,
        };
        Self { old, new, ratio, yardstick, noise, verdict }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::with_rows as report;
    use super::super::row::Unit;
    use super::super::row::tests::row;
    use super::*;

    fn compared(old: Row, new: Row) -> Compared {
        let mut comparison = Comparison::of(&report(vec![old]), &report(vec![new]));
        comparison.rows.pop().expect("a row that is in both")
    }

    #[test]
    fn rows_are_found_by_their_name_and_place_on_the_axis() {
        let old = report(vec![row("sum", Some(2), 10.0), row("sum", Some(4), 20.0)]);
        let new = report(vec![row("sum", Some(4), 30.0), row("sum", Some(8), 40.0)]);
        let comparison = Comparison::of(&old, &new);
        let titles = |rows: &[Row]| rows.iter().map(Row::title).collect::<Vec<_>>();
        assert_eq!(comparison.rows.len(), 1);
        assert_eq!(comparison.rows[0].ratio, 1.5);
        assert_eq!(titles(&comparison.missing), ["sum, 2 CPUs"]);
        assert_eq!(titles(&comparison.added), ["sum, 8 CPUs"]);
        assert!(comparison.warnings.is_empty());
    }

    #[test]
    fn a_group_that_was_not_measured_is_not_missing() {
        let other = Row { group: "boot".into(), ..row("reset", None, 1.0) };
        let old = report(vec![row("add", None, 1.0), other]);
        let comparison = Comparison::of(&old, &report(vec![row("add", None, 1.0)]));
        assert!(comparison.missing.is_empty());
    }

    #[test]
    fn a_difference_counts_beyond_the_noise_of_both() {
        let verdict = |ratio: f64, noise: f64| {
            let mut rows = [row("add", None, 10.0), row("add", None, 10.0 * ratio)];
            for row in &mut rows {
                row.values.noise = noise / 2.0 * row.values.value;
            }
            let [old, new] = rows;
            compared(old, new).verdict
        };
        assert_eq!(verdict(1.02, 0.0), Verdict::Same);
        assert_eq!(verdict(1.05, 0.0), Verdict::Worse);
        assert_eq!(verdict(0.95, 0.0), Verdict::Better);
        assert_eq!(verdict(1.05, 0.1), Verdict::Same);
        assert_eq!(verdict(1.2, 0.1), Verdict::Worse);
    }

    #[test]
    fn of_what_is_counted_a_second_more_is_better() {
        let rate = |value| Row { unit: Unit::PerSecond, ..row("plugs", Some(2), value) };
        assert_eq!(compared(rate(100.0), rate(150.0)).verdict, Verdict::Better);
        assert_eq!(compared(rate(100.0), rate(50.0)).verdict, Verdict::Worse);
    }

    #[test]
    fn what_the_yardstick_did_too_is_the_hosts() {
        let mut slow = row("add", None, 2.0);
        slow.beside[0].value = 2.0;
        let compared = compared(row("add", None, 1.0), slow);
        assert_eq!((compared.ratio, compared.yardstick), (2.0, Some(2.0)));
        assert_eq!(compared.verdict, Verdict::Host);
    }

    #[test]
    fn nothing_is_concluded_from_nothing() {
        assert_eq!(compared(row("add", None, 0.0), row("add", None, 0.0)).verdict, Verdict::Same);
        let mut unmeasured = row("add", None, 0.0);
        unmeasured.values.rounds = 0;
        let comparison =
            Comparison::of(&report(vec![row("add", None, 1.0)]), &report(vec![unmeasured]));
        assert_eq!((comparison.rows.len(), comparison.added.len()), (0, 0));
    }

    #[test]
    fn another_host_is_pointed_out() {
        let mut new = report(Vec::new());
        new.host.cores = 7;
        new.quick = true;
        assert_eq!(Comparison::of(&report(Vec::new()), &new).warnings.len(), 2);
    }
}
