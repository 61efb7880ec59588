//! The parts of a page that tell of what went wrong: violations, events, CPUs.

use maud::{Markup, html};

use super::page::{Column, Table, Tone, facts, folded};
use super::{Crash, EventReport};
use crate::diag::CpuReport;
use crate::judge::{self, Violation};

/// Events before the moment in question that are not folded.
const OPEN: usize = 40;

/// A violation: what is broken, what it says, what was seen in place of what, and where.
pub(crate) fn violation(violation: &Violation, at: Option<f64>) -> Markup {
    let Violation { invariant, cpu, detail, seq, tsc, times, .. } = violation;
    let meaning = judge::meaning(invariant);
    let name = html! { b { (invariant) } @if !meaning.is_empty() { ": " (meaning) } };
    let mut lines = vec![("invariant", name)];
    lines.extend(seen(violation));
    if let Some(cpu) = cpu {
        lines.push(("CPU", html! { (cpu) }));
    }
    lines.push((
        "when",
        html! {
            "after event " a href={ "#e" (seq) } { "#" (seq) }
            @if let Some(at) = at { (format!(", {at:.6} s after the guest had booted")) }
            span.faint { ", time stamp " (tsc) }
            @if *times > 1 { "; seen " (times) " times" }
        },
    ));
    html! {
        p { (detail) }
        (facts(lines))
    }
}

/// What a violation saw in place of what, and where.
pub(crate) fn seen(violation: &Violation) -> Vec<(&'static str, Markup)> {
    let Violation { object, seen, expected, symbol, .. } = violation;
    let mut lines = Vec::new();
    if !seen.is_empty() || !expected.is_empty() {
        lines.push(("seen", html! { code.bad { (seen) } }));
        lines.push(("expected", html! { code { (expected) } }));
    }
    let place = html! {
        code { (object) }
        @if let Some(symbol) = symbol { ", which is in " code { (symbol) } }
    };
    lines.push(("where", place));
    lines
}

/// Events of all CPUs, one below the other, with the moment of the violation among them; `unit` is that
/// of time stamps. Of many the earlier ones are folded.
pub(crate) fn events(events: &[EventReport], violation: Option<&Violation>, unit: &str) -> Markup {
    let seen = events.iter().position(|event| event.after).unwrap_or(events.len());
    let (early, late) = events.split_at(seen.saturating_sub(OPEN));
    html! {
        @if events.iter().any(|event| event.about) {
            p.faint {
                "Shaded rows name the object in question. A thread is a workload's, by number; none: \
                 the kernel's own."
            }
        }
        @if !early.is_empty() {
            (folded(html! { (early.len()) " earlier events" }, html! {
                (event_table("Earlier events", early, None, unit))
            }))
        }
        (event_table(
            "The guest's events, of all CPUs in the order in which they happened",
            late,
            violation,
            unit,
        ))
    }
}

fn event_table(
    caption: &str,
    events: &[EventReport],
    violation: Option<&Violation>,
    unit: &str,
) -> Table {
    let columns = [
        Column::number("Event"),
        Column::number(unit),
        Column::number("CPU"),
        Column::wide("Thread"),
        Column::text("What"),
    ];
    let mut table = Table::new(caption, columns).filter();
    let mut moment = violation.map(|violation| {
        let what =
            html! { b { (violation.invariant) " is seen to be broken: " } (violation.detail) };
        [html! { "here" }, html! {}, html! {}, html! {}, what]
    });
    let mut before = None;
    for event in events {
        if event.after
            && let Some(cells) = moment.take()
        {
            table.row_in(Tone::Bad, cells);
        }
        if let Some(before) = before
            && event.seq > before + 1
        {
            let skipped = event.seq - before - 1;
            let text = html! { span.faint { (skipped) " events that are not told here" } };
            table.row([html! { "..." }, html! {}, html! {}, html! {}, text]);
        }
        let tone = if event.about { Tone::Good } else { Tone::Plain };
        table.row_in(tone, [
            html! { span id={ "e" (event.seq) } { "#" (event.seq) } },
            html! { @if let Some(at) = event.at { (format!("{at:.6}")) } @else { (event.tsc) } },
            html! { (event.cpu) },
            html! { @if let Some(thread) = event.thread { (thread) } },
            html! { (event.text) },
        ]);
        before = Some(event.seq);
    }
    if let Some(cells) = moment {
        table.row_in(Tone::Bad, cells);
    }
    table
}

/// Every CPU of a crash or a hang: those that it is about open, the others folded.
pub(crate) fn crash(crash: &Crash) -> Markup {
    cpus(&crash.cpus)
}

/// Every CPU, with registers, stack, events and log; those with a note are open.
pub(crate) fn cpus(cpus: &[CpuReport]) -> Markup {
    html! { @for cpu in cpus {
        @if cpu.note.is_empty() {
            (folded(html! { (heading(cpu)) }, one_cpu(cpu)))
        } @else {
            details open { summary { (heading(cpu)) } div.inside { (one_cpu(cpu)) } }
        }
    } }
}

fn heading(cpu: &CpuReport) -> Markup {
    html! {
        b { "CPU " (cpu.cpu) } ": " (cpu.state)
        @match cpu.masked {
            Some(true) => ", interrupts masked",
            Some(false) => ", interrupts open",
            None => "",
        }
        @if !cpu.note.is_empty() { ", " b.bad { (cpu.note) } }
        @if let Some(frame) = cpu.stack.first() { span.faint { " - " (frame) } }
    }
}

fn one_cpu(cpu: &CpuReport) -> Markup {
    html! {
        @if !cpu.stack.is_empty() {
            h3 { "Stack, the innermost first" }
            ol.stack start="0" { @for frame in &cpu.stack { li { code { (frame) } } } }
        }
        @if let Some(registers) = &cpu.registers {
            h3 { "Registers" }
            pre.text { (registers) }
        }
        @if !cpu.events.is_empty() {
            h3 { "Its last events" }
            pre.text { @for event in &cpu.events { (event) "\n" } }
        }
        @if !cpu.log.is_empty() {
            h3 { "What it printed last" }
            pre.text { @for line in &cpu.log { (line) "\n" } }
        }
        @if cpu.stack.is_empty() && cpu.registers.is_none() && cpu.events.is_empty() {
            p.faint { "Nothing is known of it but its state." }
        }
    }
}
