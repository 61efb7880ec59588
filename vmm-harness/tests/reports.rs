//! Reports as files, from outside: each form is written, whatever the end, and says what the others say.

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use process::{Running, alone, ended, harness, json, scratch};
use quick_junit::{Report, TestCaseStatus};
use serde_json::Value;

/// Seconds of a run that is to end for another reason.
const FOREVER: &str = "100";

/// The image, built at most once.
fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(common::image)
}

/// The files of one test: JSON, JUnit, page.
struct Files([PathBuf; 3]);

impl Files {
    fn new(name: &str) -> Self {
        Self(["json", "xml", "html"].map(|form| scratch(&format!("{name}.{form}"))))
    }

    fn ask<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        for (option, path) in ["--json", "--junit", "--html"].iter().zip(&self.0) {
            command.arg(option).arg(path);
        }
        command
    }

    fn read(&self) -> (Value, Report, String) {
        let text = |path: &Path| std::fs::read_to_string(path).expect("a report was written");
        let junit = Report::deserialize_from_str(&text(&self.0[1])).expect("JUnit's XML");
        (json(&self.0[0]), junit, text(&self.0[2]))
    }
}

fn run(cpus: &str) -> Command {
    let mut run = harness();
    run.arg("run").env("PERCPU_GUEST_IMAGE", image());
    run.args(["--cpus", cpus, "--max-cpus", "3"]);
    run
}

fn broken(report: &Report) -> Vec<(&str, &str)> {
    let cases = report.test_suites.iter().flat_map(|suite| &suite.test_cases);
    cases
        .filter_map(|case| match &case.status {
            TestCaseStatus::NonSuccess { message, .. } => {
                Some((case.name.as_str(), message.as_ref().map_or("", |message| message.as_str())))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn a_good_run_has_a_lane_a_cpu_in_each_form() {
    let _alone = alone();
    let files = Files::new("good");
    ended(files.ask(run("2").args(["--plugs", "6"]))).with_status(0);
    let (report, junit, page) = files.read();
    let timeline = &report["timeline"];
    let cpus = timeline["cpus"].as_array().expect("lanes");
    assert_eq!(cpus.len(), 3);
    let end = timeline["end"].as_f64().expect("an end");
    let mut plugs = 0;
    for lane in cpus {
        let mut last = 0.0;
        for span in lane["spans"].as_array().expect("spans") {
            let (from, to) = (span["from"].as_f64().unwrap(), span["to"].as_f64().unwrap());
            assert!(last <= from && from <= to && to <= end + 1e-6, "{lane:#}");
            last = to;
            plugs += u64::from(span["phase"] == "starting" || span["phase"] == "dying");
        }
    }
    let told = report["plugs"]["up"].as_u64().unwrap() + report["plugs"]["down"].as_u64().unwrap();
    // Those of boot are long done.
    assert!((told..=told + 2).contains(&plugs), "{plugs} of {told}: {timeline:#}");
    let samples = timeline["samples"].as_array().expect("samples");
    let ops = |sample: &Value| -> u64 {
        let of =
            |cpu: &Value| cpu.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
        sample["ops"].as_array().unwrap().iter().map(of).sum()
    };
    let all: u64 =
        report["workloads"].as_array().unwrap().iter().map(|w| w["ops"].as_u64().unwrap()).sum();
    assert_eq!(ops(samples.last().expect("a last one")), all, "the last sample is the end");
    assert!(samples.windows(2).all(|pair| ops(&pair[0]) <= ops(&pair[1])));

    assert!(broken(&junit).is_empty());
    assert_eq!((junit.failures, junit.errors), (0, 0));
    let checked = report["checks"].as_object().expect("checks").len();
    assert!(junit.tests > checked, "{} of {checked}", junit.tests);
    for cpu in 0..3 {
        assert!(page.contains(&format!(">CPU {cpu}</text>")));
    }
    for what in ["<strong>Held", "class=\"span p-online\"", "Live areas", "</html>\n"] {
        assert!(page.contains(what), "{what}");
    }
    assert!(!page.contains("http:") && !page.contains("https:") && !page.contains(" src="));
}

#[test]
fn a_crash_is_told_in_each_form() {
    let _alone = alone();
    let files = Files::new("crash");
    ended(files.ask(run("3").args(["--seconds", FOREVER, "--fault", "panic"]))).with_status(4);
    let (report, junit, page) = files.read();
    let text = report["crash"]["text"].as_str().expect("what happened");
    assert_eq!(junit.errors, 1);
    let told = broken(&junit);
    assert!(told.len() == 1 && told[0].1.contains(text), "{told:?}");
    assert!(report["timeline"]["moment"].as_f64().is_some(), "{report:#}");
    assert!(!report["events"].as_array().expect("events").is_empty());
    for what in ["this panic was asked for", "panic_on_purpose", "--seed ", "class=\"marked\""] {
        assert!(page.contains(what), "{what}");
    }
}

#[test]
fn an_interrupted_run_writes_all_forms() {
    let _alone = alone();
    let files = Files::new("interrupted");
    let mut running = Running::start(files.ask(run("2").args(["--seconds", FOREVER])));
    while !running.line().expect("the run goes on").contains("checks") {}
    running.interrupt();
    running.end().with_status(0);
    let (report, junit, page) = files.read();
    assert_eq!(report["interrupted"], true);
    assert!(broken(&junit).is_empty() && page.contains("The run was interrupted"));
}

#[test]
fn a_file_that_cannot_be_written_is_refused_before_the_run() {
    let _alone = alone();
    for option in ["--json", "--junit", "--html"] {
        let path = "/nonexistent/report";
        ended(run("1").args(["--seconds", FOREVER, option, path])).refused(path);
    }
}

#[test]
fn a_scenario_is_told_row_by_row() {
    let _alone = alone();
    let files = Files::new("scenario");
    let mut replay = harness();
    replay.args(["replay", "3"]).env("PERCPU_GUEST_IMAGE", common::steps_image());
    ended(files.ask(&mut replay)).with_status(0);
    let (report, junit, page) = files.read();
    assert_eq!(report["verdict"], "held");
    assert!(junit.tests == 1 && broken(&junit).is_empty());
    let rows = report["told"]["drawing"]["rows"].as_array().expect("rows");
    assert!(rows.len() > 3, "{report:#}");
    assert!(page.contains("The whole run") && page.contains("class=\"cpu c-runs\""));
}
