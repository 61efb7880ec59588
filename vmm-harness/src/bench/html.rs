//! The report as a page: bars beside the yardsticks, lines that grow with CPUs, and every figure.

use maud::{Markup, html};

use super::compare::{Comparison, Verdict};
use super::report::BenchReport;
use super::row::{Row, Unit};
use super::terminal::is_shown;
use crate::report::chart::{Axis, Bars, Lines};
use crate::report::page::{self, Column, Page, Table, Tone};

/// Series of fewer points are no line.
const FEW: usize = 3;

/// The report, and what it was compared with, as a page.
pub fn page(report: &BenchReport, comparison: Option<&Comparison>) -> Page {
    let mut page = Page::new("percpu benchmark");
    page.add(summary(report, comparison));
    if let Some(crash) = &report.crash {
        let cpus = html! { pre.text { (crash) } };
        page.section("crash", "A guest did not go on", cpus);
    }
    if let Some(comparison) = comparison {
        page.section("compared", "Compared", compared(comparison));
    }
    for group in report.groups() {
        let rows: Vec<&Row> = report.of_group(group).collect();
        page.section(&slug(group), group, of_group(&rows));
    }
    page
}

fn summary(report: &BenchReport, comparison: Option<&Comparison>) -> Markup {
    let host = &report.host;
    let met: Vec<bool> = report.rows.iter().filter_map(Row::met).collect();
    let missed = met.iter().filter(|met| !**met).count();
    let measured = report.rows.iter().filter(|row| row.values.rounds > 0).count();
    let mut tiles = vec![
        (measured.to_string(), "rows measured"),
        (format!("{} of {}", met.len() - missed, met.len()), "targets met"),
    ];
    if let Some(comparison) = comparison {
        tiles.push((comparison.count(Verdict::Worse).to_string(), "rows worse than before"));
        tiles.push((comparison.count(Verdict::Better).to_string(), "rows better than before"));
    }
    let engine = format!("{} ({}), ring {}", host.engine, host.kvm, host.ring);
    let commit = report.commit.as_deref().unwrap_or("unknown");
    html! {
        @if report.crash.is_some() || report.interrupted {
            (page::verdict(Tone::Bad, "incomplete", html! { "It ended before all was measured." }))
        }
        @if report.quick {
            p { "A tenth of the work (" code { "--quick" } "): numbers to look at, not to quote." }
        }
        (page::tiles(tiles))
        (page::facts([
            ("CPU", html! { (host.cpu) ", " (host.cores) " cores" }),
            ("kernel", html! { "Linux " (host.kernel) }),
            ("guests", html! { (engine) }),
            ("commit", html! { (commit) }),
            ("date", html! { (report.date) }),
        ]))
        @if !report.notes.is_empty() {
            ul { @for note in &report.notes { li.faint { (note) } } }
        }
    }
}

fn of_group(rows: &[&Row]) -> Markup {
    html! {
        @for family in families(rows) {
            @let of_family: Vec<&Row> =
                rows.iter().copied().filter(|row| row.family == family).collect();
            (beside_yardsticks(family, &of_family))
        }
        (growth(rows))
        (page::folded(html! { "All figures" }, figures(rows)))
    }
}

fn families<'a>(rows: &[&'a Row]) -> Vec<&'a str> {
    let mut families: Vec<&str> = Vec::new();
    for row in rows {
        if !families.contains(&row.family.as_str()) {
            families.push(&row.family);
        }
    }
    families
}

/// Bars of the rows that have yardsticks, in nanoseconds; of a long series one point.
fn beside_yardsticks(family: &str, rows: &[&Row]) -> Markup {
    let rows: Vec<_> = rows
        .iter()
        .filter(|row| is_shown(rows, row))
        .filter(|row| !row.beside.is_empty() && row.values.rounds > 0)
        .filter(|row| row.unit == Unit::Nanoseconds)
        .collect();
    let Some(first) = rows.first() else { return html! {} };
    let roles: Vec<&str> = first.beside.iter().map(|beside| beside.role.as_str()).collect();
    let axis = axis("time of an operation", Unit::Nanoseconds).log();
    let mut bars = Bars::new(family, axis, std::iter::once("percpu").chain(roles.iter().copied()));
    for row in rows {
        let mut values = vec![Some(row.values.value)];
        values.extend(roles.iter().map(|role| row.yardstick(role).map(|beside| beside.value)));
        bars.group(row.title(), values);
    }
    html! { (bars) }
}

