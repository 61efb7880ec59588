//! The pages of the deterministic machine: of a campaign, and of one run.

use maud::{Markup, html};

use super::MachineKind;
use super::failure::{Failure, MinimalReport};
use super::picture::{Drawing, DrawnRow, Ran, Standing};
use super::report::FuzzReport;
use super::scenario_report::ScenarioReport;
use super::told::Told;
use crate::coverage::{self, Coverage, SourceCoverage};
use crate::judge;
use crate::report::page::{Column, Page, Table, Tone, command, facts, folded, tiles, verdict};
use crate::report::{failure, grouped, short_number};

/// Rows of a whole trace that are shown, the last ones.
const MOST_ROWS: usize = 4000;

/// The page of a campaign.
pub fn campaign_page(report: &FuzzReport, coverage: Option<&SourceCoverage>) -> Page {
    let mut page = page(format!("percpu fuzz, {}", seeds(report)));
    let kinds = report.kinds();
    page.add(match kinds.as_slice() {
        [] => {
            let text = html! {
                (grouped(report.runs)) " runs, no invariant broken"
                @if report.interrupted { "; interrupted" } "."
            };
            verdict(Tone::Good, "Held", text)
        }
        kinds => {
            let n = report.failures.len();
            let text = html! {
                ul { @for (n, (failure, times)) in kinds.iter().enumerate() {
                    li {
                        a href={ "#failure-" (n + 1) } { b { (failure.what) } }
                        @if !judge::meaning(&failure.what).is_empty() { ": " (judge::meaning(&failure.what)) }
                        @if *times > 1 { ", " (times) " times" }
                    }
                } }
            };
            verdict(Tone::Bad, &format!("{n} failed"), text)
        }
    });
    if let Some(error) = &report.error {
        page.add(verdict(Tone::Bad, "Ended early", html! { (error) }));
    }
    for (n, (failure, times)) in kinds.iter().enumerate() {
        let heading = format!("Failure {}: {}", n + 1, failure.what);
        page.section(&format!("failure-{}", n + 1), &heading, one_failure(failure, *times));
    }
    page.section("campaign", "The campaign", summary(report));
    if let Some(coverage) = coverage {
        page.section("coverage", "Code that runs reached", coverage::section(coverage));
    }
    page
}

/// The page of one run, replayed or minimised.
pub fn scenario_page(report: &ScenarioReport) -> Page {
    let mut page = page(format!("percpu {}, seed {}", report.command, report.seed));
    let told = &report.told;
    page.add(match (told.violations.first(), &told.crash) {
        (Some(violation), _) => verdict(
            Tone::Bad,
            "Broken",
            html! {
                b { (violation.invariant) } ": " (judge::meaning(violation.invariant)) "."
            },
        ),
        (None, Some(crash)) => verdict(Tone::Bad, &report.verdict, html! { (crash.text) }),
        (None, None) => verdict(
            Tone::Good,
            "Held",
            html! {
                (grouped(report.checks)) " checks, no invariant broken."
            },
        ),
    });
    if let Some(likeness) = &report.likeness {
        page.add(html! { p { (likeness) } });
    }
    if let Some(replay) = &report.replay {
        page.add(command(replay));
    }
    tell(&mut page, told);
    page.section(
        "scenario",
        "What was run",
        html! {
            p { (report.scenario) }
            @if !report.listed.is_empty() { ul { @for line in &report.listed { li { (line) } } } }
            @if let Some(minimal) = &report.minimal { (dropped(minimal)) }
            (tiles([
                (grouped(report.steps), "steps"),
                (grouped(report.points), "points"),
                (grouped(report.plugs), "plugs"),
                (grouped(report.failed_plugs), "plugs failed"),
                (grouped(report.checks), "checks"),
                (grouped(report.exits), "exits"),
            ]))
            (facts([
                ("trace", html! { code { (report.hash) } }),
                ("guest", html! { code { (report.image) } ", ring " (report.ring) }),
            ]))
        },
    );
    let (all, left_out) = last_rows(&report.trace);
    let summary = html! { (grouped(report.trace.rows.len() as u64)) " turns and orders" };
    page.section("trace", "The whole run", folded(summary, html! {
        @if left_out > 0 { p.faint { "The first " (grouped(left_out as u64)) " are left out." } }
        (rows(all, report.trace.cpus))
    }));
    page
}

