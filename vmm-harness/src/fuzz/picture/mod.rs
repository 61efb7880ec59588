//! A run as a picture in a terminal: CPU by CPU, where each stood in the source when another one took
//! over, and what happened meanwhile.

mod draw;
mod place;
mod rows;

use std::io::{self, Write};

use percpu_guest::abi::Stay;

use crate::diag::Symbols;
use crate::machine::{Outcome, Scenario};

pub use draw::Style;
pub(super) use draw::wrap;
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

    /// Draws a run: all of it, or what matters. `strikes` is what each change of the schedule did.
    pub(crate) fn draw(
        &mut self,
        out: &mut impl Write,
        scenario: &Scenario,
        outcome: &Outcome,
        strikes: &[Option<Stay>],
        all: bool,
    ) -> io::Result<()> {
        let mut rows = rows::all(scenario, outcome, strikes, &mut self.places);
        if !all {
            rows = rows::fold(rows);
        }
        let topology = scenario.topology;
        let cpus = (topology.possible, topology.boot_cpus);
        draw::draw(out, self.style, cpus, &rows, &mut self.places)
    }
}