/// A chart of series, by their name and one row of each.
struct Chart<'a> {
    caption: &'a str,
    unit: Unit,
    lines: Vec<(&'a str, &'a Row)>,
}

/// Lines of the rows that are series. What several families have is one chart, with a line each; what
/// one alone has is a line in the family's.
fn growth(rows: &[&Row]) -> Markup {
    let points =
        |row: &Row| rows.iter().filter(|other| other.x.is_some() && other.is_beside(row)).count();
    let series: Vec<&Row> = rows
        .iter()
        .enumerate()
        .filter(|(at, row)| {
            row.x.is_some()
                && points(row) >= FEW
                && !rows[..*at].iter().any(|other| other.is_beside(row))
        })
        .map(|(_, row)| *row)
        .collect();
    let shared = |row: &Row| series.iter().filter(|other| other.name == row.name).count() > 1;
    let mut charts: Vec<Chart<'_>> = Vec::new();
    for row in &series {
        let (caption, line) =
            if shared(row) { (&row.name, &row.family) } else { (&row.family, &row.name) };
        let known = charts.iter_mut().find(|c| c.caption == caption && c.unit == row.unit);
        match known {
            Some(chart) => chart.lines.push((line, row)),
            None => charts.push(Chart { caption, unit: row.unit, lines: vec![(line, row)] }),
        }
    }
    let draw = |Chart { caption, unit, lines }: &Chart<'_>| {
        let axis_name = lines.first().map_or("", |(_, row)| row.axis.as_str());
        let mut ticks: Vec<f64> = Vec::new();
        let mut drawn = Vec::new();
        for (name, row) in lines {
            let of_series = rows.iter().filter(|other| other.is_beside(row));
            let mut points: Vec<(f64, f64)> = of_series
                .filter(|row| row.values.rounds > 0)
                .filter_map(|row| Some((f64::from(row.x?), row.values.value)))
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            ticks.extend(points.iter().map(|point| point.0));
            drawn.push((name, points));
        }
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let x = Axis::new(axis_name).log().ticks(ticks).format(|x| format!("{x:.0}"));
        let chart = Lines::new(*caption, x, axis(unit_label(*unit), *unit).log());
        let chart =
            drawn.into_iter().fold(chart, |chart, (name, points)| chart.line(*name, points));
        html! { (chart) }
    };
    // What is a part of something, by its name, is folded away.
    let (parts, whole): (Vec<_>, Vec<_>) =
        charts.iter().partition(|chart| chart.caption.contains(", "));
    html! {
        @for chart in whole { (draw(chart)) }
        @if !parts.is_empty() {
            (page::folded(html! { "By steps" }, html! { @for chart in parts { (draw(chart)) } }))
        }
    }
}

fn axis(label: &str, unit: Unit) -> Axis {
    let format: fn(f64) -> String = match unit {
        Unit::Nanoseconds => |value| Unit::Nanoseconds.show(value),
        Unit::PerSecond => |value| Unit::PerSecond.show(value),
        Unit::Bytes => |value| Unit::Bytes.show(value),
        Unit::Number => |value| Unit::Number.show(value),
    };
    Axis::new(label).format(format)
}

fn unit_label(unit: Unit) -> &'static str {
    match unit {
        Unit::Nanoseconds => "time",
        Unit::PerSecond => "a second",
        Unit::Bytes => "memory",
        Unit::Number => "number",
    }
}

fn figures(rows: &[&Row]) -> Markup {
    let columns = [
        Column::text("What"),
        Column::number("Value"),
        Column::number("Median"),
        Column::number("p99"),
        Column::number("Noise"),
        Column::wide("Beside"),
        Column::wide("Target"),
    ];
    html! {
        @for family in families(rows) {
            @let table = {
                let mut table = Table::new(family, columns.clone());
                for row in rows.iter().filter(|row| row.family == family) {
                    table.row_in(tone(row.met()), figures_of(row));
                }
                table
            };
            (table)
        }
    }
}

fn percent(part: Option<f64>) -> String {
    part.map_or("?".into(), |part| format!("{:.0} %", 100.0 * part))
}

/// A target that was missed stands out.
fn tone(met: Option<bool>) -> Tone {
    if met == Some(false) { Tone::Bad } else { Tone::Plain }
}

