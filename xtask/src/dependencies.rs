//! What others' crates must be for this workspace to use them: licences that go with its own, from
//! crates.io, and content with the compiler that it promises.
//!
//! `cargo deny` knows more, advisories above all (`deny.toml`); this takes nothing but cargo.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use xshell::cmd;

use crate::cargo;

/// As in `deny.toml`.
const LICENCES: [&str; 8] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    rust_version: Option<String>,
}

/// Looks at every crate of the lock file.
pub fn check() -> Result<()> {
    let (sh, cargo) = (cargo::shell()?, cargo::cargo());
    let metadata = cmd!(sh, "{cargo} metadata --format-version 1 --locked").quiet().read()?;
    let Metadata { packages } =
        serde_json::from_str(&metadata).context("cargo's metadata make no sense")?;
    let own = packages.iter().find(|package| package.name == "xtask");
    let promised = own.and_then(|own| own.rust_version.as_deref());
    let promised = numbers(promised.context("the workspace states no rust-version")?);
    let (ours, theirs): (Vec<_>, Vec<_>) =
        packages.iter().partition(|package| package.source.is_none());
    let wrong: Vec<_> = theirs.iter().filter_map(|package| package.wrong(&promised)).collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} crates beside the {} here: licences, sources, compiler", theirs.len(), ours.len());
    Ok(())
}

impl Package {
    /// What is wrong with it.
    fn wrong(&self, promised: &[u64]) -> Option<String> {
        let Self { name, version, .. } = self;
        if self.source.as_deref() != Some(CRATES_IO) {
            return Some(format!("{name} {version} is not from crates.io"));
        }
        if !self.license.as_deref().is_some_and(allows) {
            let licence = self.license.as_deref().unwrap_or("none");
            return Some(format!("{name} {version} has a licence that is not listed: {licence}"));
        }
        let needs =
            self.rust_version.as_deref().filter(|needs| numbers(needs).as_slice() > promised)?;
        Some(format!(
            "{name} {version} needs Rust {needs}, later than the rust-version stated here"
        ))
    }
}

/// `1.88` and `1.88.0` as numbers of equal count.
fn numbers(version: &str) -> Vec<u64> {
    let mut numbers: Vec<_> = version.split('.').map(|part| part.parse().unwrap_or(0)).collect();
    numbers.resize(3, 0);
    numbers
}

/// Whether one can choose listed licences out of an SPDX expression.
fn allows(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let (mut depth, mut split) = (0i32, None);
    let words: Vec<_> = expression.split_inclusive(' ').collect();
    for (n, word) in words.iter().enumerate() {
        depth += word.matches('(').count() as i32 - word.matches(')').count() as i32;
        // OR binds less than AND.
        match word.trim() {
            "OR" if depth == 0 => split = Some((n, true)),
            "AND" if depth == 0 && split.is_none() => split = Some((n, false)),
            _ => {}
        }
    }
    if let Some((n, any)) = split {
        let sides = [words[..n].concat(), words[n + 1..].concat()];
        let mut allowed = sides.iter().map(|side| allows(side));
        return if any { allowed.any(|one| one) } else { allowed.all(|one| one) };
    }
    let one = expression.trim();
    match one.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => allows(inner),
        None => LICENCES.contains(&one),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_allowed_if_one_can_choose() {
        for good in [
            "MIT",
            "MIT OR GPL-2.0",
            "GPL-2.0/MIT",
            "(MIT OR GPL-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "GPL-2.0 AND BSD-3-Clause OR MIT",
        ] {
            assert!(allows(good), "{good}");
        }
        for bad in [
            "GPL-2.0",
            "MIT AND GPL-2.0",
            "(MIT OR Apache-2.0) AND GPL-2.0",
            "",
            "GPL-2.0 OR MPL-2.0",
        ] {
            assert!(!allows(bad), "{bad}");
        }
    }

    #[test]
    fn every_crate_of_the_lock_file_is_allowed() {
        check().unwrap();
    }

    #[test]
    fn what_is_wrong_with_a_crate_is_said() {
        let package = |license: &str, source: &str, needs: &str| Package {
            name: "a".into(),
            version: "1.0.0".into(),
            license: Some(license.into()),
            source: Some(source.into()),
            rust_version: Some(needs.into()),
        };
        let wrong = |package: Package| package.wrong(&numbers("1.88")).unwrap_or_default();
        assert_eq!(wrong(package("MIT", CRATES_IO, "1.88.0")), "");
        assert!(wrong(package("MIT", CRATES_IO, "1.89")).contains("needs Rust 1.89"));
        assert!(wrong(package("MIT", "git+https://a", "1.0")).contains("not from crates.io"));
        assert!(wrong(package("GPL-2.0", CRATES_IO, "1.0")).contains("GPL-2.0"));
    }
}
