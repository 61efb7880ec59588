//! Lanes: what each of several things, CPUs for instance, is in over time, and how much it does.

use maud::{Markup, Render, html};

use super::axis::{Axis, Fitted};
use super::percent;
use crate::report::page::figure;

/// Height of a lane's spans, of each of its areas, and of the space below it, in pixels.
const LANE: usize = 16;
const AREA: usize = 7;
const GAP: usize = 6;
/// Spans of a chart that are drawn, at most: the shortest are left out.
const MOST_SPANS: usize = 6000;
/// With so many, those that are narrower, as parts of the whole, are drawn without words: nobody could
/// point at them.
const MANY: usize = 800;
const NARROW: f64 = 0.002;
/// Units of the drawing that is stretched.
const WIDTH: f64 = 1000.0;

/// A stretch of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Its beginning.
    pub from: f64,
    /// Its end.
    pub to: f64,
    /// Which of the chart's kinds.
    pub kind: usize,
    /// How strong its colour is, up to 1.
    pub strength: f64,
    /// What to say of it.
    pub title: String,
}

/// How much of something there is over time, below the spans.
#[derive(Clone, Debug, PartialEq)]
pub struct Area {
    /// The class of its colour.
    pub class: String,
    /// What to say of it.
    pub title: String,
    /// When how much, from 0 to 1.
    pub points: Vec<(f64, f64)>,
}

/// A lane.
#[derive(Clone, Debug, Default)]
pub struct Lane {
    /// What it is of.
    pub name: String,
    /// What it was in.
    pub spans: Vec<Span>,
    /// What it did.
    pub areas: Vec<Area>,
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
    /// The kinds that there are, for the legend.
    pub used: Vec<bool>,
    /// Classes and names of areas, for the legend.
    pub areas: Vec<(String, String)>,
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
            let inside = end >= begin && span.to >= from && span.from <= to;
            (inside && end - begin >= shortest).then_some((begin, end, span))
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

    /// The outline of an area, as high as it is in `AREA` units.
    fn outline(&self, area: &Area, x: &Fitted<'_>) -> String {
        let (from, to) = self.range;
        let inside = |point: &&(f64, f64)| (from..=to).contains(&point.0);
        let mut path = String::new();
        let mut last = 0.0;
        for (at, height) in area.points.iter().filter(inside) {
            last = WIDTH * x.place(*at);
            let top = AREA as f64 * (1.0 - height.clamp(0.0, 1.0));
            if path.is_empty() {
                path = format!("M{last:.0} {AREA}");
            }
            path += &format!("L{last:.0} {top:.1}");
        }
        if path.is_empty() { path } else { path + &format!("L{last:.0} {AREA}Z") }
    }
}

impl Render for Lanes {
    fn render(&self) -> Markup {
        let (from, to) = self.range;
        let x = self.x.fit([from, to].into_iter(), true);
        let shortest = self.shortest();
        let all: usize = self.lanes.iter().map(|lane| self.cut(lane, shortest).count()).sum();
        let narrow = if all > MANY { NARROW } else { 0.0 };
        let row = LANE + GAP + AREA * self.areas.len();
        let height = self.lanes.len() * row;
        let drawing = html! {
            svg.chart.lanes role="img" aria-label=(self.caption) height=(height) {
                @for (n, lane) in self.lanes.iter().enumerate() {
                    @let top = n * row;
                    text x="-6" y=(top + LANE - 4) text-anchor="end" { (lane.name) }
                    rect.back x="0" y=(top) width="100%" height=(LANE) {}
                    @for (begin, end, span) in self.cut(lane, shortest) {
                        @let (left, right) = (x.place(begin), x.place(end));
                        @let class = self.kinds.get(span.kind).map_or("s7", |kind| kind.0);
                        @let faint = (span.strength < 1.0).then(|| format!("{:.2}", span.strength));
                        rect class={ "span " (class) } x=(percent(left)) y=(top) height=(LANE)
                            width=(percent((right - left).max(0.0008))) fill-opacity=[faint]
                        {
                            @if right - left >= narrow { title { (lane.name) ": " (span.title) } }
                        }
                    }
                    @for (n, area) in lane.areas.iter().enumerate() {
                        svg.(area.class) x="0" y=(top + LANE + n * AREA) width="100%" height=(AREA)
                            viewBox={ "0 0 " (WIDTH) " " (AREA) } preserveAspectRatio="none"
                        {
                            path.area d=(self.outline(area, &x)) {
                                title { (lane.name) ", " (area.title) }
                            }
                        }
                    }
                }
                @for (at, text) in x.ticks() {
                    line.grid x1=(percent(at)) x2=(percent(at)) y1=(height) y2=(height + 4) {}
                    text x=(percent(at)) y=(height + 16) text-anchor="middle" { (text) }
                }
                text x="100%" y=(height + 31) text-anchor="end" { (self.x.label) }
                @if let Some((at, text)) = self.moment.as_ref().filter(|m| (from..=to).contains(&m.0)) {
                    @let place = x.place(*at);
                    @let anchor = if place > 0.5 { "end" } else { "start" };
                    line.marked x1=(percent(place)) x2=(percent(place)) y1="-4" y2=(height) {
                        title { (text) }
                    }
                    text.marked-text x=(percent(place)) y="-8" text-anchor=(anchor) { (text) }
                }
            }
        };
        let kinds = self.kinds.iter().zip(&self.used).filter(|(_, used)| **used);
        let legend = html! {
            ul.legend {
                @for ((class, meaning), _) in kinds { li { i class=(class) {} (meaning) } }
            }
            @if !self.areas.is_empty() {
                ul.legend {
                    @for (class, name) in &self.areas { li { i class=(class) {} (name) } }
                }
            }
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
            used: vec![true],
            areas: Vec::new(),
            lanes: vec![Lane { name: "CPU 0".into(), spans, areas: Vec::new() }],
            moment: Some((3.0, "K2 <broken>".into())),
        }
    }

    fn span(from: f64, to: f64) -> Span {
        Span { from, to, kind: 0, strength: 1.0, title: "online".into() }
    }

    #[test]
    fn spans_are_cut_to_the_range() {
        let text =
            lanes(vec![span(0.0, 3.0), span(3.5, 9.0), span(0.0, 1.0)]).render().into_string();
        assert_eq!(text.matches("class=\"span ").count(), 2, "{text}");
        assert!(text.contains("x=\"0.000%\" y=\"0\" height=\"16\" width=\"50.000%\""), "{text}");
        assert!(text.contains("x=\"75.000%\" y=\"0\" height=\"16\" width=\"25.000%\""), "{text}");
        assert!(text.contains("x1=\"50.000%\"") && text.contains("K2 &lt;broken&gt;"), "{text}");
    }

    #[test]
    fn of_too_many_spans_the_longest_are_drawn() {
        let at = |i: u32| 2.0 + f64::from(i) * 1e-4;
        let mut spans: Vec<_> = (0..20_000).map(|i| span(at(i), at(i) + 1e-5)).collect();
        spans[9].to = at(9) + 5e-5;
        let text = lanes(spans).render().into_string();
        let drawn = text.matches("class=\"span ").count();
        assert!((1..=MOST_SPANS).contains(&drawn), "{drawn}");
    }
}
