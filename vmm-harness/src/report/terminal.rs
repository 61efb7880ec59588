//! The table at the end of a run.

use std::io::{self, IsTerminal, Write};

use super::{RunReport, Verdict, grouped, short_number};
use crate::judge;
use crate::vm::Engine;

/// Whether colours belong on this stream: it is a terminal, and the environment does not object.
///
/// `NO_COLOR` (not empty) is stronger than `CLICOLOR_FORCE` (not 0), which asks for colours everywhere,
/// and that than `CLICOLOR=0`.
pub fn colours_wanted(stream: &impl IsTerminal) -> bool {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    colours(stream.is_terminal(), variable)
}

fn colours(is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> bool {
    if variable("NO_COLOR").is_some() {
        return false;
    }
    if variable("CLICOLOR_FORCE").is_some_and(|value| value != "0") {
        return true;
    }
    is_terminal && variable("CLICOLOR").is_none_or(|value| value != "0")
}

/// Colours, or none.
#[derive(Clone, Copy)]
pub(crate) struct Paint(pub(crate) bool);

impl Paint {
    pub(crate) fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.with("1;32", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }
}

/// Writes the report as a table.
pub fn write_table(out: &mut impl Write, report: &RunReport, colours: bool) -> io::Result<()> {
    let paint = Paint(colours);
    if let Some(crash) = &report.crash {
        writeln!(out, "{}", paint.bad(&crash.text))?;
        for cpu in &crash.cpus {
            write!(out, "\n{cpu}")?;
        }
        writeln!(out)?;
    }
    write_cpus(out, report, paint)?;
    write_workloads(out, report, paint)?;
    write_allocator(out, report, paint)?;
    write_checks(out, report, paint)?;
    write_violations(out, report, paint)?;
    write_verdict(out, report, paint)
}

fn write_cpus(out: &mut impl Write, report: &RunReport, paint: Paint) -> io::Result<()> {
    let (cpus, plugs) = (&report.cpus, &report.plugs);
    let label = |text: &str| paint.bold(&format!("{text:<10}"));
    match report.engine {
        Engine::Kvm => writeln!(out, "{} kvm, {}", label("engine"), report.engine_reason),
        Engine::Threads => writeln!(
            out,
            "{} threads of this process, no virtual machine: {}",
            label("engine"),
            report.engine_reason
        ),
    }?;
    writeln!(
        out,
        "{} {} possible, {} at boot ({}), {} online at most; ring {}",
        label("CPUs"),
        cpus.possible,
        cpus.boot,
        report.boot,
        cpus.max_online,
        report.ring
    )?;
    writeln!(
        out,
        "{} {} up, {} down, {} failed, {}/s",
        label("plugs"),
        grouped(plugs.up),
        grouped(plugs.down),
        grouped(plugs.failed),
        short_number(plugs.per_second)
    )?;
    writeln!(
        out,
        "{} {:.1} s, first instruction after {:.0} ms, seed {}",
        label("time"),
        report.seconds,
        report.start_ms,
        report.seed
    )
}

fn write_workloads(out: &mut impl Write, report: &RunReport, paint: Paint) -> io::Result<()> {
    if report.workloads.is_empty() {
        return Ok(());
    }
    let head = format!(
        "{:<10} {:>16} {:>10} {:>16}",
        "workload", "operations", "a second", "least on a CPU"
    );
    writeln!(out, "\n{}", paint.bold(&head))?;
    for workload in &report.workloads {
        let rate = workload.ops as f64 / report.seconds.max(1e-3);
        writeln!(
            out,
            "{:<10} {:>16} {:>10} {:>16}",
            workload.name,
            grouped(workload.ops),
            short_number(rate),
            grouped(workload.least_on_a_cpu)
        )?;
    }
    Ok(())
}

fn write_allocator(out: &mut impl Write, report: &RunReport, paint: Paint) -> io::Result<()> {
    let balance = &report.balance;
    if balance.done == 0 {
        return Ok(());
    }
    writeln!(
        out,
        "\n{} {} times: {} chunks freed, pages {} populated, {} depopulated; {} atomic failures",
        paint.bold("balance   "),
        grouped(balance.done),
        grouped(balance.freed_chunks),
        grouped(balance.populated_pages),
        grouped(balance.depopulated_pages),
        grouped(balance.atomic_failures),
    )?;
    if let Some(trace) = &report.trace {
        writeln!(
            out,
            "{} {} passes, {} operations",
            paint.bold("trace     "),
            grouped(trace.passes),
            grouped(trace.ops),
        )?;
    }
    Ok(())
}

fn write_checks(out: &mut impl Write, report: &RunReport, paint: Paint) -> io::Result<()> {
    if report.checks.is_empty() {
        return Ok(());
    }
    let head =
        format!("{:<10} {:>16} {:>10}  {}", "invariant", "checked", "broken", "what it says");
    writeln!(out, "\n{}", paint.bold(&head))?;
    for (name, checked, broken) in report.invariants() {
        let count = format!("{broken:>10}");
        let count = if broken > 0 { paint.bad(&count) } else { count };
        let meaning = paint.dim(judge::meaning(name));
        writeln!(out, "{name:<10} {:>16} {count}  {meaning}", grouped(checked))?;
    }
    Ok(())
}

fn write_violations(out: &mut impl Write, report: &RunReport, paint: Paint) -> io::Result<()> {
    if report.violations.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    for violation in &report.violations {
        let text = violation.to_string();
        let (head, rest) = text.split_once(':').unwrap_or(("", &text));
        writeln!(out, "{}:{rest}", paint.bad(head))?;
        writeln!(
            out,
            "  {}",
            paint.dim(&format!("after event #{} at tsc {}", violation.seq, violation.tsc))
        )?;
    }
    if report.suppressed > 0 {
        writeln!(out, "... and {} more", grouped(report.suppressed))?;
    }
    Ok(())
}

fn write_verdict(out: &mut impl Write, report: &RunReport, paint: Paint) -> io::Result<()> {
    let total = crate::counts::total(report.checks.values().copied());
    let mut line = match report.verdict {
        Verdict::Held => {
            let line = format!("held: {} checks, no invariant broken", grouped(total));
            paint.good(&line)
        }
        Verdict::Broken if report.violations.is_empty() => paint.bad("broken"),
        Verdict::Broken => {
            let broken = report.violations.len() as u64 + report.suppressed;
            paint.bad(&format!(
                "broken: {} violations in {} checks",
                grouped(broken),
                grouped(total)
            ))
        }
        Verdict::Crashed => paint.bad("crashed: see the top of this report"),
        Verdict::Hung => paint.bad("hung: see the top of this report"),
    };
    if report.interrupted {
        line.push_str(" (interrupted)");
    }
    writeln!(out, "\n{line}")?;
    if report.verdict != Verdict::Held && !report.replay.is_empty() {
        writeln!(out, "again: {}", report.replay)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::diag::CpuReport;
    use crate::judge::Violation;
    use crate::report::{Crash, WorkloadReport};

    fn text(report: &RunReport, colours: bool) -> String {
        let mut out = Vec::new();
        write_table(&mut out, report, colours).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn report() -> RunReport {
        RunReport {
            seconds: 2.0,
            workloads: vec![WorkloadReport { name: "alloc".into(), ops: 4000, least_on_a_cpu: 17 }],
            checks: BTreeMap::from([("I10".into(), 5), ("I2".into(), 1234)]),
            ..RunReport::default()
        }
    }

    #[test]
    fn colours_are_for_terminals_unless_the_environment_says_otherwise() {
        let colours = |is_terminal, set: &[(&str, &str)]| {
            let variable = |name: &str| {
                set.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
            };
            super::colours(is_terminal, variable)
        };
        assert!(colours(true, &[]) && !colours(false, &[]));
        assert!(!colours(true, &[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]));
        assert!(colours(false, &[("CLICOLOR_FORCE", "1")]));
        assert!(!colours(true, &[("CLICOLOR", "0")]) && colours(true, &[("CLICOLOR", "1")]));
        assert!(!colours(false, &[("CLICOLOR", "1")]));
        assert!(!colours(false, &[("CLICOLOR_FORCE", "0")]));
    }

    #[test]
    fn a_run_that_held_says_so_and_shows_rates_in_order() {
        let text = text(&report(), false);
        assert!(text.ends_with("held: 1 239 checks, no invariant broken\n"), "{text}");
        assert!(text.contains("alloc                 4 000     2.00 k               17"), "{text}");
        assert!(text.find("\nI2 ").unwrap() < text.find("\nI10 ").unwrap(), "{text}");
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn a_broken_invariant_is_counted_explained_and_replayable() {
        let report = RunReport {
            verdict: Verdict::Broken,
            violations: vec![Violation::new("I2", "chunk", "granule 7 is taken")],
            replay: "vmm-harness run --seed 7".into(),
            ..report()
        };
        let plain = text(&report, false);
        assert!(plain.contains("I2 broken: granule 7 is taken\n"), "{plain}");
        assert!(plain.contains("again: vmm-harness run --seed 7"), "{plain}");
        assert!(text(&report, true).contains("\x1b[1;31mI2 broken\x1b[0m: granule 7"));
    }

    #[test]
    fn a_crash_shows_every_cpu() {
        let cpus = (0..3).map(|cpu| CpuReport::new(cpu, None)).collect();
        let crash = Some(Crash { text: "CPU 1 panicked".into(), cpus });
        let text = text(&RunReport { verdict: Verdict::Crashed, crash, ..report() }, false);
        assert!(text.starts_with("CPU 1 panicked\n\nCPU 0: unknown\n\nCPU 1"), "{text}");
    }
}