fn figures_of(row: &Row) -> Vec<Markup> {
    let values = &row.values;
    if values.rounds == 0 {
        let mut cells = vec![html! { (row.title()) }, html! { "not here" }];
        cells.resize_with(7, || html! {});
        return cells;
    }
    let show = |value: f64| html! { (row.unit.show(value)) };
    let beside: Vec<_> = row
        .beside
        .iter()
        .map(|beside| format!("{} {} ({})", beside.role, row.unit.show(beside.value), beside.name))
        .collect();
    let target = row
        .target
        .zip(row.met())
        .map(|(target, met)| format!("{target}: {}", if met { "met" } else { "missed" }));
    vec![
        html! { (row.title()) },
        show(values.value),
        show(values.median),
        show(values.p99),
        html! { (percent(row.relative_noise())) },
        html! { (beside.join(", ")) },
        html! { (target.unwrap_or_default()) },
    ]
}

fn compared(comparison: &Comparison) -> Markup {
    let columns = [
        Column::text("What"),
        Column::number("Before"),
        Column::number("Now"),
        Column::number("Ratio"),
        Column::number("Yardstick"),
        Column::number("Noise"),
        Column::text(""),
    ];
    let caption = "Rows beyond the noise first. Ratio: now divided by before; below 1 is less.";
    let mut table = Table::new(caption, columns).filter();
    let mut rows: Vec<_> = comparison.rows.iter().collect();
    rows.sort_by_key(|row| match row.verdict {
        Verdict::Worse => 0,
        Verdict::Better => 1,
        Verdict::Host => 2,
        Verdict::Same => 3,
    });
    for row in rows {
        let (tone, word) = match row.verdict {
            Verdict::Worse => (Tone::Bad, "worse"),
            Verdict::Better => (Tone::Good, "better"),
            Verdict::Host => (Tone::Plain, "as the yardstick"),
            Verdict::Same => (Tone::Plain, ""),
        };
        let title = format!("{}: {}: {}", row.new.group, row.new.family, row.new.title());
        table.row_in(
            tone,
            [
                html! { (title) },
                html! { (row.old.unit.show(row.old.values.value)) },
                html! { (row.new.unit.show(row.new.values.value)) },
                html! { (format!("{:.2}", row.ratio)) },
                html! { (row.yardstick.map_or(String::new(), |ratio| format!("{ratio:.2}"))) },
                html! { (percent(row.noise)) },
                html! { (word) },
            ],
        );
    }
    let list = |heading: &str, rows: &[Row]| {
        html! {
            @if !rows.is_empty() {
                h3 { (heading) }
                ul { @for row in rows {
                    li { (row.group) ": " (row.family) ": " (row.title()) }
                } }
            }
        }
    };
    html! {
        p { "With " (comparison.old) "." }
        @for warning in &comparison.warnings { p.bad { (warning) } }
        (table)
        (list("In the earlier report only", &comparison.missing))
        (list("In this report only", &comparison.added))
    }
}

/// Letters and digits of a group's name, which another program may have made.
fn slug(group: &str) -> String {
    let mut slug: String =
        group.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    slug.insert_str(0, "group-");
    slug
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::with_rows as report;
    use super::super::row::Target;
    use super::super::row::tests::row;
    use super::*;

    #[test]
    fn the_page_has_bars_lines_and_figures_and_nothing_runs_in_it() {
        let mut rows = vec![Row { target: Some(Target::TimesBare(1.1)), ..row("add", None, 2.0) }];
        rows.extend([1, 8, 64].map(|x| row("<script>sum", Some(x), f64::from(x))));
        let old = report(vec![row("add", None, 1.0), row("gone", None, 1.0)]);
        let new = report(rows);
        let text = page(&new, Some(&Comparison::of(&old, &new))).render();
        page::assert_sound(&text);
        assert_eq!(text.matches("<script>").count(), 1, "the page's own");
        assert!(text.contains("0 of 1") && text.contains("targets met"));
        assert!(text.contains("1.1 x bare: missed"));
        assert!(text.contains("core: this_cpu: gone"));
        assert!(text.contains("class=\"line s0\""), "a line that grows");
        assert!(text.contains("rect"), "bars");
    }

    #[test]
    fn an_empty_report_is_a_page_too() {
        page::assert_sound(&page(&report(Vec::new()), None).render());
    }
}
