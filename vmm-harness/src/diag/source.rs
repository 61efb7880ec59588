//! Source files, by the names that debug information has for them.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path};

/// No source file is larger.
const MOST_BYTES: u64 = 4 << 20;

/// The text of a source file. The name comes from an image, which may name anything: only what is a file,
/// is not named by a way up, and is as short as source files are, is read.
pub(crate) fn read(path: &Path) -> Option<String> {
    if path.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    // Before it is opened: a pipe would wait for its writer.
    fs::metadata(path).ok().filter(|about| about.is_file() && about.len() <= MOST_BYTES)?;
    let mut text = String::new();
    File::open(path).ok()?.take(MOST_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_read_and_only_where_they_are_named() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/diag/source.rs");
        assert!(read(&here).is_some_and(|text| text.starts_with("//! Source files")));
        assert_eq!(read(&here.join("../source.rs")), None);
        assert_eq!(read(&here.parent().unwrap().join("../diag/source.rs")), None);
        assert_eq!(read(Path::new("/dev/zero")), None);
        assert_eq!(read(here.parent().unwrap()), None);
    }
}
