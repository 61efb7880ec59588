//! Lines: values over time, or over something that is counted.

use maud::{Markup, Render, html};

use super::axis::{Axis, Fitted, Scale};
use super::{colour, legend, percent};
use crate::report::page::{Column, Table, figure};

/// Height of the plot in pixels.
const HEIGHT: f64 = 190.0;
/// Points of a series that are drawn, at most: more could not be told apart.
const MOST_POINTS: usize = 600;
/// Up to so many are marked by dots, which say their value, and are in the table.
const MOST_DOTS: usize = 70;
/// Units of the drawing that is stretched.
const WIDTH: f64 = 1000.0;

/// A line.
#[derive(Clone, Debug)]
pub struct Series {
    /// What it is.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// A chart of lines.
#[derive(Clone, Debug)]
pub struct Lines {
    /// What it shows.
    pub caption: String,
    /// From left to right.
    pub x: Axis,
    /// From below to above.
    pub y: Axis,
    /// The lines.
    pub series: Vec<Series>,
    /// Moments that matter, with a word each.
    pub marks: Vec<(f64, String)>,
}

impl Lines {
    /// A chart without lines.
    pub fn new(caption: impl Into<String>, x: Axis, y: Axis) -> Self {
        Self { caption: caption.into(), x, y, series: Vec::new(), marks: Vec::new() }
    }

    /// Adds a line.
    pub fn line(mut self, name: impl Into<String>, points: impl Into<Vec<(f64, f64)>>) -> Self {
        self.series.push(Series { name: name.into(), points: points.into() });
        self
    }

    /// Marks a moment.
    pub fn mark(mut self, at: f64, text: impl Into<String>) -> Self {
        self.marks.push((at, text.into()));
        self
    }

    fn description(&self) -> String {
        let mut text = format!("{}: {} over {}.", self.caption, self.y.label, self.x.label);
        for Series { name, points } in &self.series {
            if let (Some(first), Some(last)) = (points.first(), points.last()) {
                let of = |(x, y): (f64, f64)| {
                    format!("{} at {}", (self.y.format)(y), (self.x.format)(x))
                };
                text += &format!(" {name}: from {} to {}.", of(*first), of(*last));
            }
        }
        text
    }

    fn figures(&self) -> Option<Markup> {
        let most = self.series.iter().map(|series| series.points.len()).max()?;
        if most > MOST_DOTS {
            return None;
        }
        let mut xs: Vec<f64> = Vec::new();
        for series in &self.series {
            xs.extend(series.points.iter().map(|point| point.0));
        }
        xs.sort_by(f64::total_cmp);
        xs.dedup();
        let mut columns = vec![Column::text(&self.x.label)];
        columns.extend(self.series.iter().map(|series| Column::number(&series.name)));
        let mut table = Table::new(&self.y.label, columns);
        for x in xs {
            let value = |series: &Series| {
                let point = series.points.iter().find(|point| point.0 == x);
                html! { @if let Some((_, y)) = point { ((self.y.format)(*y)) } }
            };
            let label = html! { ((self.x.format)(x)) };
            table.row(std::iter::once(label).chain(self.series.iter().map(value)));
        }
        Some(html! { (table) })
    }
}

/// Every point if there are not too many, else as many as can be told apart: of each stretch the
/// lowest and the highest, so that no peak is lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MOST_POINTS {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(MOST_POINTS / 2);
    let mut thinned = Vec::new();
    for stretch in points.chunks(stretch) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (low, high) = (stretch.iter().min_by(by_value), stretch.iter().max_by(by_value));
        let mut two: Vec<_> = low.into_iter().chain(high).copied().collect();
        two.sort_by(|a, b| a.0.total_cmp(&b.0));
        thinned.extend(two);
    }
    thinned
}

fn path(points: &[(f64, f64)], x: &Fitted<'_>, y: &Fitted<'_>) -> String {
    let mut path = String::new();
    for (i, (at, value)) in points.iter().enumerate() {
        let (at, value) = (WIDTH * x.place(*at), HEIGHT * (1.0 - y.place(*value)));
        path += &format!("{}{at:.1} {value:.1}", if i == 0 { "M" } else { "L" });
    }
    path
}

