//! Files that users give: scenarios, failures, reports of campaigns.

use std::path::{Path, PathBuf};

use crate::fuzz::{self, Case};
use crate::image::Workloads;
use crate::machine::{Schedule, Strategy, looks};

/// Those that scenarios may name.
pub(super) const WORKLOADS: [&str; 5] = ["statics", "counter", "alloc", "mount", "refs"];

fn workloads() -> Workloads {
    Workloads::named(&WORKLOADS)
}

/// The first byte says what kind of file the rest is.
pub(super) fn run(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 2 {
        0 => scenario(bytes),
        _ => report(bytes),
    }
}

fn scenario(bytes: &[u8]) {
    let path = Path::new("scenario.toml");
    let workloads = workloads();
    let case = match Case::from_bytes(path, bytes, &workloads) {
        Ok(case) => case,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let again = Case::from_bytes(path, case.text().as_bytes(), &workloads)
        .expect("what was written is read");
    assert_eq!(again, case);
    let scenario = &case.scenario;
    scenario.check().expect("what was read can be run");
    let schedule = Schedule::of(scenario);
    if !matches!(scenario.strategy, Strategy::Given(_)) {
        assert!(schedule.changes.len() <= Schedule::MOST_CHANGES);
    }
    assert!(looks::limits(scenario).iter().all(|&limit| limit > 0));
    assert!(!scenario.with_seed(1).to_string().is_empty());
}

fn report(bytes: &[u8]) {
    let path = PathBuf::from("report.json");
    let report = match fuzz::report_from_bytes(&path, bytes) {
        Ok(report) => report,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let twice = [(path.clone(), report.clone()), (path, report)];
    if let Ok(sum) = fuzz::merge(&twice) {
        assert!(serde_json::to_string(&sum).is_ok());
        fuzz::write_report(&mut Vec::new(), &sum).expect("a vector takes all");
    }
}
