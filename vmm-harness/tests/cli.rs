//! The program from outside: what it refuses, how it ends, what it reports.

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use process::{Running, alone, ended, harness, json, scratch};
use serde_json::Value;

/// Length of a run that is to end for another reason: longer than [`LIMIT`].
const FOREVER: &str = "1000000";

/// The image, built at most once.
fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(common::image)
}

fn run() -> Command {
    let mut command = harness();
    command.arg("run").env("PERCPU_GUEST_IMAGE", image());
    command
}

#[test]
fn no_cpus_at_all_are_refused() {
    let _alone = alone();
    ended(run().args(["--cpus", "0"])).refused("--cpus must be at least 1");
}

#[test]
fn more_cpus_at_boot_than_can_be_are_refused() {
    let _alone = alone();
    ended(run().args(["--cpus", "9", "--max-cpus", "8"])).refused("--cpus 9");
}

#[test]
fn more_cpus_than_the_guest_knows_are_refused() {
    let _alone = alone();
    ended(run().args(["--max-cpus", "5000"])).refused("--max-cpus 5000");
}

#[test]
fn unknown_workload_is_refused_with_the_names_there_are() {
    let end = || {
        let image = image();
        ended(run().args(["--workload", "counter,nonsense", "--image"]).arg(image))
    };
    end().refused("\"nonsense\"");
    end().refused("alloc, counter, mount");
}

#[test]
fn seconds_that_are_no_time_are_refused() {
    for seconds in ["0", "-1", "NaN", "soon"] {
        ended(run().arg(format!("--seconds={seconds}"))).refused("--seconds");
    }
}

#[test]
fn missing_image_is_refused() {
    ended(run().args(["--image", "/nonexistent/guest"])).refused("/nonexistent/guest");
    ended(harness().args(["list", "--image", "/nonexistent/guest"])).refused("/nonexistent/guest");
}

#[test]
fn text_file_is_refused_as_an_image() {
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    ended(run().args(["--image", text])).refused("ELF");
}

#[test]
fn directory_is_refused_as_an_image() {
    ended(run().args(["--image", env!("CARGO_MANIFEST_DIR")])).refused("cannot be read");
}

#[test]
fn elf_file_that_is_no_guest_is_refused() {
    let own = std::env::current_exe().expect("a test has a file");
    ended(run().arg("--image").arg(&own)).refused("no percpu guest");
    ended(run().args(["--image", "/bin/sh"])).refused("no percpu guest");
}

/// The section headers are the last part of the file: whatever is cut off, they are hurt.
#[test]
fn image_cut_short_is_refused() {
    let bytes = std::fs::read(image()).expect("the image is readable");
    let path = scratch("cut-short");
    for len in [0, 1, 4, 63, 64, 100, 4096, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..len]).expect("scratch space");
        ended(harness().arg("list").arg("--image").arg(&path)).refused("cut-short");
    }
}

#[test]
fn report_that_cannot_be_written_is_refused_before_the_run() {
    let _alone = alone();
    let directory = env!("CARGO_TARGET_TMPDIR");
    for path in ["/nonexistent/report.json", directory] {
        ended(run().args(["--seconds", FOREVER, "--json", path])).refused(path);
    }
}

#[test]
fn refusal_makes_no_report() {
    let path = scratch("refused.json");
    ended(run().args(["--image", "/nonexistent/guest", "--json"]).arg(&path)).with_status(2);
    assert!(!path.exists());
}

#[test]
fn list_names_the_tests_and_workloads_of_the_image_without_booting_it() {
    let mut list = harness();
    list.arg("list").env("PERCPU_GUEST_IMAGE", image());
    let end = ended(&mut list).with_status(0);
    for line in ["statics::worked_example: test", "statics: workload"] {
        assert!(end.stdout.lines().any(|said| said == line), "{line} is not in: {}", end.stdout);
    }
    let known = |line: &str| line.ends_with(": test") || line.ends_with(": workload");
    assert!(end.stdout.lines().all(known), "{}", end.stdout);
}

#[test]
fn good_run_is_reported_in_full() {
    let _alone = alone();
    for engine in common::engines() {
        good_run(engine, if *engine == "kvm" { "sipi" } else { "direct" });
    }
}

