//! The test programs of percpu-core, for the commands that run them in another way than `cargo test`
//! does.

use anyhow::{Context, Result};

use crate::cargo;

/// The unit tests of the crate, among its test programs.
pub const LIB: &str = "lib";

/// The names of all test programs: [`LIB`] and those in `percpu-core/tests`, sorted.
pub fn all() -> Result<Vec<String>> {
    let tests = cargo::root().join("percpu-core/tests");
    let entries = std::fs::read_dir(&tests).context("percpu-core has no tests")?;
    let mut names = vec![LIB.to_owned()];
    for entry in entries {
        let path = entry?.path();
        let is_program = match path.is_dir() {
            true => path.join("main.rs").is_file(),
            false => path.extension().is_some_and(|extension| extension == "rs"),
        };
        if is_program {
            let name = path.file_stem().context("a file has a name")?;
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Those but `left_out`, whose names are given with the reason.
pub fn without(left_out: &[(&str, &str)]) -> Result<Vec<String>> {
    let mut names = all()?;
    names.retain(|name| left_out.iter().all(|(left_out, _)| name != left_out));
    Ok(names)
}

/// The arguments that tell cargo to take this program.
pub fn target(name: &str) -> Vec<&str> {
    if name == LIB { vec!["--lib"] } else { vec!["--test", name] }
}
