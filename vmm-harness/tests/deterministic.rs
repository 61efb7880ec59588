//! The deterministic machine from outside: one seed is one run, on whatever machine and in whatever
//! process.

mod common;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

fn harness(args: &[&str]) -> Output {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    Command::new(env!("CARGO_BIN_EXE_vmm-harness"))
        .args(args)
        .env("PERCPU_ENGINE", common::engines()[0])
        .env("PERCPU_GUEST_IMAGE", IMAGE.get_or_init(common::steps_image))
        .output()
        .expect("vmm-harness can be started")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_seed_gives_the_same_run_twice_and_its_invariants_hold() {
    let json = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("deterministic.json");
    let file = json.to_str().expect("UTF-8");
    let output = harness(&["fuzz", "--seeds", "0..40", "--verify", "--json", file]);
    assert!(output.status.success(), "{}", stdout(&output));
    let report: Value =
        serde_json::from_slice(&std::fs::read(&json).expect("a report")).expect("JSON");
    assert_eq!(report["runs"], 40);
    assert_eq!(report["verified"], 40);
    assert!(report["plugs"].as_u64() > Some(100), "{report}");
    assert!(report["checks"].as_u64() > Some(10_000), "{report}");
}

#[test]
fn a_run_is_the_same_in_another_process_and_on_a_machine_that_ran_others_before() {
    let replay = |seed: &str| stdout(&harness(&["replay", seed, "--trace"]));
    let (first, second, other) = (replay("7"), replay("7"), replay("8"));
    assert!(first.contains("HELD") && first.contains("CPU 1 is now Dead"), "{first}");
    assert!(first == second, "two processes differ");
    assert_ne!(first, other);
}

/// All that a run shows is in what is compared: turns with where they ended, plugs, the judge's findings,
/// and a digest of the whole trace.
#[test]
fn a_run_is_the_same_on_all_engines() {
    if common::no_vm() {
        return;
    }
    for seed in 0..12 {
        let replay = |engine: &str| {
            let seed = seed.to_string();
            let output = harness(&["replay", &seed, "--trace", "--ring", "3", "--engine", engine]);
            assert!(output.status.success(), "{engine}: {}", stdout(&output));
            stdout(&output)
        };
        let (kvm, threads) = (replay("kvm"), replay("threads"));
        assert!(kvm.contains(", trace 0x"), "{kvm}");
        assert!(kvm == threads, "seed {seed}:\n{kvm}\n{threads}");
    }
}

/// The same of machines that are kept from run to run, and put back each time.
#[test]
fn a_campaign_is_the_same_on_all_engines() {
    if common::no_vm() {
        return;
    }
    let campaign = |engine: &str| {
        let name = format!("campaign-{engine}.json");
        let json = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let file = json.to_str().expect("UTF-8");
        let more = ["--ring", "3", "--engine", engine, "--json", file];
        let output = harness(&[&["fuzz", "--seeds", "0..100"][..], &more].concat());
        assert!(output.status.success(), "{engine}: {}", stdout(&output));
        let report: Value =
            serde_json::from_slice(&std::fs::read(&json).expect("a report")).expect("JSON");
        assert_eq!(report["engine"], engine);
        ["runs", "steps", "exits", "plugs", "failed_plugs", "checks", "edges", "switches", "corpus"]
            .map(|name| (name, report[name].as_u64().expect("a number")))
    };
    assert_eq!(campaign("kvm"), campaign("threads"));
}

#[test]
fn an_image_that_does_not_count_steps_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_vmm-harness"))
        .args(["replay", "1"])
        .env("PERCPU_ENGINE", common::engines()[0])
        .env("PERCPU_GUEST_IMAGE", common::image())
        .output()
        .expect("vmm-harness can be started");
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("cargo xtask guest --steps"), "{error}");
}
