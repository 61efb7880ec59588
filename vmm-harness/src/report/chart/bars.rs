//! Bars: the same quantity of several things, side by side.

use maud::{Markup, Render, html};

use super::axis::{Axis, Scale};
use super::{colour, legend, percent};
use crate::report::page::figure;

/// Height of a bar and of what a group takes besides, in pixels.
const BAR: usize = 15;
const GAP: usize = 3;

/// What is compared, with a value for each series; `None` where there is none.
#[derive(Clone, Debug)]
pub struct BarGroup {
    /// What it is.
    pub label: String,
    /// In the order of the series.
    pub values: Vec<Option<f64>>,
}

/// A chart of horizontal bars.
#[derive(Clone, Debug)]
pub struct Bars {
    /// What it shows.
    pub caption: String,
    /// What the length means.
    pub axis: Axis,
    /// Names of the series.
    pub series: Vec<String>,
    /// The groups, from above.
    pub groups: Vec<BarGroup>,
}

impl Bars {
    /// A chart without bars.
    pub fn new(
        caption: impl Into<String>,
        axis: Axis,
        series: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let series = series.into_iter().map(Into::into).collect();
        Self { caption: caption.into(), axis, series, groups: Vec::new() }
    }

    /// Adds a group.
    pub fn group(&mut self, label: impl Into<String>, values: impl Into<Vec<Option<f64>>>) {
        self.groups.push(BarGroup { label: label.into(), values: values.into() });
    }
}

impl Render for Bars {
    fn render(&self) -> Markup {
        let all = self.groups.iter().flat_map(|group| group.values.iter().flatten().copied());
        let axis = self.axis.fit(all, false);
        let names = self.series.iter().enumerate().map(|(i, name)| (colour(i), name.as_str()));
        let name = |i: usize| self.series.get(i).map_or("", String::as_str);
        let drawing = html! {
            div.bars {
                p.faint {
                    (self.axis.label)
                    @if self.axis.scale == Scale::Log { "; the length is logarithmic" }
                }
                @for group in &self.groups {
                    @let drawn: Vec<_> = group
                        .values
                        .iter()
                        .enumerate()
                        .filter_map(|(i, value)| value.map(|value| (i, value)))
                        .collect();
                    @let words: Vec<_> = drawn
                        .iter()
                        .map(|(i, value)| format!("{} {}", name(*i), (self.axis.format)(*value)))
                        .collect();
                    div { (group.label) }
                    svg.chart role="img" aria-label={ (group.label) ": " (words.join(", ")) }
                        height=(drawn.len() * (BAR + GAP))
                    {
                        @for (row, (i, value)) in drawn.iter().enumerate() {
                            @let top = row * (BAR + GAP);
                            // Three quarters, so that there is room for the number behind it.
                            @let length = 0.75 * axis.place(*value);
                            g class=(colour(*i)) {
                                title { (words[row]) }
                                rect.back x="0" y=(top) width="75%" height=(BAR) {}
                                rect.bar x="0" y=(top) width=(percent(length.max(0.002))) height=(BAR) {}
                                text.value x="76%" y=(top + BAR - 3) { ((self.axis.format)(*value)) }
                            }
                        }
                    }
                }
            }
        };
        figure(&self.caption, legend(names), drawing, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_value_and_says_it() {
        let mut bars = Bars::new("Cost", Axis::new("ns"), ["ours", "a <lock>"]);
        bars.group("add", [Some(25.0), Some(100.0)]);
        bars.group("sum", [Some(50.0), None]);
        let text = bars.render().into_string();
        let widths: Vec<_> = text
            .split("<rect class=\"bar\"")
            .skip(1)
            .map(|rest| rest.split("width=\"").nth(1).unwrap().split('%').next().unwrap())
            .collect();
        assert_eq!(widths, ["18.750", "75.000", "37.500"]);
        assert!(text.contains("aria-label=\"add: ours 25, a &lt;lock&gt; 100\""), "{text}");
        assert!(!text.contains("<lock>"));
    }
}