fn page(title: String) -> Page {
    Page::new(title).style(STYLE)
}

const STYLE: &str = concat!(include_str!("page.css"), "\n", include_str!("../coverage/page.css"));

fn seeds(report: &FuzzReport) -> String {
    match report.seeds.as_slice() {
        [] => "no seeds".into(),
        [(from, to)] => format!("seeds {from}..{to}"),
        [(from, _), .., (_, to)] => format!("seeds from {from} to {to}"),
    }
}

/// What a failure shows, in sections.
fn tell(page: &mut Page, told: &Told) {
    if let Some(first) = told.violations.first() {
        let heading = format!("{} is broken", first.invariant);
        page.section("violation", &heading, failure::violation(first, None));
    }
    page.section(
        "picture",
        "How it came to that, CPU by CPU",
        html! {
            (key())
            (rows(&told.drawing.rows, told.drawing.cpus))
        },
    );
    if !told.cpus().is_empty() {
        page.section("cpus", "Each CPU", failure::cpus(told.cpus()));
    }
    if !told.events.is_empty() {
        let events = failure::events(&told.events, told.violations.first(), "Step");
        page.section("events", "Events", events);
    }
}

/// A failure of a campaign.
fn one_failure(failure: &Failure, times: usize) -> Markup {
    let Failure { seed, changed, detail, scenario, steps, minimal, note, told, .. } = failure;
    html! {
        pre.detail { (detail) }
        @if minimal.is_none() { (found(told.as_ref())) }
        (facts([
            ("seed", html! {
                (seed) @if *changed { ", its scenario changed" }
                @if times > 1 { ", and " (times - 1) " more that fail like it" }
            }),
            ("scenario", html! { (scenario) }),
            ("at step", html! { (grouped(*steps)) }),
            ("found", html! {
                "after " (grouped(failure.found_after_runs)) " runs, "
                (format!("{:.1} s", failure.found_after_seconds))
            }),
            ("known by", html! { (failure.key) }),
        ]))
        @if let Some(note) = note { p { (note) } }
        (command(&failure.replay))
        @if let Some(minimise) = &failure.minimise { (command(minimise)) }
        @if let Some(minimal) = minimal { (dropped(minimal)) }
        @if let Some(told) = told {
            h3 {
                @if minimal.is_some() { "What is left of it, CPU by CPU" }
                @else { "How it came to that, CPU by CPU" }
            }
            @if minimal.is_some() { (found(Some(told))) }
            (key())
            (rows(&told.drawing.rows, told.drawing.cpus))
            (failure::cpus(told.cpus()))
        }
    }
}

/// What a run found, and where.
fn found(told: Option<&Told>) -> Markup {
    let Some(violation) = told.and_then(|told| told.violations.first()) else { return html! {} };
    let mut lines = vec![("found", html! { (violation.detail) })];
    lines.extend(failure::seen(violation));
    facts(lines)
}

/// What minimising has dropped.
fn dropped(minimal: &MinimalReport) -> Markup {
    let columns = [Column::text("What"), Column::number("Before"), Column::number("Left")];
    let caption = format!("What it fails without, found in {} runs", grouped(minimal.runs));
    let mut table = Table::new(caption, columns);
    for row in &minimal.dropped {
        let tone = if row.before == row.left { Tone::Plain } else { Tone::Good };
        table.row_in(tone, [html! { (row.what) }, html! { (row.before) }, html! { (row.left) }]);
    }
    html! {
        p { "Left: " (minimal.scenario) }
        @if !table.is_empty() { (table) }
    }
}

