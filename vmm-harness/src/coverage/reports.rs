//! Coverage for programs, as a file.

use std::path::Path;

use super::lcov::write_lcov;
use super::source::SourceCoverage;
use crate::error::Error;
use crate::report::file;

/// Writes which lines of percpu-core were reached, in the form of lcov.
///
/// # Errors
/// The file cannot be written.
pub fn write_lcov_file(path: &Path, coverage: &SourceCoverage) -> Result<(), Error> {
    let mut text = Vec::new();
    write_lcov(&mut text, coverage).expect("memory can be written");
    file::write(path, &String::from_utf8(text).expect("made of strings"))
}