impl Render for Lines {
    fn render(&self) -> Markup {
        let all = || self.series.iter().flat_map(|series| series.points.iter());
        let x = self.x.fit(all().map(|point| point.0), true);
        let y = self.y.fit(all().map(|point| point.1), false);
        let names = self.series.iter().enumerate().map(|(i, s)| (colour(i), s.name.as_str()));
        let description = self.description();
        let svg = html! {
            svg.chart role="img" aria-label=(description) height=(HEIGHT) {
                @for (at, text) in y.ticks() {
                    @let at = format!("{:.1}", HEIGHT * (1.0 - at));
                    line.grid x1="0" x2="100%" y1=(at) y2=(at) {}
                    text x="-6" y=(at) dy="4" text-anchor="end" { (text) }
                }
                @for (at, text) in x.ticks() {
                    line.grid x1=(percent(at)) x2=(percent(at)) y1=(HEIGHT) y2=(HEIGHT + 4.0) {}
                    text x=(percent(at)) y=(HEIGHT + 17.0) text-anchor="middle" { (text) }
                }
                text x="100%" y=(HEIGHT + 32.0) text-anchor="end" { (self.x.label) }
                text x="-50" y="-10" { (self.y.label) @if self.y.scale == Scale::Log { ", logarithmic" } }
                svg width="100%" height=(HEIGHT) viewBox={ "0 0 " (WIDTH) " " (HEIGHT) }
                    preserveAspectRatio="none" overflow="visible" aria-hidden="true"
                {
                    @for (i, series) in self.series.iter().enumerate() {
                        path.line.(colour(i)) d=(path(&thinned(&series.points), &x, &y)) {}
                    }
                }
                @for (i, series) in self.series.iter().enumerate() {
                    @if series.points.len() <= MOST_DOTS { g class=(colour(i)) {
                        @for (at, value) in &series.points {
                            circle.dot cx=(percent(x.place(*at)))
                                cy=(format!("{:.1}", HEIGHT * (1.0 - y.place(*value)))) r="3"
                            { title {
                                (series.name) ": " ((self.y.format)(*value)) " at " ((self.x.format)(*at))
                            } }
                        }
                    } }
                }
                @for (at, text) in &self.marks {
                    @let at = percent(x.place(*at));
                    line.marked x1=(at) x2=(at) y1="0" y2=(HEIGHT) { title { (text) } }
                }
            }
        };
        figure(&self.caption, legend(names), svg, self.figures())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over_cpus() -> Lines {
        let x = Axis::new("CPUs").log().ticks([1.0, 8.0, 64.0]);
        Lines::new("Growth", x, Axis::new("ns"))
            .line("ours", [(1.0, 2.0), (8.0, 2.0), (64.0, 2.5)])
            .line("<shared>", [(1.0, 20.0), (64.0, 900.0)])
    }

    #[test]
    fn each_line_is_drawn_named_and_in_the_table() {
        let text = over_cpus().render().into_string();
        assert_eq!(text.matches("class=\"line s").count(), 2, "{text}");
        assert!(text.contains("M0.0 189.6L500.0 189.6L1000.0 189.5"), "{text}");
        assert!(text.contains("&lt;shared&gt;: 900 at 64"), "{text}");
        assert_eq!(text.matches("<circle").count(), 5);
        let row = "<th scope=\"row\" class=\"t\">8</th><td class=\"n\">2</td><td class=\"n\"></td>";
        assert!(text.contains(row), "{text}");
        assert!(!text.contains("<shared>"));
    }

    #[test]
    fn many_points_make_no_large_drawing_and_lose_no_peak() {
        let mut points: Vec<_> = (0..100_000).map(|i| (f64::from(i), 1.0)).collect();
        points[77_777].1 = 50.0;
        let chart = Lines::new("t", Axis::new("s"), Axis::new("n")).line("a", points);
        let text = chart.render().into_string();
        assert!(text.len() < 20_000, "{}", text.len());
        let thin = thinned(&chart.series[0].points);
        assert!(thin.contains(&(77_777.0, 50.0)));
    }
}
