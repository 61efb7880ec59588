//! The tables for people: a group after the other, and two reports side by side.

use std::io::{self, Write};

use super::compare::{Comparison, Verdict};
use super::report::BenchReport;
use super::row::Row;
use crate::report::Paint;

/// From so many columns on, tables tell all.
const WIDE: usize = 110;
/// The point of a series that is shown in full; the others are in the table of growth.
const SHOWN: u32 = 8;
/// Series of fewer points are shown in full.
const FEW: usize = 3;

/// Writes the report as tables, for a terminal of so many columns.
pub fn write_table(
    out: &mut impl Write,
    report: &BenchReport,
    columns: usize,
    colours: bool,
) -> io::Result<()> {
    let paint = Paint(colours);
    if let Some(crash) = &report.crash {
        writeln!(out, "{}\n{crash}", paint.bad("A guest did not go on:"))?;
    }
    let host = &report.host;
    writeln!(
        out,
        "{}, {} cores, Linux {}, {} ({}), ring {}{}",
        host.cpu,
        host.cores,
        host.kernel,
        host.engine,
        host.kvm,
        host.ring,
        report.commit.as_ref().map_or(String::new(), |commit| format!("; commit {commit}"))
    )?;
    for group in report.groups() {
        writeln!(
            out,
            "\n{}",
            paint.bold(&format!("── {group} {}", "─".repeat(columns.min(100) - group.len() - 4)))
        )?;
        let rows: Vec<&Row> = report.of_group(group).collect();
        write_rows(out, &rows, columns, paint)?;
        write_growth(out, &rows, columns, paint)?;
    }
    if !report.notes.is_empty() {
        writeln!(out)?;
    }
    for note in &report.notes {
        writeln!(out, "{}", paint.dim(&format!("note: {note}")))?;
    }
    if report.quick {
        writeln!(out, "A tenth of the work (--quick): numbers to look at, not to quote.")?;
    }
    if report.interrupted {
        writeln!(out, "(interrupted)")?;
    }
    Ok(())
}

/// Points of the row's series.
fn points(rows: &[&Row], row: &Row) -> Vec<u32> {
    rows.iter().filter(|other| other.is_beside(row)).filter_map(|other| other.x).collect()
}

/// Whether a row is shown in full: it is no point of a long series, or the one that stands for it.
pub(super) fn is_shown(rows: &[&Row], row: &Row) -> bool {
    let points = points(rows, row);
    if row.x.is_none() || points.len() < FEW {
        return true;
    }
    let stands = points.iter().filter(|&&x| x <= SHOWN).max().or(points.iter().min());
    row.x.as_ref() == stands
}

fn write_rows(out: &mut impl Write, rows: &[&Row], columns: usize, paint: Paint) -> io::Result<()> {
    let wide = columns >= WIDE;
    let shown: Vec<&Row> = rows.iter().copied().filter(|row| is_shown(rows, row)).collect();
    let name = name_width(shown.iter().map(|row| row.title()), if wide { 44 } else { 34 });
    let mut last = None;
    for row in &shown {
        let roles: Vec<&str> = row.beside.iter().map(|beside| beside.role.as_str()).collect();
        if last != Some((&row.family, roles.clone())) {
            let heads = details(row, wide).into_iter().map(|(head, _)| format!(" {head:>9}"));
            let roles_heads = roles.iter().map(|role| format!(" {:>8}", format!("/ {role}")));
            let heads: String = heads.chain(roles_heads).collect();
            let head = format!("{:<name$} {:>9}{heads}", cut(&row.family, name), "value");
            writeln!(out, "\n{}", paint.bold(&head))?;
            last = Some((&row.family, roles));
        }
        write_row(out, row, name, wide, paint)?;
    }
    Ok(())
}

/// What there is to show of a row between its value and its yardsticks: heading and content. Where
/// there are yardsticks there is less room.
fn details(row: &Row, wide: bool) -> Vec<(&'static str, String)> {
    let (values, show) = (&row.values, |value| row.unit.show(value));
    let noise = ("noise", row.relative_noise().map_or("?".into(), percent));
    match (row.beside.is_empty(), wide) {
        (false, false) => Vec::new(),
        (false, true) => {
            vec![("median", show(values.median)), ("p99", show(values.p99)), noise]
        }
        (true, _) => {
            let max = values.max.map_or(String::new(), show);
            let least = wide.then(|| ("min", show(values.min)));
            least.into_iter().chain([("p99", show(values.p99)), ("max", max), noise]).collect()
        }
    }
}