fn summary(report: &FuzzReport) -> Markup {
    let runs = report.runs.max(1) as f64;
    let each = |sum: u64| short_number(sum as f64 / runs);
    let of_edges = report.coverage.as_ref().map_or(0, Coverage::edges);
    html! {
        (tiles([
            (grouped(report.runs), "runs"),
            (format!("{:.1} s", report.seconds), "time"),
            (short_number(report.runs_per_second), "runs a second"),
            (grouped(report.checks), "checks"),
            (grouped(report.failures.len() as u64), "failures"),
            (grouped(report.plugs + report.failed_plugs), "plugs"),
        ]))
        (facts([
            ("seeds", html! { (seeds(report)) }),
            ("a run", html! {
                (each(report.plugs + report.failed_plugs)) " plugs (" (each(report.failed_plugs))
                " failed), " (each(report.checks)) " checks, " (each(report.steps)) " steps, "
                (each(report.exits)) " exits"
            }),
            ("reached", html! {
                @if report.machine == MachineKind::Deterministic {
                    (grouped(report.edges as u64)) " of " (grouped(of_edges as u64))
                    " edges, switches at " (grouped(report.switches as u64)) " pairs of places"
                } @else { "not counted: all CPUs at once" }
            }),
            ("corpus", html! { (grouped(report.corpus as u64)) " scenarios" }),
            ("equal runs", html! {
                @if report.verify { (report.verified) " of " (report.runs) } @else { "not asked for" }
            }),
            ("guest", html! { code { (report.image) } ", engine " (report.engine) ", ring " (report.ring) }),
        ]))
    }
}

fn last_rows(drawing: &Drawing) -> (&[DrawnRow], usize) {
    let left_out = drawing.rows.len().saturating_sub(MOST_ROWS);
    (&drawing.rows[left_out..], left_out)
}

/// What the marks in the columns of CPUs mean.
fn key() -> Markup {
    let marks = [
        ("c-runs", "runs"),
        ("c-stopped", "was made to stop, and is on its way"),
        ("c-waiting", "waits in a loop"),
        ("c-idle", "idle"),
        ("c-off", "off"),
    ];
    html! { ul.legend { @for (class, text) in marks { li { span.cpu.(class) {} " " (text) } } } }
}

/// The rows of a drawing: a column a CPU, then what the one that ran did.
fn rows(rows: &[DrawnRow], cpus: u32) -> Markup {
    html! {
        div.scroll { table.turns {
            caption { "From above: each row is a stretch for which one CPU ran" }
            thead { tr {
                th scope="col" class="n" { "to step" }
                th scope="col" { "CPUs 0.." (cpus.saturating_sub(1)) }
                th scope="col" { "What it did, and where it stood then" }
            } }
            tbody { @for row in rows { (one_row(row)) } }
        } }
    }
}

fn one_row(row: &DrawnRow) -> Markup {
    match row {
        DrawnRow::Order { steps, text } => html! {
            tr.order { th scope="row" class="n" { (steps) } td {} td { "the host: " (text) } }
        },
        DrawnRow::Folded(text) => html! {
            tr.faint { th scope="row" class="n" { "..." } td {} td.faint { (text) } }
        },
        DrawnRow::Ran(ran) => html! {
            tr.struck[ran.change.is_some()].last[ran.is_last] {
                th scope="row" class="n" { (ran.steps) }
                td class="cpus" { (lanes(ran)) }
                td { (stretch(ran)) }
            }
        },
    }
}

fn lanes(ran: &Ran) -> Markup {
    html! { @for (cpu, standing) in (0u32..).zip(&ran.lanes) {
        @let (class, word) = match standing {
            _ if cpu == ran.cpu => ("c-runs", "runs"),
            Standing::Stopped => ("c-stopped", "was made to stop"),
            Standing::Waiting => ("c-waiting", "waits"),
            Standing::Idle => ("c-idle", "idle"),
            Standing::Off => ("c-off", "off"),
        };
        span.cpu.(class) title={ "CPU " (cpu) " " (word) } { @if cpu == ran.cpu { (cpu) } }
    } }
}

fn stretch(ran: &Ran) -> Markup {
    html! {
        div { b { "CPU " (ran.cpu) } }
        @for note in &ran.notes { div { (note) } }
        @if let Some(spot) = &ran.spot {
            div { code { (spot.text) } }
            @if !spot.source.is_empty() {
                details open[ran.change.is_some() || ran.is_last] {
                    summary { "source" }
                    pre.spot { @for line in &spot.source {
                        span.here[line.line == spot.line] {
                            (format!("{:>5}  ", line.line)) (line.text) "\n"
                        }
                    } }
                }
            }
        }
        div.why {
            "\u{2192} " (ran.why)
            @if let Some(change) = ran.change { b.mark { " (change " (change) " of the schedule)" } }
        }
    }
}
