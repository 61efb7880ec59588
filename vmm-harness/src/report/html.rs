//! The page of a run.

use maud::{Markup, html};

use super::page::{Column, Page, Table, Tone, command, facts, tiles, verdict};
use super::{RunReport, Verdict, failure, grouped, overview, short_number};
use crate::counts;
use crate::judge;

/// The page of a run: first how it went, and what is wrong if something is; then all of it over time.
pub fn page(report: &RunReport) -> Page {
    let mut page = Page::new(format!("percpu run, seed {}", report.seed));
    page.add(head(report));
    let moment = moment(report);
    if report.verdict != Verdict::Held {
        tell_failure(&mut page, report, &moment);
    }
    page.add(figures(report));
    if !report.timeline.cpus.is_empty() {
        page.section("timeline", "CPUs over time", overview::whole(&report.timeline, &moment));
        for (id, heading, chart) in overview::charts(&report.timeline, &moment) {
            page.section(
                id,
                heading,
                if id == "workloads" {
                    html! { (workloads(report)) (chart) }
                } else {
                    chart
                },
            );
        }
    }
    page.section("invariants", "Invariants", invariants(report));
    page.section("run", "What was run", what(report));
    page
}

/// A few words for the moment at which things went wrong.
fn moment(report: &RunReport) -> String {
    match (report.verdict, report.violations.first()) {
        (_, Some(violation)) => format!("{} broken", violation.invariant),
        (Verdict::Hung, None) => "hung".into(),
        _ => "crashed".into(),
    }
}

fn head(report: &RunReport) -> Markup {
    let total = counts::total(report.checks.values().copied());
    let interrupted = if report.interrupted { " The run was interrupted." } else { "" };
    let (tone, word) = match report.verdict {
        Verdict::Held => (Tone::Good, "Held"),
        Verdict::Broken => (Tone::Bad, "Broken"),
        Verdict::Crashed => (Tone::Bad, "Crashed"),
        Verdict::Hung => (Tone::Bad, "Hung"),
    };
    let text = match (&report.crash, report.violations.first()) {
        (Some(crash), _) => html! { (crash.text) },
        (None, Some(violation)) => html! {
            b { (violation.invariant) } ": " (judge::meaning(violation.invariant)) "."
        },
        (None, None) => html! { (grouped(total)) " checks, no invariant broken." },
    };
    html! {
        (verdict(tone, word, html! { (text) (interrupted) }))
        @if report.verdict != Verdict::Held && !report.replay.is_empty() {
            p { "Once more, with the same choices (where the CPUs' turns fall is up to the hardware):" }
            (command(&report.replay))
        }
    }
}

/// What is wrong: what was seen, when, and what the CPUs did.
fn tell_failure(page: &mut Page, report: &RunReport, moment: &str) {
    let timeline = &report.timeline;
    if let Some(first) = report.violations.first() {
        let heading = format!("{} is broken", first.invariant);
        page.section("violation", &heading, failure::violation(first, timeline.moment));
    }
    if let Some(lanes) = overview::around(timeline, moment, report.verdict == Verdict::Hung) {
        page.section("moment", "The moment", lanes);
    }
    // Of a crash the CPU it is about tells most, of a violation the events do.
    let cpus = match &report.crash {
        Some(crash) => failure::crash(crash),
        None => html! {
            p.faint { "Where each CPU was when the host had heard of it, a little later." }
            (failure::cpus(&report.broken_at))
        },
    };
    let events = failure::events(&report.events, report.violations.first(), "Seconds");
    if report.crash.is_some() {
        page.section("cpus", "Each CPU", cpus);
        page.section("events", "Events", events);
    } else {
        page.section("events", "Events", events);
        page.section("cpus", "Each CPU", cpus);
    }
    if report.violations.len() > 1 {
        page.section("others", "What else was found", others(report));
    }
}

