//! A scenario in a file, and how it failed if it did.
//!
//! ```toml
//! version = 1
//!
//! [failure]              # left out where there is none
//! what = "K3"
//! hash = "0x6d0a34a7e0a2f5f1"
//! # ...
//!
//! [scenario]
//! seed = 7
//! workloads = ["counter", "refs"]
//! threads = 2
//! operations = 200
//! tick_us = 300
//!
//! [scenario.topology]
//! possible = 4
//! boot_cpus = 2
//!
//! [[scenario.plugs]]
//! after = 20000
//! cpu = 3
//!
//! [scenario.strategy.walk]
//! turn = 1000
//! unit = "steps"
//! ```

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

use super::seen::Seen;
use super::store;
use crate::error::Error;
use crate::image::Workloads;
use crate::machine::{Place, Scenario};

/// The version of the file's layout.
const VERSION: i64 = 1;
/// No scenario is larger; what is, is another kind of file.
const MOST_BYTES: u64 = 16 << 20;

/// A scenario, and how it failed if it did.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// How it failed.
    pub failure: Option<Seen>,
    /// The scenario.
    pub scenario: Scenario,
}

/// The file's layout.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layout {
    version: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<Seen>,
    scenario: Scenario,
}

impl Case {
    /// Reads a file, of a scenario of a guest with these workloads.
    pub fn read(path: &Path, workloads: &Workloads) -> Result<Self, Error> {
        let unreadable = |source| Error::ScenarioUnreadable { path: path.into(), source };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes))
            .map_err(unreadable)?;
        Self::from_bytes(path, &bytes, workloads)
    }

    /// Makes sense of what was read from `path`.
    pub(crate) fn from_bytes(
        path: &Path,
        bytes: &[u8],
        workloads: &Workloads,
    ) -> Result<Self, Error> {
        let wrong = |at: usize, why: &str| Error::FileWrong {
            path: path.into(),
            line: 1 + bytes[..at.min(bytes.len())].iter().filter(|&&b| b == b'\n').count(),
            // One sentence, whatever the parser says.
            why: why.lines().map(str::trim).collect::<Vec<_>>().join("; "),
        };
        if bytes.len() as u64 > MOST_BYTES {
            return Err(wrong(0, "this is too large for a scenario: give a TOML file"));
        }
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                return Err(wrong(error.valid_up_to(), "this is no text: give a TOML file"));
            }
        };
        Self::parse(text, workloads).map_err(|(at, why)| wrong(at, &why))
    }

    /// Makes sense of a file's text; else what is wrong with it and at which byte.
    fn parse(text: &str, workloads: &Workloads) -> Result<Self, (usize, String)> {
        let wrong = |error: toml::de::Error| {
            (error.span().map_or(0, |span| span.start), error.message().to_owned())
        };
        let table = DeTable::parse(text).map_err(wrong)?;
        // First, since another version may have anything in it.
        if let Some(version) = table.get_ref().get("version") {
            let number = match version.get_ref() {
                DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()),
                _ => Ok(VERSION),
            };
            if number != Ok(VERSION) {
                let why = format!("this program reads version {VERSION} of scenario files only");
                return Err((version.span().start, why));
            }
        }
        let places = table.clone();
        let layout = Layout::deserialize(toml::de::Deserializer::from(table)).map_err(wrong)?;
        let Layout { failure, scenario, .. } = layout;
        scenario
            .check()
            .and_then(|()| scenario.check_workloads(workloads))
            .map_err(|flaw| (locate(places.get_ref(), &flaw.place), flaw.why))?;
        Ok(Self { failure, scenario })
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "# {}", self.scenario);
        let Self { failure, scenario } = self.clone();
        let layout = Layout { version: VERSION, failure, scenario };
        text += &toml::to_string(&layout).expect("a scenario has nothing that TOML has not");
        text
    }

    /// A name for the scenario, by its content.
    pub(super) fn name(scenario: &Scenario) -> String {
        let text = Self { failure: None, scenario: scenario.clone() }.text();
        format!("{:016x}", store::hash([text.as_bytes()]))
    }

    /// Writes a file named after its content.
    pub(super) fn write_below(&self, directory: &Path) -> Result<PathBuf, Error> {
        let what = self.failure.as_ref().map_or(String::new(), |seen| format!("{}-", seen.what));
        let path = directory.join(format!("{what}{}.toml", Self::name(&self.scenario)));
        self.write(&path)?;
        Ok(path)
    }

    /// Writes a file, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        store::write(path, &self.text())
    }
}

/// The file for what is smaller and fails as `file` does.
pub fn minimal_beside(file: &Path) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!("{stem}-minimal.toml"))
}

/// The byte at which a part of the scenario begins, or the smallest that is there around it.
fn locate(file: &DeTable<'_>, place: &[Place]) -> usize {
    let Some((key, mut at)) = file.get_key_value("scenario") else { return 0 };
    let mut start = key.span().start;
    for step in place {
        let inner = match (step, at.get_ref()) {
            (Place::Field(name), DeValue::Table(table)) => {
                table.get_key_value(*name).map(|(key, value)| (key.span().start, value))
            }
            (Place::Element(i), DeValue::Array(array)) => {
                array.get(*i).map(|value| (value.span().start, value))
            }
            _ => None,
        };
        let Some(inner) = inner else { break };
        (start, at) = inner;
    }
    start
}

