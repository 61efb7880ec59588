//! The parts of a page that show a run over time.

use maud::{Markup, html};

use super::chart::{Area, Axis, Lane, Lanes, Lines, Span as Bar};
use super::page::folded;
use super::timeline::{CpuLane, Phase, Sample, Timeline};
use super::{grouped, short_number};

/// Of a lane's drawing of operations, points at most.
const POINTS: usize = 120;
/// Seconds around the moment in question that are drawn large: before and after it.
const BEFORE: f64 = 0.25;
const AFTER: f64 = 0.02;
/// The same before a hang, which is noticed seconds after it began.
const BEFORE_HANG: f64 = 4.5;
/// Up to so many seconds all is drawn anyway.
const SHORT: f64 = 0.4;

/// Kinds of spans: of each phase the class and what it means, then the sums of what is long ago.
fn kinds() -> Vec<(&'static str, String)> {
    let phase = |phase: Phase| match phase {
        Phase::Off => ("s7", "off"),
        Phase::Preparing => ("p-preparing", "ordered to come up"),
        Phase::Starting => ("p-starting", "STARTING"),
        Phase::Online => ("p-online", "online"),
        Phase::Leaving => ("p-leaving", "ordered to go down"),
        Phase::Dying => ("p-dying", "dying, interrupts masked"),
        Phase::Dead => ("p-dead", "dead, being cleared up"),
        Phase::Failed => ("p-failed", "failed, rolled back"),
        Phase::Crashed => ("p-failed", "crashed"),
    };
    let mut kinds: Vec<_> = Phase::ALL.into_iter().map(phase).collect();
    kinds.push(("p-older", "long ago: the part of the time that it was online"));
    kinds.into_iter().map(|(class, meaning)| (class, meaning.to_owned())).collect()
}

fn kind(phase: Phase) -> usize {
    Phase::ALL.iter().position(|one| *one == phase).unwrap_or(0)
}

