//! `vmm-harness bench` from outside: what it measures, what it writes, and what it refuses. Nothing is said
//! here of how long anything takes.

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use process::{Running, ended, harness, json, scratch, vm};
use serde_json::Value;

/// The image, built at most once.
fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(common::image)
}

fn bench(subject: &str) -> Command {
    let mut command = harness();
    command.args(["bench", subject]).env("PERCPU_GUEST_IMAGE", image());
    command.env_remove("PERCPU_STEPS_IMAGE").env_remove("PERCPU_ALLOC_BENCH");
    command
}

/// The rows of a report, after what holds for all of them was looked at.
#[track_caller]
fn rows(report: &Value, stdout: &str) -> Vec<Value> {
    assert_eq!(report["schema"], 2);
    assert_eq!(report["interrupted"], false);
    assert_eq!(report["crash"], Value::Null);
    for field in ["cpu", "kernel", "engine"] {
        assert!(report["host"][field].as_str().is_some_and(|text| !text.is_empty()), "{field}");
    }
    let rows = report["rows"].as_array().expect("a list").clone();
    assert!(!rows.is_empty());
    for row in &rows {
        let name = row["name"].as_str().expect("a name");
        assert!(stdout.contains(name), "{name} is not in:\n{stdout}");
        if row["rounds"].as_u64() == Some(0) {
            continue;
        }
        let number =
            |field: &str| row[field].as_f64().unwrap_or_else(|| panic!("{field}: {row:#}"));
        let ordered = [number("min"), number("median"), number("p99")];
        assert!(ordered.is_sorted() && ordered[0] > 0.0, "{row:#}");
        assert!(row["max"].is_null() || number("max") >= number("p99"), "{row:#}");
        assert!([number("min"), number("median")].contains(&number("value")), "{row:#}");
        assert!(number("noise") >= 0.0, "{row:#}");
    }
    rows
}

/// The row of a name, and of an x where there are several.
#[track_caller]
fn row<'a>(rows: &'a [Value], name: &str, x: Option<u64>) -> &'a Value {
    let found = rows.iter().find(|row| row["name"] == name && row["x"].as_u64() == x);
    found.unwrap_or_else(|| panic!("there is no row {name} of {x:?}"))
}

#[test]
fn operations_stand_beside_three_yardsticks() {
    let Some(_vm) = vm("operations_stand_beside_three_yardsticks") else { return };
    let path = scratch("core.json");
    let end = ended(bench("core").args(["--quick", "--cpus", "2", "--json"]).arg(&path));
    let end = end.with_status(0);
    let report = json(&path);
    let rows = rows(&report, &end.stdout);
    for row in &rows {
        assert_eq!(row["group"], "core");
        // A host that emulates ring 0 does not know the instruction.
        let is_unknown = report["host"]["ring"] == 0
            && row["name"].as_str().is_some_and(|name| name.contains("DoubleWord"));
        assert!(row["rounds"].as_u64() > Some(0) || is_unknown, "{row:#}");
        let roles: Vec<_> =
            row["beside"].as_array().expect("a list").iter().map(|b| b["role"].clone()).collect();
        assert_eq!(roles, ["bare", "atomic", "lock"]);
    }
    row(&rows, "PerCpu::<u64>::add", None);
    row(&rows, "PreemptGuard, take and drop", None);
    if report["host"]["cores"].as_u64() > Some(1) {
        row(&rows, "PerCpu::<u64>::add", Some(2));
    }
}

#[test]
fn counters_are_summed_over_one_cpu_and_over_64() {
    let Some(_vm) = vm("counters_are_summed_over_one_cpu_and_over_64") else { return };
    let path = scratch("counter.json");
    let end = ended(bench("counter").args(["--quick", "--json"]).arg(&path)).with_status(0);
    let rows = rows(&json(&path), &end.stdout);
    for online in [1, 2, 4, 8, 16, 32, 64] {
        let sum = row(&rows, "PercpuCounter::sum", Some(online));
        assert!(sum["rounds"].as_u64() > Some(0), "{sum:#}");
    }
    row(&rows, "PercpuRef, get and put", None);
    assert!(rows.iter().all(|row| row["group"] == "counter"));
}

#[test]
fn plugs_are_measured_whole_and_by_steps_in_both_boot_modes() {
    let Some(_vm) = vm("plugs_are_measured_whole_and_by_steps_in_both_boot_modes") else { return };
    let path = scratch("plug.json");
    let end = ended(bench("plug").args(["--quick", "--max-cpus", "2", "--json"]).arg(&path));
    let end = end.with_status(0);
    let rows = rows(&json(&path), &end.stdout);
    for mode in ["direct, idle", "sipi, idle", "direct, under load", "sipi, under load"] {
        let of_mode: Vec<_> = rows.iter().filter(|row| row["family"] == mode).cloned().collect();
        let value = |name: &str| {
            let row = row(&of_mode, name, Some(2));
            assert!(row["rounds"].as_u64() > Some(0), "{row:#}");
            row["min"].as_f64().expect("a number")
        };
        for order in ["plug", "unplug"] {
            // No part of it takes longer than the whole takes at most.
            let most = row(&of_mode, order, Some(2))["max"].as_f64().expect("a number");
            for step in ["PREPARE", "STARTING", "ONLINE", "host and back"] {
                assert!(value(&format!("{order}, {step}")) < most, "{mode}: {order}, {step}");
            }
        }
        value("first plug");
        assert_eq!(row(&of_mode, "plugs and unplugs", Some(2))["unit"], "1/s");
    }
}