fn good_run(engine: &str, boot: &str) {
    let path = scratch("good.json");
    let end = ended(
        run()
            .args(["--cpus", "2", "--max-cpus", "3", "--plugs", "4", "--boot", boot])
            .args(["--engine", engine, "--ring", "3", "--seed", "0x2a", "--json"])
            .arg(&path),
    )
    .with_status(0);
    assert!(end.stdout.contains("held: "), "{}", end.stdout);
    assert!(end.stdout.contains(&format!("engine     {engine}")), "{}", end.stdout);

    let report = json(&path);
    assert_eq!(report["schema"], 1);
    assert_eq!(report["verdict"], "held");
    assert_eq!(report["seed"], 42);
    assert_eq!(report["ring"], 3);
    assert_eq!(report["boot"], boot);
    assert_eq!(report["engine"], engine);
    assert_eq!(report["cpus"]["possible"], 3);
    assert_eq!(report["cpus"]["boot"], 2);
    assert_eq!(report["violations"], Value::Array(Vec::new()));
    assert_eq!(report["interrupted"], false);
    assert_eq!(report["crash"], Value::Null);

    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("a number: {report:#}"));
    let max_online = number(&report["cpus"]["max_online"]);
    assert!((2..=3).contains(&max_online), "{report:#}");
    let plugs = &report["plugs"];
    assert_eq!(number(&plugs["up"]) + number(&plugs["down"]), 4, "{report:#}");
    assert_eq!(number(&plugs["failed"]), 0, "{report:#}");
    assert!(plugs["per_second"].as_f64().is_some_and(|n| n > 0.0), "{report:#}");
    assert!(report["seconds"].as_f64().is_some_and(|n| n > 0.0), "{report:#}");

    let workloads = report["workloads"].as_array().expect("a list");
    let names: Vec<_> = workloads.iter().filter_map(|w| w["name"].as_str()).collect();
    assert_eq!(names, ["alloc", "counter", "mount", "refs", "statics", "trace"]);
    assert!(workloads.iter().all(|w| number(&w["ops"]) > 0), "{report:#}");
    let checks = report["checks"].as_object().expect("a map");
    for invariant in ["I1", "I14", "I15", "I16", "K1", "K3", "K4", "K5", "S1", "M1", "P4", "P5"] {
        assert!(checks.get(invariant).map_or(0, number) > 0, "{invariant}: {report:#}");
    }
}

#[test]
fn a_process_has_neither_ring_0_nor_real_mode() {
    ended(run().args(["--engine", "threads", "--boot", "sipi"])).refused("--boot direct");
    ended(run().args(["--engine", "threads", "--ring", "0"])).refused("--engine kvm");
}

#[test]
fn one_workload_is_the_only_one() {
    let _alone = alone();
    let path = scratch("one-workload.json");
    ended(run().args(["--plugs", "2", "--workload", "counter", "--json"]).arg(&path))
        .with_status(0);
    let workloads = &json(&path)["workloads"];
    assert_eq!(workloads.as_array().map(Vec::len), Some(1), "{workloads}");
    assert_eq!(workloads[0]["name"], "counter");
}

#[test]
fn trace_is_replayed_whole_while_cpus_come_and_go() {
    let _alone = alone();
    let path = scratch("trace.json");
    ended(
        run()
            .args(["--cpus", "4", "--max-cpus", "4", "--workload", "trace", "--passes", "2"])
            .arg("--json")
            .arg(&path),
    )
    .with_status(0);
    let report = json(&path);
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("a number: {report:#}"));
    assert_eq!(report["verdict"], "held");
    assert!(number(&report["trace"]["passes"]) >= 2, "{report:#}");
    // Its lines, and the objects that it leaves live.
    assert!(number(&report["trace"]["ops"]) >= 2 * (45_447 + 13), "{report:#}");
    assert!(number(&report["plugs"]["up"]) + number(&report["plugs"]["down"]) > 0, "{report:#}");
    assert!(number(&report["balance"]["done"]) > 0, "{report:#}");
    for invariant in ["I1", "I2", "I3", "I13", "I15", "I16", "I17"] {
        assert!(number(&report["checks"][invariant]) > 0, "{invariant}: {report:#}");
    }
}

#[test]
fn passes_of_a_trace_that_is_not_replayed_are_refused() {
    ended(run().args(["--passes", "1", "--workload", "counter"])).refused("--workload trace");
}

