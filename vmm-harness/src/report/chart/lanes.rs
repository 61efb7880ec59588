//! Lanes: what each of several things, CPUs for instance, is in over time.

use maud::{Markup, Render, html};

use super::axis::Axis;
use super::percent;
use crate::report::page::figure;

/// Height of a lane and of the space below it, in pixels.
const LANE: usize = 18;
const GAP: usize = 5;
/// Spans of a chart that are drawn, at most: the shortest are left out.
const MOST_SPANS: usize = 6000;

/// A stretch of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Its beginning.
    pub from: f64,
    /// Its end.
    pub to: f64,
    /// Which of the chart's kinds.
    pub kind: usize,
    /// What to say of it.
    pub title: String,
}

/// A moment in a lane.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// When.
    pub at: f64,
    /// What to say of it.
    pub title: String,
}

/// A lane.
#[derive(Clone, Debug, Default)]
pub struct Lane {
    /// What it is of.
    pub name: String,
    /// What it was in.
    pub spans: Vec<Span>,
    /// What happened in it.
    pub marks: Vec<Mark>,
}

/// A chart of lanes over one time.
#[derive(Clone, Debug)]
pub struct Lanes {
    /// What it shows.
    pub caption: String,
    /// Time.
    pub x: Axis,
    /// The part that is drawn.
    pub range: (f64, f64),
    /// Kinds of spans: the class of its colour, and what it means.
    pub kinds: Vec<(&'static str, String)>,
    /// The lanes, from above.
    pub lanes: Vec<Lane>,
    /// A moment that matters in all of them.
    pub moment: Option<(f64, String)>,
}

impl Lanes {
    /// The spans of a lane that are in range, cut to it; none that are shorter than `shortest`.
    fn cut<'a>(
        &'a self,
        lane: &'a Lane,
        shortest: f64,
    ) -> impl Iterator<Item = (f64, f64, &'a Span)> {
        let (from, to) = self.range;
        lane.spans.iter().filter_map(move |span| {
            let (begin, end) = (span.from.max(from), span.to.min(to));
            (end >= begin && span.to >= from && span.from <= to && end - begin >= shortest)
                .then_some((begin, end, span))
        })
    }

    /// How long a span must be to be drawn.
    fn shortest(&self) -> f64 {
        let lengths = self.lanes.iter().flat_map(|lane| self.cut(lane, 0.0));
        let mut lengths: Vec<_> = lengths.map(|(begin, end, _)| end - begin).collect();
        if lengths.len() <= MOST_SPANS {
            return 0.0;
        }
        lengths.sort_by(|a, b| b.total_cmp(a));
        // Above, not at: there may be many of that length.
        lengths[MOST_SPANS].next_up()
    }
}

impl Render for Lanes {
    fn render(&self) -> Markup {
        let (from, to) = self.range;
        let x = self.x.fit([from, to].into_iter(), true);
        let shortest = self.shortest();
        let height = self.lanes.len() * (LANE + GAP);
        let drawing = html! {
            svg.chart.lanes role="img" aria-label=(self.caption) height=(height) {
                @for (row, lane) in self.lanes.iter().enumerate() {
                    @let top = row * (LANE + GAP);
                    text x="-6" y=(top + LANE - 5) text-anchor="end" { (lane.name) }
                    rect.back x="0" y=(top) width="100%" height=(LANE) {}
                    @for (begin, end, span) in self.cut(lane, shortest) {
                        @let (left, right) = (x.place(begin), x.place(end));
                        @let class = self.kinds.get(span.kind).map_or("s7", |kind| kind.0);
                        g class=(class) {
                            rect.span x=(percent(left)) y=(top) height=(LANE)
                                width=(percent((right - left).max(0.0008)))
                            { title { (lane.name) ": " (span.title) } }
                        }
                    }
                    @for mark in lane.marks.iter().filter(|mark| (from..=to).contains(&mark.at)) {
                        circle.tick cx=(percent(x.place(mark.at))) cy=(top + LANE / 2) r="3.5" {
                            title { (lane.name) ": " (mark.title) }
                        }
                    }
                }
                @for (at, text) in x.ticks() {
                    line.grid x1=(percent(at)) x2=(percent(at)) y1=(height) y2=(height + 4) {}
                    text x=(percent(at)) y=(height + 16) text-anchor="middle" { (text) }
                }
                text x="100%" y=(height + 31) text-anchor="end" { (self.x.label) }
                @if let Some((at, text)) = &self.moment {
                    @let place = x.place(*at);
                    @let anchor = if place > 0.5 { "end" } else { "start" };
                    line.marked x1=(percent(place)) x2=(percent(place)) y1="-4" y2=(height) {
                        title { (text) }
                    }
                    text.marked-text x=(percent(place)) y="-8" text-anchor=(anchor) { (text) }
                }
            }
        };
        let legend = html! {
            ul.legend { @for (class, meaning) in &self.kinds { li { i class=(class) {} (meaning) } } }
        };
        figure(&self.caption, legend, drawing, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(spans: Vec<Span>) -> Lanes {
        Lanes {
            caption: "CPUs".into(),
            x: Axis::new("seconds"),
            range: (2.0, 4.0),
            kinds: vec![("s0", "online".into())],
            lanes: vec![Lane { name: "CPU 0".into(), spans, marks: Vec::new() }],
            moment: Some((3.0, "K2 <broken>".into())),
        }
    }

    fn span(from: f64, to: f64) -> Span {
        Span { from, to, kind: 0, title: "online".into() }
    }

    #[test]
    fn spans_are_cut_to_the_range() {
        let text =
            lanes(vec![span(0.0, 3.0), span(3.5, 9.0), span(0.0, 1.0)]).render().into_string();
        assert_eq!(text.matches("class=\"span\"").count(), 2, "{text}");
        assert!(text.contains("x=\"0.000%\" y=\"0\" height=\"18\" width=\"50.000%\""), "{text}");
        assert!(text.contains("x=\"75.000%\" y=\"0\" height=\"18\" width=\"25.000%\""), "{text}");
        assert!(text.contains("x1=\"50.000%\"") && text.contains("K2 &lt;broken&gt;"), "{text}");
    }

    #[test]
    fn of_too_many_spans_the_longest_are_drawn() {
        let at = |i: u32| 2.0 + f64::from(i) * 1e-4;
        let mut spans: Vec<_> = (0..20_000).map(|i| span(at(i), at(i) + 1e-5)).collect();
        spans[9].to = at(9) + 5e-5;
        let text = lanes(spans).render().into_string();
        let drawn = text.matches("class=\"span\"").count();
        assert!((1..=MOST_SPANS).contains(&drawn), "{drawn}");
    }
}
