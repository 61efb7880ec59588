//! A run as a picture in a terminal: CPU by CPU, where each stood in the source when another one took
//! over, and what happened meanwhile.

mod draw;
mod drawing;
mod place;
mod rows;

use std::io::{self, Write};

use percpu_guest::abi::Stay;

use crate::diag::Symbols;
use crate::machine::{Outcome, Scenario};
use crate::report::events::addresses;

pub use draw::Style;
pub(super) use draw::wrap;
pub use drawing::{Drawing, DrawnRow, Ran, SourceLine, Spot, Standing};
use place::Places;

/// What it takes to draw runs of a guest.
pub struct Picture {
    style: Style,
    places: Places,
}

impl Picture {
    /// Of guests with these symbols.
    pub fn new(symbols: Symbols, style: Style) -> Self {
        Self { style, places: Places::new(symbols) }
    }

    pub(super) fn style(&self) -> Style {
        self.style
    }

    /// Where a CPU stood, in the source.
    pub(super) fn place(&mut self, stay: &Stay) -> Option<String> {
        self.places.of(&stay.sites).map(|place| place.to_string())
    }

    /// The static variable that an object lies in, by the addresses in its name.
    pub(super) fn variable(&self, object: &str) -> Option<String> {
        addresses(object).into_iter().find_map(|address| self.places.variable(address))
    }

    /// A run in rows: all of it, or what matters. `strikes` is what each change of the schedule did.
    pub(crate) fn drawing(
        &mut self,
        (scenario, outcome): (&Scenario, &Outcome),
        strikes: &[Option<Stay>],
        all: bool,
    ) -> Drawing {
        let mut rows = rows::all(scenario, outcome, strikes, &mut self.places);
        if !all {
            rows = rows::fold(rows);
        }
        let topology = scenario.topology;
        let cpus = (topology.possible, topology.boot_cpus);
        let with_source = if all { draw::WITH_SOURCE } else { usize::MAX };
        Drawing::of(cpus, &rows, &mut self.places, with_source)
    }

    /// Draws it.
    pub(crate) fn draw(&self, out: &mut impl Write, drawing: &Drawing) -> io::Result<()> {
        draw::draw(out, self.style, drawing)
    }
}