#[cfg(test)]
mod tests {
    use super::super::seen::hash_text;
    use super::*;
    use crate::machine::scenario::WORKLOADS;
    use crate::machine::{Change, Plug, Schedule, Strategy, Topology, Unit, What};

    fn parse(text: &str) -> Result<Case, (usize, String)> {
        Case::parse(text, &Workloads::named(&WORKLOADS))
    }

    fn seen() -> Seen {
        Seen {
            what: "K3".into(),
            detail: "CPU 1: \"a\"\nand [b]".into(),
            hash: hash_text(5),
            steps: 6,
            ring: 3,
            image: hash_text(7),
        }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        for seed in (0..500).chain([u64::MAX, 1 << 63]) {
            let scenario = Scenario::from_seed(seed, &WORKLOADS);
            let failure = (seed % 2 == 0).then(seen);
            let case = Case { failure, scenario };
            let text = case.text();
            assert_eq!(parse(&text).as_ref(), Ok(&case), "{text}");
        }
    }

    #[test]
    fn given_schedules_are_read_as_they_are_written() {
        let what = [What::Demote, What::Interrupt, What::Promote(1)];
        let changes = (0..3).map(|i| Change { at: i as u64 * 1000, what: what[i] }).collect();
        let schedule = |changes| {
            Strategy::Given(Schedule {
                unit: Unit::Points,
                order: vec![1, 0],
                waits: 1 << 63,
                changes,
            })
        };
        let seed = Scenario {
            topology: Topology { possible: 2, boot_cpus: 1 },
            plugs: vec![],
            ..Scenario::from_seed(1, &WORKLOADS)
        };
        let scenario = Scenario { strategy: schedule(changes), ..seed.clone() };
        let case = Case { failure: None, scenario };
        assert_eq!(parse(&case.text()), Ok(case));
        let scenario = Scenario { strategy: schedule(vec![]), ..seed };
        let case = Case { failure: None, scenario };
        assert_eq!(parse(&case.text()), Ok(case));
    }

    /// A good file, with some of its text exchanged; what is said, with the line.
    #[track_caller]
    fn refused(from: &str, to: &str, line: usize, what: &str) {
        let good = "version = 1\n[scenario]\nseed = 1\nworkloads = [\"counter\",\n\"refs\"]\n\
             threads = 2\noperations = 200\ntick_us = 300\ntopology = { possible = 3,\n\
             boot_cpus = 2 }\n[[scenario.plugs]]\nafter = 5\ncpu = 1\n\
             [[scenario.plugs]]\nafter = 6\ncpu = 2\n[scenario.strategy.walk]\nturn = 100\n\
             unit = \"steps\"\n";
        assert!(good.contains(from) && parse(good).is_ok(), "{:?}", parse(good));
        let text = good.replacen(from, to, 1);
        let (at, why) = parse(&text).expect_err(what);
        assert!(why.contains(what), "{what} is not in: {why}");
        assert_eq!(text[..at].matches('\n').count() + 1, line, "{why}");
    }

    #[test]
    fn a_file_that_is_wrong_is_refused_with_the_line() {
        refused("version = 1", "version = 2", 1, "version 1 of");
        refused("version = 1", "version = \"1\"", 1, "expected i64");
        refused("version = 1\n", "", 1, "missing field `version`");
        refused("seed = 1", "seed = -1", 3, "-1");
        refused("seed = 1", "seed = \"seven\"", 3, "seven");
        refused("\"refs\"", "\"ref\"", 5, "there is no workload \"ref\": give some of alloc");
        refused("[\"counter\",\n\"refs\"]", "[]", 4, "no workloads");
        refused("threads = 2", "threads = 17", 6, "is 17: give 1 to 16");
        refused("operations = 200", "operations = 0", 7, "operations is 0");
        refused("operations = 200", "operations = 1e9", 7, "float");
        refused("operations = 200", "operations = many", 7, "");
        refused("tick_us = 300", "tick = 300", 8, "unknown field `tick`");
        refused("possible = 3", "possible = 64", 9, "possible is 64: give 1 to 4");
        refused("boot_cpus = 2", "boot_cpus = 4", 10, "boot_cpus is 4: give 1 to 3");
        refused("cpu = 1", "cpu = 0", 13, "CPU 0");
        refused("cpu = 2", "cpu = 3", 16, "CPU 3 cannot be");
        refused("after = 6", "after = 9000000000000000000", 15, "after is");
        refused("walk", "stroll", 17, "unknown variant `stroll`");
        refused("turn = 100", "turn = 0", 18, "turn is 0");
        refused("\"steps\"", "\"miles\"", 19, "unknown variant `miles`");
        refused("unit = \"steps\"", "unit = \"steps\"\nunit = \"steps\"", 20, "duplicate key");
        refused("unit = \"steps\"", "unit = \"st", 19, "");
        refused("[scenario]", "[failure]\nwhat = 3\n[scenario]", 3, "expected a string");
    }

    #[test]
    fn plugs_may_be_left_out() {
        let mut case = Case { failure: None, scenario: Scenario::from_seed(9, &WORKLOADS) };
        case.scenario.plugs = Vec::<Plug>::new();
        let text = case.text().replace("plugs = []\n", "");
        assert!(!text.contains("plugs]]") && !text.contains("plugs = "), "{text}");
        assert_eq!(parse(&text), Ok(case));
    }
}
