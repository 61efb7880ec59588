//! What came of one scenario that was replayed or minimised, as a report.

use serde::Serialize;

use super::failure::MinimalReport;
use super::picture::{Drawing, Picture};
use super::seen::hash_text;
use super::told::Told;
use super::{Machines, Minimal, html, show};
use crate::error::Error;
use crate::machine::{Outcome, Scenario};
use crate::report::{file, junit, page};

/// Version of the JSON form.
const SCHEMA: u32 = 1;

/// One run of the deterministic machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScenarioReport {
    /// The version of this layout: 1.
    pub schema: u32,
    /// `replay` or `minimise`.
    pub command: &'static str,
    /// `held`, the invariant that is broken, `crash` or `hang`.
    pub verdict: String,
    /// [`image_name`](super::image_name) of the guest.
    pub image: String,
    /// The guest's privilege level.
    pub ring: u8,
    /// The scenario's seed.
    pub seed: u64,
    /// What was run.
    pub scenario: String,
    /// Its plugs, and the changes of a schedule that is given.
    pub listed: Vec<String>,
    /// Steps of all CPUs.
    pub steps: u64,
    /// Of which at points.
    pub points: u64,
    /// Exits to the host.
    pub exits: u64,
    /// Plugs carried out.
    pub plugs: u64,
    /// Those that failed.
    pub failed_plugs: u64,
    /// Objects held against invariants.
    pub checks: u64,
    /// Hash of all that happened.
    pub hash: String,
    /// Whether it went as its file says.
    pub likeness: Option<String>,
    /// What minimising has left.
    pub minimal: Option<MinimalReport>,
    /// How it came to its end.
    pub told: Told,
    /// All of the run; on the page only.
    #[serde(skip)]
    pub trace: Drawing,
    /// The command that runs it again.
    pub replay: Option<String>,
}

impl ScenarioReport {
    /// The report of a scenario that was run again.
    ///
    /// # Errors
    /// The machine cannot run it once more, to see where changes of its schedule strike.
    pub fn of_replay(
        machines: &mut Machines<'_>,
        picture: &mut Picture,
        (scenario, outcome): (&Scenario, &Outcome),
        (ring, image): (u8, &str),
    ) -> Result<Self, Error> {
        let strikes = machines.strikes(scenario)?;
        Ok(Self {
            schema: SCHEMA,
            command: "replay",
            verdict: outcome.ending.name().to_owned(),
            image: image.to_owned(),
            ring,
            seed: scenario.seed,
            scenario: scenario.to_string(),
            listed: show::listed(picture, scenario, &strikes),
            steps: outcome.steps,
            points: outcome.points,
            exits: outcome.bells,
            plugs: outcome.plugs,
            failed_plugs: outcome.failed_plugs,
            checks: outcome.checks,
            hash: hash_text(outcome.trace.hash()),
            likeness: None,
            minimal: None,
            told: Told::of(picture, (scenario, outcome), &strikes),
            trace: picture.drawing((scenario, outcome), &strikes, true),
            replay: None,
        })
    }

    /// The report of a scenario that was made small.
    ///
    /// # Errors
    /// As [`of_replay`](Self::of_replay).
    pub fn of_minimal(
        machines: &mut Machines<'_>,
        picture: &mut Picture,
        minimal: &Minimal,
        of: (u8, &str),
    ) -> Result<Self, Error> {
        let run = (&minimal.scenario, &minimal.outcome);
        let report = Self::of_replay(machines, picture, run, of)?;
        let minimal = Some(MinimalReport::new(minimal, None));
        Ok(Self { command: "minimise", minimal, ..report })
    }

    /// The report as JSON.
    pub fn to_json(&self) -> String {
        file::to_json(self)
    }

    /// The report as JUnit's XML: a suite of one case.
    pub fn to_junit(&self) -> String {
        let properties = [("seed", self.seed.to_string()), ("trace", self.hash.clone())];
        let mut suite = junit::suite(self.command, 0.0, &properties);
        let name = format!("seed {}: {}", self.seed, self.scenario);
        let class = "percpu.scenario";
        let again = self.replay.as_deref().unwrap_or_default();
        suite.add_test_case(match (&self.told.crash, self.told.violations.first()) {
            (None, None) => junit::passed(name, class),
            (crash, violation) => {
                let text = match (crash, violation) {
                    (Some(crash), _) => crash.to_string(),
                    (None, Some(violation)) => junit::told(violation),
                    (None, None) => String::new(),
                };
                let text = format!("{text}\n{}\nagain: {again}\n", self.listed.join("\n"));
                let message = text.lines().next().unwrap_or_default().to_owned();
                junit::failed(name, class, junit::kind(&self.verdict), (&message, &text))
            }
        });
        junit::text(&junit::report(suite))
    }

    /// The report as a page for a browser.
    pub fn page(&self) -> page::Page {
        html::scenario_page(self)
    }
}
