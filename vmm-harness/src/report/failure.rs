//! The parts of a page that tell of what went wrong: violations, events, CPUs.

use maud::{Markup, html};

use super::page::{Column, Table, Tone, facts, folded};
use super::{Crash, EventReport};
use crate::diag::CpuReport;
use crate::judge::{self, Violation};

/// A violation: what is broken, what it says, what was seen in place of what, and where.
pub(crate) fn violation(violation: &Violation, at: Option<f64>) -> Markup {
    let Violation { invariant, cpu, object, seen, expected, detail, seq, tsc, times, symbol } =
        violation;
    let mut lines = vec![(
        "invariant",
        html! {
            b { (invariant) } @if !judge::meaning(invariant).is_empty() { ": " (judge::meaning(invariant)) }
        },
    )];
    if !seen.is_empty() || !expected.is_empty() {
        lines.push(("seen", html! { code.bad { (seen) } }));
        lines.push(("expected", html! { code { (expected) } }));
    }
    lines.push((
        "where",
        html! {
            code { (object) }
            @if let Some(symbol) = symbol { ", which is in " code { (symbol) } }
        },
    ));
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

/// Events of all CPUs, one below the other, with the moment of the violation among them.
pub(crate) fn events(events: &[EventReport], violation: Option<&Violation>) -> Markup {
    let columns = [
        Column::text("Event"),
        Column::number("Seconds"),
        Column::number("CPU"),
        Column::number("Thread"),
        Column::text("What"),
    ];
    let caption = "The guest's events, of all CPUs in the order in which they happened";
    let mut table = Table::new(caption, columns).filter();
    let mut before: Option<&EventReport> = None;
    let mut told = false;
    let seen = |table: &mut Table, violation: &Violation| {
        let what =
            html! { b { (violation.invariant) " is seen to be broken: " } (violation.detail) };
        let empty = || html! {};
        table.row_in(Tone::Bad, [html! { "here" }, empty(), empty(), empty(), what]);
    };
    for event in events {
        if event.after
            && !told
            && let Some(violation) = violation
        {
            seen(&mut table, violation);
            told = true;
        }
        if let Some(before) = before
            && event.seq > before.seq + 1
        {
            let skipped = event.seq - before.seq - 1;
            table.row([
                html! { "..." },
                html! {},
                html! {},
                html! {},
                html! {
                    span.faint { (skipped) " events that are not told here" }
                },
            ]);
        }
        let tone = if event.about { Tone::Good } else { Tone::Plain };
        table.row_in(tone, [
            html! { span id={ "e" (event.seq) } { "#" (event.seq) } },
            html! { @if let Some(at) = event.at { (format!("{at:.6}")) } @else { (event.tsc) } },
            html! { (event.cpu) },
            html! { @if let Some(thread) = event.thread { (thread) } },
            html! { (event.text) },
        ]);
        before = Some(event);
    }
    if let Some(violation) = violation.filter(|_| !told) {
        seen(&mut table, violation);
    }
    html! {
        @if events.iter().any(|event| event.about) {
            p.faint { "Shaded rows name the object in question. A thread is a workload's, by number; none: the kernel's own." }
        }
        (table)
    }
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