fn write_row(
    out: &mut impl Write,
    row: &Row,
    name: usize,
    wide: bool,
    paint: Paint,
) -> io::Result<()> {
    write!(out, "{:<name$}", cut(&row.title(), name))?;
    if row.values.rounds == 0 {
        return writeln!(out, " could not be measured here");
    }
    write!(out, " {:>9}", row.unit.show(row.values.value))?;
    for (_, content) in details(row, wide) {
        write!(out, " {content:>9}")?;
    }
    for beside in &row.beside {
        write!(out, " {:>8}", row.times(&beside.role).map_or(String::new(), times))?;
    }
    match (row.target, row.met()) {
        (Some(target), Some(true)) if wide => writeln!(out, "  {target}: {}", paint.good("met")),
        (Some(target), Some(false)) if wide => writeln!(out, "  {target}: {}", paint.bad("MISSED")),
        (Some(_), Some(true)) => writeln!(out, "  {}", paint.good("met")),
        (Some(_), Some(false)) => writeln!(out, "  {}", paint.bad("MISSED")),
        _ => writeln!(out),
    }
}

/// The values that count, of series with several points: a column a point.
fn write_growth(
    out: &mut impl Write,
    rows: &[&Row],
    columns: usize,
    paint: Paint,
) -> io::Result<()> {
    let series: Vec<&Row> = rows
        .iter()
        .enumerate()
        .filter(|(at, row)| {
            points(rows, row).len() >= FEW && !rows[..*at].iter().any(|other| other.is_beside(row))
        })
        .map(|(_, row)| *row)
        .collect();
    if series.is_empty() {
        return Ok(());
    }
    let mut xs: Vec<u32> = series.iter().flat_map(|row| points(rows, row)).collect();
    xs.sort_unstable();
    xs.dedup();
    let label = |row: &Row| row.name.clone();
    let room = columns.saturating_sub(9 * xs.len()).clamp(16, 44);
    let name = name_width(series.iter().map(|row| label(row)), room);
    let mut family = None;
    for row in series {
        if family != Some(&row.family) {
            let points: String = xs.iter().map(|x| format!(" {x:>8}")).collect();
            let by = format!("{}, by {}", row.family, row.axis);
            let by = if by.chars().count() <= name { &by } else { &row.family };
            let head = format!("{:<name$}{points}", cut(by, name));
            writeln!(out, "\n{}", paint.bold(&head))?;
            family = Some(&row.family);
        }
        write!(out, "{:<name$}", cut(&label(row), name))?;
        for x in &xs {
            let point = rows.iter().find(|r| r.is_beside(row) && r.x == Some(*x));
            let value = point.filter(|row| row.values.rounds > 0);
            write!(
                out,
                " {:>8}",
                value.map_or(String::new(), |row| row.unit.show(row.values.value))
            )?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Writes two reports side by side.
pub fn write_comparison(
    out: &mut impl Write,
    comparison: &Comparison,
    columns: usize,
    colours: bool,
) -> io::Result<()> {
    let paint = Paint(colours);
    writeln!(out, "\n{}", paint.bold(&format!("compared with {}", comparison.old)))?;
    for warning in &comparison.warnings {
        writeln!(out, "{}", paint.bad(&format!("warning: {warning}")))?;
    }
    let title = |row: &Row| row.title();
    let room = columns.saturating_sub(46).clamp(30, 60);
    let name = name_width(comparison.rows.iter().map(|row| title(&row.new)), room);
    let mut heading = None;
    for row in &comparison.rows {
        if heading != Some((&row.new.group, &row.new.family)) {
            heading = Some((&row.new.group, &row.new.family));
            let family = cut(&format!("{}: {}", row.new.group, row.new.family), name);
            let head = format!(
                "{family:<name$} {:>9} {:>9} {:>6} {:>6} {:>6}",
                "old", "new", "ratio", "yards.", "noise"
            );
            writeln!(out, "\n{}", paint.bold(&head))?;
        }
        let verdict = match row.verdict {
            Verdict::Same => String::new(),
            Verdict::Better => paint.good(" better"),
            Verdict::Worse => paint.bad(" WORSE"),
            Verdict::Host => paint.dim(" host"),
        };
        writeln!(
            out,
            "{:<name$} {:>9} {:>9} {:>6} {:>6} {:>6}{verdict}",
            cut(&title(&row.new), name),
            row.old.unit.show(row.old.values.value),
            row.new.unit.show(row.new.values.value),
            times(row.ratio),
            row.yardstick.map_or(String::new(), times),
            row.noise.map_or("?".into(), percent),
        )?;
    }
    for (what, rows) in [("missing", &comparison.missing), ("new", &comparison.added)] {
        for row in rows {
            writeln!(out, "{what}: {}: {}: {}", row.group, row.family, title(row))?;
        }
    }
    writeln!(
        out,
        "\n{} rows in both: {} worse and {} better beyond the noise, {} as far as their yardstick; \
         {} missing, {} new",
        comparison.rows.len(),
        comparison.count(Verdict::Worse),
        comparison.count(Verdict::Better),
        comparison.count(Verdict::Host),
        comparison.missing.len(),
        comparison.added.len()
    )
}

/// Columns for names, `most` at most.
fn name_width(names: impl Iterator<Item = String>, most: usize) -> usize {
    names.map(|name| name.chars().count()).max().unwrap_or(0).clamp(16, most)
}

/// A name in so many columns.
fn cut(name: &str, width: usize) -> String {
    if name.chars().count() <= width {
        return name.to_owned();
    }
    name.chars().take(width - 1).chain(['…']).collect()
}

/// A ratio in three digits or so.
fn times(ratio: f64) -> String {
    match ratio {
        ratio if !ratio.is_finite() => String::new(),
        100.0.. => format!("{ratio:.0}"),
        10.0.. => format!("{ratio:.1}"),
        _ => format!("{ratio:.2}"),
    }
}

fn percent(part: f64) -> String {
    if part < 10.0 { format!("{:.0} %", 100.0 * part) } else { ">999 %".into() }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::with_rows as report;
    use super::super::row::Target;
    use super::super::row::tests::row;
    use super::*;

    fn text(report: &BenchReport, columns: usize) -> String {
        let mut out = Vec::new();
        write_table(&mut out, report, columns, false).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_says_which_targets_were_missed() {
        let target = |bound| Some(Target::TimesBare(bound));
        let mut unmeasured = row("cmpxchg", None, 0.0);
        unmeasured.values.rounds = 0;
        let rows = vec![
            Row { target: target(1.1), ..row("add", None, 2.0) },
            Row { target: target(2.0), ..row("read", None, 2.0) },
            unmeasured,
        ];
        for (columns, met, missed) in
            [(80, "  met", "  MISSED"), (120, "2 x bare: met", "1.1 x bare: MISSED")]
        {
            let text = text(&report(rows.clone()), columns);
            let line = |name: &str| {
                let found = text.lines().find(|line| line.starts_with(name));
                found.unwrap_or_else(|| panic!("{name} is not in {text}")).to_owned()
            };
            assert!(line("add ").ends_with(missed), "{text}");
            assert!(line("read ").ends_with(met), "{text}");
            assert!(line("cmpxchg ").ends_with("could not be measured here"), "{text}");
            assert!(line("add ").contains("2.00 ns") && line("add ").contains("0.20"), "{text}");
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{text}");
        }
    }

    #[test]
    fn a_series_is_shown_at_one_point_and_as_it_grows() {
        let rows = [1, 2, 8, 64].map(|x| row("sum", Some(x), f64::from(x) * 100.0)).to_vec();
        let text = text(&report(rows), 80);
        assert_eq!(text.matches("sum, 8 CPUs").count(), 1, "{text}");
        assert!(!text.contains("sum, 64 CPUs"), "{text}");
        let growth = text.lines().last().unwrap();
        let cells: Vec<_> = growth.split_whitespace().collect();
        assert_eq!(cells, ["sum", "100", "ns", "200", "ns", "800", "ns", "6.40", "µs"], "{text}");
    }

    #[test]
    fn a_comparison_lists_what_is_in_one_only() {
        let old = report(vec![row("add", None, 1.0), row("gone", None, 1.0)]);
        let new = report(vec![row("add", None, 2.0), row("come", None, 1.0)]);
        let mut out = Vec::new();
        write_comparison(&mut out, &Comparison::of(&old, &new), 80, false).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("missing: core: this_cpu: gone"), "{text}");
        assert!(text.contains("new: core: this_cpu: come"), "{text}");
        let line = text.lines().find(|line| line.starts_with("add ")).unwrap();
        assert!(line.contains("2.00   1.00") && line.ends_with("WORSE"), "{text}");
        assert!(text.contains("1 rows in both: 1 worse and 0 better"), "{text}");
    }
}
