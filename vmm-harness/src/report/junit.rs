//! Reports for programs that show test results: JUnit's XML.
//!
//! A run is a suite, and each invariant a case in it. Those that were never checked were skipped. A
//! run that ended early has a case for that.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Property, Report, TestCase, TestCaseStatus, TestSuite};

use super::{RunReport, Verdict, grouped};
use crate::judge::{self, Violation};

/// What a suite is called.
const NAME: &str = "percpu";

/// A report of one suite.
pub(crate) fn report(suite: TestSuite) -> Report {
    let mut report = Report::new(NAME);
    report.add_test_suite(suite);
    report
}

/// A report as text.
pub(crate) fn text(report: &Report) -> String {
    report.to_string().expect("names and text, of which what XML has no place for is left out")
}

/// A case that went well.
pub(crate) fn passed(name: impl AsRef<str>, class: &str) -> TestCase {
    case(name, class, TestCaseStatus::success())
}

/// A case that did not: `message` is its first line, `text` all of it. `kind` is `failure` for what
/// was to be found out, `error` for what got in the way.
pub(crate) fn failed(
    name: impl AsRef<str>,
    class: &str,
    kind: NonSuccessKind,
    (message, text): (&str, &str),
) -> TestCase {
    let mut status = TestCaseStatus::non_success(kind);
    status.set_message(message).set_description(text);
    case(name, class, status)
}

/// Whether what a failure is known by is what was to be found out, or got in the way.
pub(crate) fn kind(what: &str) -> NonSuccessKind {
    match what {
        "crash" | "hang" => NonSuccessKind::Error,
        _ => NonSuccessKind::Failure,
    }
}

/// A case of which nothing is known.
fn skipped(name: &str, class: &str, why: &str) -> TestCase {
    let mut status = TestCaseStatus::skipped();
    status.set_message(why);
    case(name, class, status)
}

fn case(name: impl AsRef<str>, class: &str, status: TestCaseStatus) -> TestCase {
    let mut case = TestCase::new(name.as_ref(), status);
    case.set_classname(class);
    case
}

/// A suite without cases.
pub(crate) fn suite(name: &str, seconds: f64, properties: &[(&str, String)]) -> TestSuite {
    let mut suite = TestSuite::new(name);
    suite.set_time(Duration::try_from_secs_f64(seconds).unwrap_or_default());
    for (name, value) in properties {
        suite.add_property(Property::new(*name, value.as_str()));
    }
    suite
}

/// A run as a suite.
pub(super) fn of_run(report: &RunReport) -> Report {
    let class = "percpu.run";
    let properties = [
        ("seed", report.seed.to_string()),
        ("engine", report.engine.to_string()),
        ("ring", report.ring.to_string()),
        ("boot", report.boot.clone()),
        ("replay", report.replay.clone()),
    ];
    let mut suite = suite("run", report.seconds, &properties);
    suite.add_test_case(whole(report, class));
    let known = report.invariants();
    for (name, checked, broken) in &known {
        let title = format!("{name}: {}", judge::meaning(name));
        let mut case = match broken {
            0 => passed(&title, class),
            _ => {
                let of = report.violations.iter().filter(|v| v.invariant == *name);
                let told: Vec<_> = of.map(told).collect();
                let message = told.first().map_or("", |text| text.lines().next().unwrap_or(""));
                let text = format!("{}\nagain: {}\n", told.join("\n"), report.replay);
                failed(&title, class, NonSuccessKind::Failure, (message, &text))
            }
        };
        case.set_system_out(format!("checked {} times", grouped(*checked)));
        suite.add_test_case(case);
    }
    for name in judge::invariants().filter(|name| known.iter().all(|(other, ..)| other != name)) {
        let title = format!("{name}: {}", judge::meaning(name));
        suite.add_test_case(skipped(&title, class, "nothing was held against it in this run"));
    }
    self::report(suite)
}

/// The case of the run itself: it came to its end.
fn whole(report: &RunReport, class: &str) -> TestCase {
    let Some(crash) = &report.crash else { return passed("the guest runs to the end", class) };
    let what = if report.verdict == Verdict::Hung { "hung" } else { "crashed" };
    let message = format!("{what}: {}", crash.text);
    let text = format!("{crash}\nagain: {}\n", report.replay);
    failed("the guest runs to the end", class, NonSuccessKind::Error, (&message, &text))
}

/// A violation in full.
pub(crate) fn told(violation: &Violation) -> String {
    let Violation { object, seen, expected, seq, tsc, symbol, .. } = violation;
    let mut text = format!("{violation}\n");
    if !seen.is_empty() || !expected.is_empty() {
        text += &format!("seen: {seen}\nexpected: {expected}\n");
    }
    text += &format!("where: {object}");
    if let Some(symbol) = symbol {
        text += &format!(", in {symbol}");
    }
    text + &format!("\nwhen: after event #{seq}, time stamp {tsc}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Crash;

    fn run() -> RunReport {
        let violation = Violation::new("K2", "counter 0x10", "its <local> is 8\u{0}\u{1b}[0m")
            .values(8, "less than 6");
        RunReport {
            verdict: Verdict::Broken,
            seed: 7,
            seconds: 2.5,
            checks: [("K2".to_owned(), 12_345), ("I1".to_owned(), 3)].into(),
            violations: vec![violation.clone(), Violation { object: "other".into(), ..violation }],
            replay: "cargo xtask run --seed 7 <&>".into(),
            ..RunReport::default()
        }
    }

    #[test]
    fn each_invariant_is_a_case_and_what_was_not_checked_is_skipped() {
        let xml = text(&of_run(&run()));
        let read = Report::deserialize_from_str(&xml).expect("well-formed JUnit");
        let suite = &read.test_suites[0];
        let all = judge::invariants().count();
        assert_eq!((suite.tests, suite.failures, suite.errors), (all + 1, 1, 0));
        let skipped = |case: &&TestCase| matches!(case.status, TestCaseStatus::Skipped { .. });
        assert_eq!(suite.test_cases.iter().filter(skipped).count(), all - 2);
        assert_eq!(suite.time, Some(Duration::from_millis(2500)));
        let broken = suite.test_cases.iter().find(|case| case.name.as_str().starts_with("K2:"));
        let TestCaseStatus::NonSuccess { kind, message, description, .. } = &broken.unwrap().status
        else {
            panic!("{broken:?}");
        };
        assert_eq!(*kind, NonSuccessKind::Failure);
        let (message, text) = (message.as_ref().unwrap(), description.as_ref().unwrap());
        assert!(message.as_str().starts_with("K2 broken: its <local> is 8"), "{message:?}");
        assert!(text.as_str().contains("seen: 8\nexpected: less than 6"), "{text:?}");
        assert!(text.as_str().contains("again: cargo xtask run --seed 7 <&>"), "{text:?}");
        assert!(xml.contains("checked 12 345 times"), "{xml}");
    }

    #[test]
    fn a_crash_is_an_error_of_its_own() {
        let crash = Some(Crash { text: "CPU 1 panicked".into(), cpus: Vec::new() });
        let report = RunReport { verdict: Verdict::Crashed, crash, ..RunReport::default() };
        let read = Report::deserialize_from_str(&text(&of_run(&report))).unwrap();
        assert_eq!((read.test_suites[0].errors, read.test_suites[0].failures), (1, 0));
        let held = Report::deserialize_from_str(&text(&of_run(&RunReport::default()))).unwrap();
        assert_eq!((held.test_suites[0].errors, held.test_suites[0].failures), (0, 0));
    }
}
