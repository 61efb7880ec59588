//! All that was measured, and where: what is written as JSON and read again.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::facts::HostFacts;
use super::row::Row;
use crate::error::{Error, Status};
use crate::report::Crash;

/// Version of the JSON form: grows when a field changes its meaning or goes away.
pub const SCHEMA: u32 = 2;

/// A benchmark's report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// When it began, in UTC.
    pub date: String,
    /// The source's commit, where there is git to say so.
    pub commit: Option<String>,
    /// Whether it was a quick one: numbers to look at, not to quote.
    pub quick: bool,
    /// What it was measured on.
    pub host: HostFacts,
    /// What was measured.
    pub rows: Vec<Row>,
    /// What was left out, and what there is to know of the rest.
    pub notes: Vec<String>,
    /// Whether it was ended from outside.
    pub interrupted: bool,
    /// How a guest came to an early end, if one did.
    #[serde(skip_deserializing)]
    pub crash: Option<Crash>,
    /// With what that ends the process.
    #[serde(skip)]
    pub(super) failed: Option<Status>,
}

/// Rows of another program: as much of the form as it can know.
#[derive(Debug, Deserialize)]
pub struct Rows {
    rows: Vec<Row>,
    #[serde(default)]
    notes: Vec<String>,
}

impl BenchReport {
    /// One without rows.
    pub fn new(host: HostFacts, quick: bool) -> Self {
        Self {
            schema: SCHEMA,
            date: super::facts::now(),
            commit: super::facts::commit(),
            quick,
            host,
            rows: Vec::new(),
            notes: Vec::new(),
            interrupted: false,
            crash: None,
            failed: None,
        }
    }

    /// Notes that a guest did not go on.
    pub(super) fn ended_early(&mut self, status: Status, crash: Crash) {
        self.failed = Some(status);
        self.crash = Some(crash);
    }

    /// With what the process ends. A target that was missed is no failure: the host may be busy.
    pub fn status(&self) -> Status {
        self.failed.unwrap_or(Status::Held)
    }

    /// The groups there are, in the order of the rows.
    pub fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !groups.contains(&row.group.as_str()) {
                groups.push(&row.group);
            }
        }
        groups
    }

    /// The rows of a group.
    pub fn of_group<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a Row> + Clone + 'a {
        self.rows.iter().filter(move |row| row.group == group)
    }

    /// Writes the report as JSON.
    pub fn write_json(&self, path: &Path) -> Result<(), Error> {
        crate::report::file::write_json(path, self)
    }

    /// Reads what [`write_json`](Self::write_json) wrote.
    pub fn read(path: &Path) -> Result<Self, Error> {
        parse(path)
    }

    /// Takes over what another program has measured.
    pub fn add(&mut self, Rows { rows, notes }: Rows) {
        self.rows.extend(rows);
        self.notes.extend(notes);
    }
}

/// Reads the rows that another program has written, by this form, into a file.
pub fn read_rows(path: &Path) -> Result<Rows, Error> {
    parse(path)
}

/// Reads a file of this form.
fn parse<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, Error> {
    let unreadable = |why: String| {
        Error::Usage(format!("{}: no benchmark's numbers can be read: {why}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| unreadable(format!("no JSON: {error}")))?;
    match json.get("schema").and_then(serde_json::Value::as_u64) {
        Some(schema) if schema == u64::from(SCHEMA) => {}
        Some(schema) => {
            return Err(unreadable(format!(
                "it is of schema {schema}, and this program knows {SCHEMA}: measure again"
            )));
        }
        None => return Err(unreadable("it does not say of which schema it is".into())),
    }
    serde_json::from_value(json).map_err(|error| unreadable(error.to_string()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::row::tests::row;
    use super::super::row::{Target, Unit};
    use super::*;

    fn scratch(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("percpu-bench-{}-{name}", std::process::id()))
    }

    /// One of these rows, measured nowhere.
    pub fn with_rows(rows: Vec<Row>) -> BenchReport {
        BenchReport { rows, ..BenchReport::new(HostFacts::default(), false) }
    }

    fn report() -> BenchReport {
        let mut report = with_rows(vec![row("add", None, 1.5), row("sum", Some(8), 1234.5)]);
        report.quick = true;
        report.rows[0].target = Some(Target::PartOfShared(10.0));
        report.rows[1].unit = Unit::PerSecond;
        report.rows[1].values.max = None;
        report.notes = vec!["nothing else".into()];
        report
    }

    #[test]
    fn what_is_written_is_read_again() {
        let path = scratch("round-trip.json");
        let written = report();
        written.write_json(&path).unwrap();
        assert_eq!(BenchReport::read(&path).unwrap(), written);
        let text = std::fs::read_to_string(&path).unwrap();
        // Names that others read by.
        for field in [r#""schema": 2"#, r#""unit": "1/s""#, r#""part_of_shared": 10.0"#] {
            assert!(text.contains(field), "{field} is not in {text}");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn rows_of_another_program_are_added() {
        let path = scratch("foreign.json");
        let rows = serde_json::to_string(&report().rows).unwrap();
        std::fs::write(&path, format!(r#"{{"schema": {SCHEMA}, "rows": {rows}}}"#)).unwrap();
        let mut all = report();
        all.add(read_rows(&path).unwrap());
        assert_eq!(all.rows.len(), 4);
        assert_eq!(all.groups(), ["core"]);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_no_report_is_refused_in_a_sentence() {
        let path = scratch("nonsense.json");
        for (content, why) in [
            ("", "no JSON"),
            ("[1, 2", "no JSON"),
            ("{}", "does not say of which schema"),
            (r#"{"schema": 1, "bench": "core", "rows": []}"#, "schema 1"),
            (r#"{"schema": 2, "rows": [{"group": "core"}]}"#, "missing field"),
            (r#"{"schema": 2, "rows": 7}"#, "invalid type"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = BenchReport::read(&path).unwrap_err();
            assert!(error.to_string().contains(why), "{content}: {error}");
            assert!(error.to_string().contains("nonsense.json"), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
        std::fs::remove_file(&path).unwrap();
        assert!(BenchReport::read(&path).is_err(), "there is no such file");
    }
}
