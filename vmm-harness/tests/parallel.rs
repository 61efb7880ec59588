//! Scenarios of seeds with all CPUs at once, from outside.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn fuzz(image: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmm-harness"))
        .args(["fuzz", "--machine", "parallel"])
        .args(args)
        .env("PERCPU_ENGINE", common::engines()[0])
        .env("PERCPU_GUEST_IMAGE", image)
        .output()
        .expect("vmm-harness can be started")
}

#[test]
fn scenarios_of_seeds_hold_with_all_cpus_at_once() {
    let json = Path::new(env!("CARGO_TARGET_TMPDIR")).join("parallel.json");
    let file = json.to_str().expect("UTF-8");
    let output = fuzz(&common::image(), &["--seeds", "0..6", "--json", file]);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{table}");
    assert!(table.contains("all CPUs at once") && table.contains("HELD"), "{table}");
    let report: Value =
        serde_json::from_slice(&std::fs::read(&json).expect("a report")).expect("JSON");
    assert_eq!(report["machine"], "parallel");
    assert_eq!(report["runs"], 6);
    // Nobody counts steps, and every seed asks for three plugs at least.
    assert_eq!(report["steps"], 0);
    let plugs = ["plugs", "failed_plugs"].map(|name| report[name].as_u64().expect("a number"));
    assert!(plugs.iter().sum::<u64>() >= 18, "{report:#}");
    assert!(report["checks"].as_u64() > Some(10_000), "{report:#}");
}

#[test]
fn two_runs_that_cannot_be_equal_are_not_compared() {
    // Refused before the image is looked at.
    let output = fuzz(Path::new("/nonexistent"), &["--seeds", "0..1", "--verify"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("--verify") && error.contains("parallel"), "{error}");
}

#[test]
fn an_image_that_counts_steps_is_refused() {
    let output = fuzz(&common::steps_image(), &["--seeds", "0..1"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("cargo xtask guest"), "{error}");
}
