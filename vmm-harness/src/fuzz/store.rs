//! Directories of scenarios, and names for what is in them.

use std::fs::{self, File};
use std::path::Path;

use crate::error::Error;
use crate::report::file;

/// Writes a file, whole or not at all. Its directory is made if there is none.
pub(super) fn write(path: &Path, text: &str) -> Result<(), Error> {
    if let Some(directory) = path.parent() {
        let wrong = |source| Error::FileUnwritable { path: path.into(), source };
        fs::create_dir_all(directory).map_err(wrong)?;
    }
    file::write(path, text)
}

/// Makes a directory if there is none, and sees whether files can be made there.
pub(super) fn check(directory: &Path) -> Result<(), Error> {
    let wrong = |source| Error::FileUnwritable { path: directory.into(), source };
    let probe = directory.join(format!(".{}.part", std::process::id()));
    fs::create_dir_all(directory).map_err(wrong)?;
    File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(wrong)
}

/// FNV-1a: names for contents.
pub(super) fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    parts.into_iter().flatten().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
