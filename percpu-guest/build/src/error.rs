//! Why a guest could not be built.

use std::fmt;
use std::process::Command;

/// A sentence that says it, and what can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(pub(crate) String);

impl Error {
    /// A program that is not there, or cannot be run.
    pub(crate) fn no_start(command: &Command, why: &std::io::Error) -> Self {
        Self(format!("{} does not start: {why}", command.get_program().display()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}
