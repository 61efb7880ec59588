//! Files that a report is written to: the options that all commands with a report have.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::report::{check_writable, file};

#[derive(Clone, Debug, Default, clap::Args)]
pub struct Outputs {
    /// Write the report to this file as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report to this file as JUnit's XML, for programs that show test results.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write the report to this file as a page for a browser, which needs nothing beside itself.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

impl Outputs {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.json.is_some() || self.junit.is_some() || self.html.is_some()
    }

    /// Finds out early what would fail late.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn check(&self) -> Result<(), Error> {
        let all = [&self.json, &self.junit, &self.html];
        all.into_iter().flatten().try_for_each(|path| check_writable(path))
    }

    /// Writes those that were asked for, each whatever becomes of the others.
    ///
    /// # Errors
    /// The first that cannot be written or made.
    pub fn write(
        &self,
        json: impl FnOnce() -> String,
        junit: impl FnOnce() -> String,
        html: impl FnOnce() -> Result<String, Error>,
    ) -> Result<(), Error> {
        let first = write(self.json.as_deref(), || Ok(json()));
        let second = write(self.junit.as_deref(), || Ok(junit()));
        let third = write(self.html.as_deref(), html);
        first.and(second).and(third)
    }
}

fn write(path: Option<&Path>, text: impl FnOnce() -> Result<String, Error>) -> Result<(), Error> {
    path.map_or(Ok(()), |path| file::write(path, &text()?))
}
