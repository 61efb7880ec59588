//! Files that are there whole or not at all, whatever happens while they are written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::error::Error;

/// Writes a file in one step, as others see it: under another name first, and to the disk. Its
/// directory is made if there is none.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    let wrong = |source| Error::FileUnwritable { path: path.into(), source };
    let directory = directory_of(path);
    fs::create_dir_all(directory).map_err(wrong)?;
    let name = path.file_name().ok_or_else(|| wrong(io::ErrorKind::IsADirectory.into()))?;
    let temporary =
        directory.join(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
    let written = write_through(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        // So that the name is on the disk, too.
        .and_then(|()| File::open(directory)?.sync_all());
    written.map_err(|error| {
        // There may be none, and what is wrong is said already.
        let _ = fs::remove_file(&temporary);
        wrong(error)
    })
}

/// Makes a directory if there is none, and sees whether files can be made there.
pub(super) fn check(directory: &Path) -> Result<(), Error> {
    let wrong = |source| Error::FileUnwritable { path: directory.into(), source };
    let probe = directory.join(format!(".{}.part", std::process::id()));
    fs::create_dir_all(directory).map_err(wrong)?;
    File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(wrong)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write_through(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// FNV-1a: names for contents.
pub(super) fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    parts.into_iter().flatten().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