fn others(report: &RunReport) -> Markup {
    let columns = [
        Column::text("Invariant"),
        Column::text("What was found"),
        Column::number("Times"),
        Column::wide("Event"),
    ];
    let mut table = Table::new("Violations after the first", columns).filter();
    for violation in &report.violations[1..] {
        table.row([
            html! { (violation.invariant) },
            html! { (violation.detail) },
            html! { (violation.times) },
            html! { "#" (violation.seq) },
        ]);
    }
    html! {
        (table)
        @if report.suppressed > 0 { p { "and " (grouped(report.suppressed)) " more" } }
    }
}

fn figures(report: &RunReport) -> Markup {
    let total = counts::total(report.checks.values().copied());
    let plugs = report.plugs.up + report.plugs.down;
    let operations = counts::total(report.workloads.iter().map(|workload| workload.ops));
    tiles([
        (format!("{:.1} s", report.seconds), "under load"),
        (grouped(plugs), "plugs and unplugs"),
        (short_number(operations as f64), "operations"),
        (short_number(total as f64), "checks"),
        (grouped(report.violations.len() as u64 + report.suppressed), "violations"),
        (report.cpus.max_online.to_string(), "CPUs online at most"),
    ])
}

fn workloads(report: &RunReport) -> Markup {
    let columns = [
        Column::text("Workload"),
        Column::number("Operations"),
        Column::number("a second"),
        Column::number("least on a CPU"),
    ];
    let mut table = Table::new("Operations of each workload", columns);
    for workload in &report.workloads {
        table.row([
            html! { (workload.name) },
            html! { (grouped(workload.ops)) },
            html! { (short_number(workload.ops as f64 / report.seconds.max(1e-3))) },
            html! { (grouped(workload.least_on_a_cpu)) },
        ]);
    }
    html! { (table) }
}

fn invariants(report: &RunReport) -> Markup {
    let columns = [
        Column::text("Invariant"),
        Column::number("Checked"),
        Column::number("Broken"),
        Column::text("What it says"),
    ];
    let mut table = Table::new("How often each invariant was checked", columns).filter();
    for (name, checked, broken) in report.invariants() {
        let tone = if broken > 0 { Tone::Bad } else { Tone::Plain };
        table.row_in(
            tone,
            [
                html! { (name) },
                html! { (grouped(checked)) },
                html! { (broken) },
                html! { (judge::meaning(name)) },
            ],
        );
    }
    html! { (table) }
}

