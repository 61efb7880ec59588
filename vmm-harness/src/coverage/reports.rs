//! Reports of coverage as files.

use std::io;
use std::path::{Path, PathBuf};

use super::file::Coverage;
use super::html::write_html;
use super::lcov::write_lcov;
use super::source::SourceCoverage;
use crate::error::Error;
use crate::fuzz::store;
use crate::image::Image;
use crate::report::check_writable;

/// Which reports are to be written, and where.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Reports {
    /// Write which lines of percpu-core were reached to this file, in the form of lcov.
    #[arg(long, value_name = "FILE")]
    lcov: Option<PathBuf>,
    /// Write the same to this file as a page for a browser, with the source.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Reports {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.lcov.is_some() || self.html.is_some()
    }

    /// Finds out early what would fail late.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn check(&self) -> Result<(), Error> {
        self.lcov.iter().chain(&self.html).try_for_each(|path| check_writable(path))
    }

    /// Writes them.
    ///
    /// # Errors
    /// A file cannot be written, or the coverage is not that of the image.
    pub fn write(&self, image: &Image, coverage: &Coverage) -> Result<(), Error> {
        if !self.any() {
            return Ok(());
        }
        let source = SourceCoverage::of(image, coverage)?;
        let text = |write: fn(&mut Vec<u8>, &SourceCoverage) -> io::Result<()>| {
            let mut text = Vec::new();
            write(&mut text, &source).expect("memory can be written");
            String::from_utf8(text).expect("made of strings")
        };
        let save = |path: Option<&Path>, write| {
            path.map_or(Ok(()), |path| store::write(path, &text(write)))
        };
        save(self.lcov.as_deref(), write_lcov)?;
        save(self.html.as_deref(), write_html)
    }
}
