//! One report of many: what the shards of a campaign have shown together.

use std::path::Path;

use super::report::{FuzzReport, SCHEMA};
use crate::error::Error;

/// Reads a report.
pub fn read_report(path: &Path) -> Result<FuzzReport, Error> {
    let bytes = std::fs::read(path)
        .map_err(|source| Error::FuzzReportUnreadable { path: path.into(), source })?;
    report_from_bytes(path, &bytes)
}

/// Makes sense of what was read from `path`.
pub(crate) fn report_from_bytes(path: &Path, bytes: &[u8]) -> Result<FuzzReport, Error> {
    let wrong = |line, why: String| Error::FileWrong { path: path.into(), line, why };
    let not_json = |error: serde_json::Error| {
        let what = "this is no report: give a file that `fuzz --json FILE` wrote";
        wrong(error.line().max(1), format!("{what} ({error})"))
    };
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(not_json)?;
    if let Some(schema) = value.get("schema").filter(|schema| **schema != SCHEMA) {
        let why = format!(
            "this is a report of version {schema}, this program reads version {SCHEMA}: make it \
             again"
        );
        return Err(wrong(1, why));
    }
    serde_json::from_slice(bytes).map_err(not_json)
}

/// Adds reports up; there is at least one. Those of other guest images than the first one's are
/// refused: what one reached is nothing to the other.
pub fn merge(reports: &[(impl AsRef<Path>, FuzzReport)]) -> Result<FuzzReport, Error> {
    let Some(((first, sum), rest)) = reports.split_first() else {
        return Err(Error::Usage("there are no reports to merge: name at least one".into()));
    };
    let first = first.as_ref().display();
    let mut sum = sum.clone();
    for (path, report) in rest {
        let path = path.as_ref().display();
        if report.image != sum.image || report.machine != sum.machine {
            return Err(Error::Usage(format!(
                "{path} is of another guest image or machine than {first}: merge reports of one build"
            )));
        }
        add(&mut sum, report)?;
    }
    if !rest.is_empty() {
        sum.shard = None;
    }
    sum.seeds = union(sum.seeds);
    sum.failures.sort_by(|a, b| (&a.key, a.seed, &a.file).cmp(&(&b.key, b.seed, &b.file)));
    Ok(sum)
}

fn add(sum: &mut FuzzReport, report: &FuzzReport) -> Result<(), Error> {
    let resets = sum.reset_us_mean * sum.runs as f64 + report.reset_us_mean * report.runs as f64;
    sum.jobs = sum.jobs.saturating_add(report.jobs);
    sum.seeds.extend(&report.seeds);
    sum.runs = sum.runs.saturating_add(report.runs);
    sum.runs_changed = sum.runs_changed.saturating_add(report.runs_changed);
    sum.runs_of_corpus = sum.runs_of_corpus.saturating_add(report.runs_of_corpus);
    sum.verify &= report.verify;
    sum.verified = sum.verified.saturating_add(report.verified);
    // They ran at the same time, on as many hosts.
    sum.seconds = sum.seconds.max(report.seconds);
    sum.runs_per_second += report.runs_per_second;
    sum.steps = sum.steps.saturating_add(report.steps);
    sum.exits = sum.exits.saturating_add(report.exits);
    sum.plugs = sum.plugs.saturating_add(report.plugs);
    sum.failed_plugs = sum.failed_plugs.saturating_add(report.failed_plugs);
    sum.checks = sum.checks.saturating_add(report.checks);
    sum.reset_us_mean = resets / sum.runs.max(1) as f64;
    sum.reset_us_max = sum.reset_us_max.max(report.reset_us_max);
    sum.corpus = sum.corpus.saturating_add(report.corpus);
    sum.corpus_wrong = sum.corpus_wrong.saturating_add(report.corpus_wrong);
    sum.failures.extend(report.failures.iter().cloned());
    sum.interrupted |= report.interrupted;
    sum.error = sum.error.take().or_else(|| report.error.clone());
    if let (Some(coverage), Some(other)) = (&mut sum.coverage, &report.coverage) {
        coverage.union(other)?;
        let reached = coverage.features().clone();
        sum.note_reached(&reached);
    }
    Ok(())
}

/// Ranges as few as can be that have the same numbers.
fn union(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut union: Vec<(u64, u64)> = Vec::new();
    for (from, to) in ranges {
        match union.last_mut() {
            Some((_, end)) if from <= *end => *end = to.max(*end),
            _ => union.push((from, to)),
        }
    }
    union
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_shards_are_joined_where_they_meet() {
        assert_eq!(union(vec![(20, 30), (0, 10), (10, 20)]), [(0, 30)]);
        assert_eq!(union(vec![(0, 10), (11, 12), (2, 5)]), [(0, 10), (11, 12)]);
        assert_eq!(union(vec![]), []);
    }
}