/// A length of time with a fitting unit.
pub(crate) fn length(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

fn bars(lane: &CpuLane, stretch: f64) -> Vec<Bar> {
    let first = lane.spans.first().map_or(f64::INFINITY, |span| span.from);
    let older = (0u32..).zip(&lane.older).filter_map(|(n, sum)| {
        let from = f64::from(n) * stretch;
        let to = (from + stretch).min(first);
        let length = (to - from).max(1e-9);
        (to > from && sum.online + sum.moving > 0.0).then(|| Bar {
            from,
            to,
            kind: Phase::ALL.len(),
            strength: (sum.online / length).clamp(0.05, 1.0),
            title: format!(
                "{:.0}% of the time online from {from:.2} s to {to:.2} s, came up {} times, {} orders failed",
                100.0 * (sum.online / length).min(1.0),
                sum.ups,
                sum.failed
            ),
        })
    });
    let kinds = kinds();
    let spans = lane.spans.iter().map(|span| {
        let kind = kind(span.phase);
        let why = span.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
        let title = format!(
            "{}{why}, {}, from {:.6} s to {:.6} s",
            kinds[kind].1,
            length(span.to - span.from),
            span.from,
            span.to
        );
        Bar { from: span.from, to: span.to, kind, strength: 1.0, title }
    });
    older.chain(spans).collect()
}

/// Operations of each workload on a CPU, as parts of what nearly every CPU did at most: a peak must not
/// make all else flat.
fn areas(timeline: &Timeline, cpu: usize) -> Vec<Area> {
    let steps = samples(timeline, (f64::NEG_INFINITY, f64::INFINITY));
    let rate = |cpu: usize, workload: usize, pair: &[&Sample]| {
        let of = |sample: &Sample| {
            sample.ops.get(cpu).and_then(|ops| ops.get(workload)).copied().unwrap_or(0)
        };
        of(pair[1]).saturating_sub(of(pair[0])) as f64 / (pair[1].at - pair[0].at).max(1e-6)
    };
    let cpus = timeline.cpus.len();
    (0..timeline.workloads.len())
        .map(|workload| {
            let mut rates: Vec<f64> = steps
                .windows(2)
                .flat_map(|pair| (0..cpus).map(move |cpu| rate(cpu, workload, pair)))
                .filter(|rate| *rate > 0.0)
                .collect();
            rates.sort_by(f64::total_cmp);
            let most = rates.get(rates.len() * 9 / 10).copied().unwrap_or(1.0);
            let points = steps.windows(2).flat_map(|pair| {
                let height = rate(cpu, workload, pair) / most;
                [(pair[0].at, height), (pair[1].at, height)]
            });
            let first = steps.first().and_then(|s| s.ops.get(cpu)?.get(workload).copied());
            let last = steps.last().and_then(|s| s.ops.get(cpu)?.get(workload).copied());
            let all = last.unwrap_or(0).saturating_sub(first.unwrap_or(0));
            Area {
                class: format!("s{}", workload % 8),
                title: format!("{}: {} operations", timeline.workloads[workload], grouped(all)),
                points: points.collect(),
            }
        })
        .collect()
}

/// Samples of a stretch of time, not more than can be drawn.
fn samples(timeline: &Timeline, (from, to): (f64, f64)) -> Vec<&Sample> {
    let inside: Vec<_> =
        timeline.samples.iter().filter(|sample| (from..=to).contains(&sample.at)).collect();
    let every = inside.len().div_ceil(POINTS).max(1);
    let last = inside.len().saturating_sub(1);
    let keep = |(n, sample): (usize, &'_ _)| (n % every == 0 || n == last).then_some(*sample);
    inside.iter().enumerate().filter_map(|(n, sample)| keep((n, sample))).collect()
}

/// The lanes of all CPUs in a stretch of time.
fn lanes(timeline: &Timeline, caption: &str, range: (f64, f64), moment: &str) -> Lanes {
    let kinds = kinds();
    let mut used: Vec<bool> = vec![false; kinds.len()];
    let lanes: Vec<Lane> = timeline
        .cpus
        .iter()
        .enumerate()
        .map(|(n, lane)| {
            let spans: Vec<_> = bars(lane, timeline.stretch_seconds)
                .into_iter()
                .filter(|bar| bar.to >= range.0 && bar.from <= range.1)
                .collect();
            spans.iter().for_each(|bar| used[bar.kind] = true);
            let name = format!("CPU {}", lane.cpu);
            Lane { name, spans, areas: areas(timeline, n) }
        })
        .collect();
    let workloads = timeline
        .workloads
        .iter()
        .enumerate()
        .map(|(n, name)| (format!("s{}", n % 8), name.clone()))
        .collect();
    Lanes {
        caption: caption.into(),
        x: Axis::new("seconds since the guest had booted").format(seconds),
        range,
        kinds,
        used,
        areas: workloads,
        lanes,
        moment: timeline.moment.map(|at| (at, moment.to_owned())),
    }
}

/// Seconds on an axis.
fn seconds(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The lanes of a whole run.
pub(crate) fn whole(timeline: &Timeline, moment: &str) -> Markup {
    let caption = "CPUs over time: what each was in, and below, how much of each workload it did";
    let lanes = lanes(timeline, caption, (0.0, timeline.end.max(1e-3)), moment);
    html! { (lanes) (orders(timeline)) }
}

/// The lanes around the moment in question, if there is more than that.
pub(crate) fn around(timeline: &Timeline, moment: &str, is_hang: bool) -> Option<Markup> {
    let before = if is_hang { BEFORE_HANG } else { BEFORE };
    let at = timeline.moment.filter(|_| timeline.end > SHORT)?;
    let range = ((at - before).max(0.0), (at + AFTER).min(timeline.end.max(at)));
    let caption = format!("CPUs from {} before it on", length(at - range.0));
    let lanes = lanes(timeline, &caption, range, moment);
    Some(html! { (lanes) })
}

/// How long plugs took, phase by phase.
fn orders(timeline: &Timeline) -> Markup {
    use super::page::{Column, Table};
    let columns = [
        Column::text("Phase"),
        Column::number("Times"),
        Column::number("Median"),
        Column::number("Longest"),
    ];
    let mut table = Table::new("Phases of plugs, as far as they are told in full", columns);
    let kinds = kinds();
    for phase in Phase::ALL {
        if matches!(phase, Phase::Off | Phase::Online) {
            continue;
        }
        let spans = timeline.cpus.iter().flat_map(|lane| &lane.spans);
        let mut lengths: Vec<f64> =
            spans.filter(|span| span.phase == phase).map(|span| span.to - span.from).collect();
        lengths.sort_by(f64::total_cmp);
        let Some(longest) = lengths.last() else { continue };
        let name = &kinds[kind(phase)].1;
        table.row([
            html! { (name) },
            html! { (grouped(lengths.len() as u64)) },
            html! { (length(lengths[lengths.len() / 2])) },
            html! { (length(*longest)) },
        ]);
    }
    html! { @if !table.is_empty() { (folded(html! { "How long plugs took" }, html! { (table) })) } }
}

fn line(timeline: &Timeline, value: impl Fn(&Sample) -> u64) -> Vec<(f64, f64)> {
    timeline.samples.iter().map(|sample| (sample.at, value(sample) as f64)).collect()
}

/// What is counted, a second.
fn rate(timeline: &Timeline, value: impl Fn(&Sample) -> u64) -> Vec<(f64, f64)> {
    let samples = samples(timeline, (f64::NEG_INFINITY, f64::INFINITY));
    let rate = |pair: &[&Sample]| {
        let more = value(pair[1]).saturating_sub(value(pair[0])) as f64;
        (pair[1].at, more / (pair[1].at - pair[0].at).max(1e-6))
    };
    samples.windows(2).map(rate).collect()
}

/// Charts of everything that was sampled.
pub(crate) fn charts(
    timeline: &Timeline,
    moment: &str,
) -> Vec<(&'static str, &'static str, Markup)> {
    let chart = |caption: &str, unit: &str, lines: Vec<(String, Vec<(f64, f64)>)>| {
        let x = Axis::new("seconds").format(seconds);
        let mut chart = Lines::new(caption, x, Axis::new(unit).format(short_number));
        for (name, points) in lines {
            chart = chart.line(name, points);
        }
        if let Some(at) = timeline.moment {
            chart = chart.mark(at, moment);
        }
        html! { (chart) }
    };
    let one = |name: &str, points| (name.to_owned(), points);
    let of = |value: fn(&Sample) -> u64| line(timeline, value);
    let workloads = timeline.workloads.iter().enumerate().map(|(n, name)| {
        let sum = move |sample: &Sample| {
            sample.ops.iter().filter_map(|ops| ops.get(n)).fold(0, |a: u64, b| a.wrapping_add(*b))
        };
        (name.clone(), rate(timeline, sum))
    });
    vec![
        (
            "workloads",
            "Workloads",
            chart("Operations of all CPUs", "operations a second", workloads.collect()),
        ),
        (
            "allocator",
            "Allocator",
            html! {
                (chart("Live areas", "areas", vec![one("areas", of(|s| s.areas))]))
                (chart("Bytes of live areas, a CPU", "bytes", vec![one("bytes", of(|s| s.bytes))]))
                (chart("Memory", "pages", vec![
                    one("page frames, of all CPUs", of(|s| s.frames)),
                    one("empty populated pages", of(|s| s.empty_pages)),
                ]))
                (chart("Chunks", "chunks", vec![one("chunks", of(|s| s.chunks))]))
                (chart("So far", "times", vec![
                    one("balanced", of(|s| s.balances)),
                    one("atomic allocations that found no room", of(|s| s.atomic_failures)),
                ]))
            },
        ),
        (
            "counters",
            "Counters and sums",
            chart(
                "That are alive",
                "",
                vec![one("counters", of(|s| s.counters)), one("other sums", of(|s| s.sums))],
            ),
        ),
        (
            "judge",
            "Plugs and the judge",
            html! {
                (chart("Plugs and unplugs", "a second", vec![
                    one("fulfilled", rate(timeline, |s| s.plugs)),
                    one("failed", rate(timeline, |s| s.failed_plugs)),
                ]))
                (chart("Checks", "a second", vec![one("checks", rate(timeline, |s| s.checks))]))
                (chart("So far", "times", vec![
                    one("quiescent points", of(|s| s.quiets)),
                    one("trials", of(|s| s.trials)),
                ]))
            },
        ),
    ]
}