fn what(report: &RunReport) -> Markup {
    let (cpus, plugs, balance) = (&report.cpus, &report.plugs, &report.balance);
    html! {
        (facts([
            ("seed", html! { (report.seed) }),
            ("CPUs", html! {
                (cpus.possible) " possible, " (cpus.boot) " at boot, started by " (report.boot)
            }),
            ("engine", html! { (report.engine) ": " (report.engine_reason) }),
            ("ring", html! { (report.ring) }),
            ("plugs", html! {
                (grouped(plugs.up)) " up, " (grouped(plugs.down)) " down, " (grouped(plugs.failed))
                " failed; " (short_number(plugs.per_second)) " a second"
            }),
            ("balance", html! {
                (grouped(balance.done)) " times: " (grouped(balance.freed_chunks))
                " chunks freed, pages " (grouped(balance.populated_pages)) " populated, "
                (grouped(balance.depopulated_pages)) " depopulated; "
                (grouped(balance.atomic_failures)) " atomic failures"
            }),
            ("time", html! {
                (format!("{:.1} s, first instruction after {:.0} ms", report.seconds, report.start_ms))
            }),
        ]))
        (command(&report.replay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::CpuReport;
    use crate::judge::Violation;
    use crate::report::page::assert_sound;
    use crate::report::timeline::Recorder;
    use crate::report::{Crash, EventReport, Sample, Timeline, WorkloadReport};
    use percpu_guest::abi::CpuState;

    const HOSTILE: &str = "<script>alert(1)</script>\u{1b}[31m";

    fn timeline() -> Timeline {
        let mut recorder = Recorder::new(2, vec!["statics".into(), "alloc".into()]);
        recorder.changed(0, 0.0, 0, CpuState::Online);
        recorder.booted(0, 1);
        for tenth in 0..30u32 {
            let at = f64::from(tenth) / 10.0;
            recorder.ordered(at, 1, tenth % 2 == 0);
            let state = if tenth % 2 == 0 { CpuState::Online } else { CpuState::Dead };
            recorder.changed((at * 1e6) as u64 + 500, at + 0.001, 1, state);
            let error = (tenth % 7 == 6).then(|| HOSTILE.to_owned());
            recorder.answered((at * 1e6) as u64 + 900, at + 0.001, 1, tenth % 2 == 0, error);
            let ops = vec![vec![u64::from(tenth) * 100, 5], vec![u64::from(tenth) * 50, 2]];
            recorder.sample(Sample { at, areas: tenth.into(), ops, ..Sample::default() });
        }
        recorder.mark(Some(2_500_000), 3.0);
        recorder.end(3.0)
    }

    fn broken() -> RunReport {
        let violation = Violation {
            seq: 7,
            symbol: Some("percpu_guest::COUNTERS+0x40".into()),
            ..Violation::new("K2", format!("counter 0x40 {HOSTILE}"), HOSTILE)
                .values(8, "less than 6")
        };
        let event = |seq, after| EventReport {
            seq,
            at: Some(2.5),
            text: format!("alloc {HOSTILE}"),
            after,
            ..EventReport::default()
        };
        RunReport {
            verdict: Verdict::Broken,
            checks: [("K2".to_owned(), 12), ("I1".to_owned(), 3)].into(),
            violations: vec![violation.clone(), violation],
            events: vec![event(6, false), event(7, false), event(12, true)],
            broken_at: vec![CpuReport { log: vec![HOSTILE.into()], ..CpuReport::new(0, None) }],
            workloads: vec![WorkloadReport { name: HOSTILE.into(), ops: 7, least_on_a_cpu: 3 }],
            replay: "cargo xtask run --seed 1".into(),
            timeline: timeline(),
            ..RunReport::default()
        }
    }

    #[test]
    fn a_page_of_a_run_is_sound_whatever_the_guest_wrote() {
        let crash = Crash {
            text: HOSTILE.into(),
            cpus: vec![CpuReport {
                stack: vec![HOSTILE.into()],
                events: vec![HOSTILE.into()],
                ..CpuReport::new(1, None).note("panicked")
            }],
        };
        let crashed = RunReport { verdict: Verdict::Crashed, crash: Some(crash), ..broken() };
        for report in [RunReport::default(), broken(), crashed] {
            let text = page(&report).render();
            assert_sound(&text);
            assert!(!text.contains("<script>alert") && !text.contains('\u{1b}'));
        }
    }

    #[test]
    fn what_is_broken_comes_first_with_what_was_seen_and_how_to_see_it_again() {
        let text = page(&broken()).render();
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what}"));
        let order = [
            "<strong>Broken",
            "no local reaches the batch",
            "cargo xtask run --seed 1",
            "less than 6",
            "percpu_guest::COUNTERS+0x40",
            "id=\"moment\"",
            "id=\"e6\"",
            "is seen to be broken",
            "4 events that are not told",
            "id=\"e12\"",
            "id=\"timeline\"",
            "How often each invariant was checked",
        ];
        let places: Vec<_> = order.iter().map(|what| at(what)).collect();
        assert!(places.is_sorted(), "{places:?}");
        assert!(text.contains("href=\"#e7\""), "a link to the event");
        assert!(text.matches("K2 broken</text>").count() == 2, "the moment is marked in both");
    }

    #[test]
    fn each_cpu_has_a_lane_and_its_failures_are_in_it() {
        let text = page(&broken()).render();
        for cpu in ["CPU 0", "CPU 1"] {
            assert!(text.matches(&format!(">{cpu}</text>")).count() == 2, "{cpu}");
        }
        assert!(text.contains("class=\"span p-failed\""));
        assert!(text.contains("failed, rolled back: &lt;script&gt;"));
        assert!(text.contains("CPU 0, statics: 2 900 operations"), "{text}");
    }
}
