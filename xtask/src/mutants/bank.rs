//! The patches, and what their first lines say.
//!
//! A patch begins with lines of comment: what the bug is, and last `# finds:` with the invariants of
//! which one must be seen broken. A crash somewhere is not enough.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::cargo;

/// The regressions that there must be a patch for.
const NAMES: [&str; 15] =
    ["A1", "A2", "A4", "A6", "A7", "A9", "C1", "C2", "C3", "C4", "L1", "R1", "H1", "H2", "H3"];

/// A regression.
pub struct Mutant {
    pub name: String,
    /// The first sentence of what is wrong.
    pub what: String,
    /// Invariants of which one is broken.
    pub finds: Vec<String>,
    /// `None`: the source as it is.
    pub patch: Option<PathBuf>,
}

impl Mutant {
    /// The source as it is.
    pub fn none() -> Self {
        let what = "The source as it is".to_owned();
        Self { name: "none".to_owned(), what, finds: Vec::new(), patch: None }
    }

    fn read(name: &str) -> Result<Self> {
        let path = directory().join(name).with_extension("patch");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("there is no patch {}", path.display()))?;
        let (what, finds) =
            header(&text).with_context(|| format!("the first lines of {}", path.display()))?;
        Ok(Self { name: name.to_owned(), what, finds, patch: Some(path) })
    }
}

fn directory() -> PathBuf {
    cargo::root().join("ci/mutants")
}

/// Those with these names, in any case, or all.
pub fn chosen(names: &[String]) -> Result<Vec<Mutant>> {
    for name in names {
        let known = NAMES.iter().any(|known| known.eq_ignore_ascii_case(name));
        ensure!(known, "there is no regression {name}: they are {}", NAMES.join(", "));
    }
    let wanted =
        |known: &str| names.is_empty() || names.iter().any(|name| known.eq_ignore_ascii_case(name));
    NAMES.iter().filter(|name| wanted(name)).map(|name| Mutant::read(name)).collect()
}

/// What is wrong, in its first sentence, and the invariants.
fn header(text: &str) -> Result<(String, Vec<String>)> {
    let comment = text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
    let lines: Vec<_> = comment.collect();
    let Some((finds, what)) = lines.split_last() else { bail!("say what the patch is") };
    let finds = finds.strip_prefix("finds:").context("the last says `# finds:`")?;
    let finds: Vec<_> = finds.split_whitespace().map(str::to_owned).collect();
    let what = what.join(" ");
    let sentence = what.split_inclusive(['.', ':']).next().unwrap_or_default();
    let sentence = sentence.trim_end_matches(['.', ':']).to_owned();
    ensure!(!finds.is_empty(), "`# finds:` names no invariant");
    ensure!(!sentence.is_empty(), "they say nothing of what is wrong");
    Ok((sentence, finds))
}

/// Checks that each regression has a patch, that no file is something else, and that all apply to
/// the source as it is.
pub fn check() -> Result<()> {
    for entry in std::fs::read_dir(directory()).context("ci/mutants")? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let known =
            NAMES.contains(&name.as_str()) && path.extension().is_some_and(|e| e == "patch");
        ensure!(known || path.ends_with("README.md"), "{} is no regression's", path.display());
    }
    for mutant in chosen(&[])? {
        apply(&mutant, cargo::root(), true)?;
    }
    println!("{} patches apply", NAMES.len());
    Ok(())
}

/// Applies the patch to the source in `root`, or looks whether it could be.
pub fn apply(mutant: &Mutant, root: &Path, only_check: bool) -> Result<()> {
    let Some(patch) = &mutant.patch else { return Ok(()) };
    let mut git = std::process::Command::new("git");
    // What lies around the directory is none of its business.
    git.current_dir(root).env("GIT_CEILING_DIRECTORIES", root.parent().unwrap_or(root));
    git.args(["apply", "--whitespace=nowarn"]).args(only_check.then_some("--check")).arg(patch);
    let output = git.output().context("git does not start")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} does not apply: {}", mutant.name, error.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_what_is_wrong_and_what_it_breaks() {
        let (what, finds) =
            header("# A bug, in\n# two lines: more.\n# finds: I7 I8\ndiff").unwrap();
        assert_eq!((what.as_str(), finds), ("A bug, in two lines", vec!["I7".into(), "I8".into()]));
        for bad in ["diff", "# finds: I7\n", "# A bug.\ndiff", "# A bug.\n# finds:\n"] {
            assert!(header(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn each_regression_has_a_patch_that_applies() {
        check().unwrap();
    }
}
