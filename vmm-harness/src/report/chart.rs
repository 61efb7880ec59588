//! Charts of pages: drawings in SVG that are part of the page.
//!
//! What is drawn stretches with the page, words keep their size, so that a chart can be read on a
//! phone. Each is a figure with a caption, a description for those who do not see it, and, where
//! there are few enough, its figures as a table.

mod axis;
mod bars;
mod lanes;
mod lines;

pub use axis::{Axis, Scale};
pub use bars::{BarGroup, Bars};
pub use lanes::{Area, Lane, Lanes, Span};
pub use lines::{Lines, Series};

use maud::{Markup, html};

/// Colours that series have, in turn; a class each.
const COLOURS: usize = 8;

/// The class of a series' colour.
fn colour(series: usize) -> String {
    format!("s{}", series % COLOURS)
}

/// The names of series with their colours; nothing if there is but one.
fn legend<'a>(names: impl IntoIterator<Item = (String, &'a str)>) -> Markup {
    let names: Vec<_> = names.into_iter().collect();
    html! {
        @if names.len() > 1 {
            ul.legend { @for (class, name) in names { li { i class=(class) {} (name) } } }
        }
    }
}

/// A share of the width.
fn percent(share: f64) -> String {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    format!("{:.3}%", 100.0 * share)
}
