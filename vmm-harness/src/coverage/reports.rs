//! Reports of coverage as files.

use std::path::PathBuf;

use super::file::Coverage;
use super::html;
use super::lcov::write_lcov;
use super::source::SourceCoverage;
use crate::error::Error;
use crate::image::Image;
use crate::report::{check_writable, file};

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
        if let Some(path) = &self.lcov {
            let mut text = Vec::new();
            write_lcov(&mut text, &source).expect("memory can be written");
            file::write(path, &String::from_utf8(text).expect("made of strings"))?;
        }
        self.html.as_ref().map_or(Ok(()), |path| html::page(&source).write(path))
    }
}