#[test]
fn boots_are_measured_from_the_start_of_a_process_to_its_end() {
    let Some(_vm) = vm("boots_are_measured_from_the_start_of_a_process_to_its_end") else { return };
    let path = scratch("boot.json");
    let end = ended(
        bench("boot")
            .args(["--quick", "--max-cpus", "2", "--json"])
            .arg(&path)
            .arg("--steps-image")
            .arg(common::steps_image()),
    )
    .with_status(0);
    let rows = rows(&json(&path), &end.stdout);
    for mode in ["direct", "sipi"] {
        for cpus in [1, 2] {
            let of_mode: Vec<_> =
                rows.iter().filter(|row| row["family"] == mode).cloned().collect();
            let least =
                |name: &str| row(&of_mode, name, Some(cpus))["min"].as_f64().expect("a number");
            let stages = ["first instruction", "all CPUs online", "whole process"].map(least);
            assert!(stages.is_sorted(), "{mode}, {cpus} CPUs: {stages:?}");
            assert!(least("teardown") > 0.0);
        }
    }
    let deterministic: Vec<_> =
        rows.iter().filter(|row| row["family"] == "deterministic machine").cloned().collect();
    let least = |name: &str| row(&deterministic, name, Some(2))["min"].as_f64().expect("a number");
    assert!(least("reset") < least("boot"), "to be put back is what it is for");
}

#[test]
fn report_is_compared_with_itself_and_drawn() {
    let Some(_vm) = vm("report_is_compared_with_itself_and_drawn") else { return };
    let (path, page) = (scratch("itself.json"), scratch("itself.html"));
    let plug = || {
        let mut plug = bench("plug");
        plug.args(["--quick", "--max-cpus", "2"]);
        plug
    };
    ended(plug().arg("--json").arg(&path)).with_status(0);
    let end = ended(plug().arg("--compare").arg(&path).arg("--html").arg(&page)).with_status(0);
    assert!(end.stdout.contains("compared with "), "{}", end.stdout);
    assert!(end.stdout.contains("0 missing, 0 new"), "{}", end.stdout);
    let page = std::fs::read_to_string(page).expect("a page was written");
    assert!(page.contains("<h1>percpu benchmark</h1>"));
    assert!(page.contains("plug, STARTING"));
}

#[test]
fn interrupt_ends_a_benchmark_with_the_rows_so_far() {
    let Some(_vm) = vm("interrupt_ends_a_benchmark_with_the_rows_so_far") else { return };
    let path = scratch("interrupted.json");
    let mut running = Running::start(bench("core").arg("--json").arg(&path));
    while !running.line().expect("it goes on").contains("core: 1 of") {}
    running.interrupt();
    let end = running.end().with_status(0);
    assert!(end.stdout.contains("(interrupted)"), "{}", end.stdout);
    let report = json(&path);
    assert_eq!(report["interrupted"], true);
    assert!(!report["rows"].as_array().expect("a list").is_empty());
}

#[test]
fn rows_of_another_program_are_taken_over() {
    let Some(_vm) = vm("rows_of_another_program_are_taken_over") else { return };
    let (rows_file, path) = (scratch("foreign.json"), scratch("with-foreign.json"));
    let row_text = r#"{"schema": 2, "rows": [{"group": "mine", "family": "f", "name": "spin",
        "unit": "ns", "value": 5, "min": 5, "median": 6, "p99": 7, "noise": 0.1, "rounds": 9}]}"#;
    std::fs::write(&rows_file, row_text).expect("scratch space");
    // Without its program the allocator is not measured, and that is said.
    let end =
        ended(bench("alloc").arg("--add").arg(&rows_file).arg("--json").arg(&path)).with_status(0);
    assert!(end.stdout.contains("5.00 ns"), "{}", end.stdout);
    assert!(end.stdout.contains("without --alloc-program"), "{}", end.stdout);
    assert_eq!(json(&path)["rows"][0]["group"], "mine");
}

#[test]
fn files_that_are_no_reports_are_refused_before_anything_is_measured() {
    let name = "files_that_are_no_reports_are_refused_before_anything_is_measured";
    let Some(_vm) = vm(name) else { return };
    let path = scratch("no-report.json");
    for (content, why) in
        [("{", "no JSON"), (r#"{"schema": 1}"#, "schema 1"), (r#"{"schema": 2}"#, "missing field")]
    {
        std::fs::write(&path, content).expect("scratch space");
        ended(bench("all").arg("--compare").arg(&path)).refused(why);
        ended(bench("all").arg("--add").arg(&path)).refused(why);
    }
    ended(bench("all").args(["--compare", "/nonexistent.json"])).refused("/nonexistent.json");
}

#[test]
fn bench_refuses_what_run_refuses() {
    let Some(_vm) = vm("bench_refuses_what_run_refuses") else { return };
    ended(bench("core").args(["--cpus", "0"])).refused("--cpus must be at least 1");
    ended(bench("core").args(["--cpus", "65"])).refused("--max-cpus 65");
    ended(bench("plug").args(["--max-cpus", "65"])).refused("--max-cpus 65");
    for option in ["--json", "--html"] {
        ended(bench("core").args([option, "/nonexistent/bench"])).refused("/nonexistent/bench");
    }
    let end = ended(&mut bench("everything")).with_status(2);
    assert!(end.stderr.contains("core, alloc, counter, plug, boot, all"), "{}", end.stderr);
}
