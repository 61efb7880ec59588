//! Files that are there whole or not at all, whatever happens while they are written; and whether
//! they could be written, asked before the work begins.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::Error;

/// Writes a file in one step, as others see it: under another name first, and to the disk. What
/// is no file, as a pipe, is written as it is.
///
/// # Errors
/// The file cannot be written; what was there before is as it was.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    let wrong = |source| Error::FileUnwritable { path: path.into(), source };
    if is_special(path) {
        return fs::write(path, text).map_err(wrong);
    }
    // A link stays a link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let directory = directory_of(&target);
    let temporary = beside(&target).map_err(wrong)?;
    let written = write_through(&temporary, text)
        .and_then(|()| fs::rename(&temporary, &target))
        // So that the name is on the disk, too.
        .and_then(|()| File::open(directory)?.sync_all());
    written.map_err(|error| {
        // There may be none, and what is wrong is said already.
        let _ = fs::remove_file(&temporary);
        wrong(error)
    })
}

/// Writes a value as JSON.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    write(path, &to_json(value))
}

/// A value as JSON.
pub(crate) fn to_json(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value);
    text.expect("reports are strings, numbers and lists of them") + "\n"
}

/// Makes sure that a report can be written to `path` later: a run should not end with its result
/// lost.
///
/// # Errors
/// It cannot.
pub fn check_writable(path: &Path) -> Result<(), Error> {
    let wrong = |source| Error::FileUnwritable { path: path.into(), source };
    if path.exists()
        && path.metadata().is_ok_and(|metadata| !metadata.is_file())
        && !is_special(path)
    {
        return Err(wrong(io::ErrorKind::IsADirectory.into()));
    }
    if path.exists() {
        OpenOptions::new().append(true).open(path).map_err(wrong)?;
    }
    if is_special(path) {
        return Ok(());
    }
    // Beside it, as when it is written: an empty report is no report.
    let probe = beside(path).map_err(wrong)?;
    File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(wrong)
}

/// What is there and is neither a file nor a directory.
fn is_special(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let name = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
    Ok(directory_of(path).join(name))
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write_through(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("percpu-file-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let directory = directory("whole");
        let (path, link) = (directory.join("r.json"), directory.join("link.json"));
        fs::write(&path, "before").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        check_writable(&link).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        write(&link, "after").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after");
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_refused_before_and_leaves_nothing() {
        let directory = directory("refused");
        for path in [Path::new("/nonexistent/r.json"), &directory] {
            let error = check_writable(path).unwrap_err();
            assert!(error.to_string().contains(&*path.to_string_lossy()), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
        check_writable(&directory.join("new.json")).unwrap();
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_device_is_written_and_stays_a_device() {
        let null = Path::new("/dev/null");
        check_writable(null).unwrap();
        write(null, "text").unwrap();
        assert!(is_special(null));
    }
}