#[test]
fn interrupt_ends_a_run_with_the_report_so_far() {
    let _alone = alone();
    let path = scratch("interrupted.json");
    let mut running = Running::start(run().args(["--seconds", FOREVER, "--json"]).arg(&path));
    // The first line on how it goes: in the middle of the run.
    while !running.line().expect("the run goes on").contains("checks") {}
    running.interrupt();
    let end = running.end().with_status(0);
    assert!(end.stdout.contains("held: "), "{}", end.stdout);
    assert!(end.stdout.contains("interrupted"), "{}", end.stdout);
    let report = json(&path);
    assert_eq!(report["interrupted"], true);
    assert_eq!(report["verdict"], "held");
    assert!(report["seconds"].as_f64().is_some_and(|s| s > 1.0), "{report:#}");
    assert!(report["workloads"][0]["ops"].as_u64() > Some(0), "{report:#}");
}

#[test]
fn reader_that_goes_away_does_not_change_the_verdict() {
    let _alone = alone();
    let mut child =
        run().args(["--plugs", "1"]).stdout(Stdio::piped()).spawn().expect("vmm-harness starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it was started").code(), Some(0));
}

/// Runs with a fault, and gives `check` what the report says of it and of the CPU that is to blame: the
/// same on all engines.
#[track_caller]
fn fault(name: &str, status: i32, verdict: &str, check: impl Fn(String, Value)) {
    let _alone = alone();
    for engine in common::engines() {
        let (text, cpu) = fault_on(engine, name, status, verdict);
        println!("{engine}: {text}");
        check(text, cpu);
    }
}

#[track_caller]
fn fault_on(engine: &str, name: &str, status: i32, verdict: &str) -> (String, Value) {
    let path = scratch(&format!("{name}.json"));
    // Every CPU that can be was up once, and so has registers to show.
    let cpus = ["--cpus", "3", "--max-cpus", "3"];
    let end = ended(
        run()
            .args(cpus)
            .args(["--seconds", FOREVER, "--fault", name, "--engine", engine, "--json"])
            .arg(&path),
    )
    .with_status(status);
    let report = json(&path);
    assert_eq!(report["engine"], engine);
    assert_eq!(report["verdict"], verdict);
    let crash = &report["crash"];
    let text = crash["text"].as_str().expect("what happened").to_owned();
    let cpu = crash["cpus"][0].clone();
    let named = format!("CPU {}", cpu["cpu"]);
    assert!(text.contains(&named), "{named} is not in: {text}");
    assert_eq!(crash["cpus"].as_array().map(Vec::len), Some(3), "every CPU is in the report");
    assert!(end.stdout.contains(&text), "{}", end.stdout);
    assert!(end.stdout.contains("--seed "), "nothing says how to repeat it: {}", end.stdout);
    (text, cpu)
}

/// Whether a function is on a CPU's stack.
#[track_caller]
fn on_stack(cpu: &Value, function: &str) {
    let stack = cpu["stack"].as_array().expect("a stack");
    let found = stack.iter().filter_map(Value::as_str).any(|frame| frame.contains(function));
    assert!(found, "{function} is not on the stack: {stack:#?}");
}

#[test]
fn panic_of_the_guest_is_reported_with_its_message_and_stack() {
    fault("panic", 4, "crashed", |text, cpu| {
        assert!(text.contains("panicked at percpu-guest/src/kernel/faults.rs"), "{text}");
        on_stack(&cpu, "panic_on_purpose");
        on_stack(&cpu, "faults.rs:");
    });
}

#[test]
fn page_fault_of_the_guest_is_reported_with_its_address_and_stack() {
    fault("page-fault", 4, "crashed", |text, cpu| {
        assert!(text.contains("page fault") && text.contains("0x10"), "{text}");
        on_stack(&cpu, "read_unmapped");
    });
}

#[test]
fn store_to_the_hosts_part_of_shared_memory_is_reported() {
    fault("scribble-header", 4, "crashed", |text, cpu| {
        assert!(text.contains("0x100000") && text.contains("header"), "{text}");
        on_stack(&cpu, "scribble_header");
    });
}

#[test]
fn triple_fault_is_reported_with_its_cpu() {
    fault("triple-fault", 4, "crashed", |text, cpu| {
        assert!(text.contains("triple"), "{text}");
        on_stack(&cpu, "service");
    });
}

#[test]
fn cpu_that_spins_with_interrupts_masked_is_reported_as_a_hang() {
    fault("spin-masked", 5, "hung", |text, cpu| {
        assert!(text.contains("masked"), "{text}");
        assert_eq!(cpu["masked"], true);
        on_stack(&cpu, "spin_masked");
    });
}
