//! A copy of the source, to be changed and built without touching the original.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::bank::{self, Mutant};
use crate::{cargo, guest};

/// The copy, what is built of it, and the images.
pub struct Copy {
    source: PathBuf,
    target: PathBuf,
    images: PathBuf,
}

impl Copy {
    /// One in `directory`, where an earlier one may be: then cargo has less to do.
    pub fn new(directory: PathBuf) -> Result<Self> {
        let [source, target, images] = ["source", "target", "images"].map(|n| directory.join(n));
        for directory in [&source, &images] {
            fs::create_dir_all(directory)
                .with_context(|| format!("{} cannot be made", directory.display()))?;
        }
        Ok(Self { source, target, images })
    }

    /// Builds the guest with this regression in it; returns where it is.
    pub fn build(&self, mutant: &Mutant) -> Result<PathBuf> {
        self.refresh().context("the source cannot be copied")?;
        bank::apply(mutant, &self.source, false)?;
        let image = guest::image_for_steps_of(&self.source, &self.target)?;
        let kept = self.images.join(&mutant.name);
        fs::copy(&image, &kept).with_context(|| format!("{} cannot be copied", image.display()))?;
        Ok(kept)
    }

    /// Makes the copy equal to the source. Files that are equal are left alone, so that cargo builds
    /// anew what was changed and no more.
    fn refresh(&self) -> Result<()> {
        let files = tracked()?;
        for file in &files {
            let (from, to) = (cargo::root().join(file), self.source.join(file));
            let wanted = fs::read(&from).with_context(|| from.display().to_string())?;
            if fs::read(&to).is_ok_and(|there| there == wanted) {
                continue;
            }
            fs::create_dir_all(to.parent().expect("it lies in the copy"))?;
            fs::write(&to, wanted).with_context(|| to.display().to_string())?;
        }
        remove_others(&self.source, &self.source, &files.into_iter().collect())
    }
}

/// The files of the source that git knows or would add, and that are there.
fn tracked() -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.current_dir(cargo::root());
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = git.output().context("git does not start")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let names = String::from_utf8(output.stdout).context("a file's name is no text")?;
    let files = names.split_terminator('\0').map(PathBuf::from);
    Ok(files.filter(|file| cargo::root().join(file).is_file()).collect())
}

fn remove_others(root: &Path, directory: &Path, files: &HashSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(root, &path, files)?;
        } else if !files.contains(path.strip_prefix(root)?) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
