//! `cargo xtask fuzz`, `replay`, `minimise` and `fuzz-merge`: build everything and become `vmm-harness`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{cargo, guest};

/// Where `vmm-harness` keeps failures.
const KEEP: &str = "PERCPU_FUZZ_DIR";

/// Becomes `vmm-harness SUBCOMMAND` with the guest for the deterministic machine. Returns only if that
/// fails.
pub fn become_harness(subcommand: &str, args: &[OsString]) -> Result<ExitCode> {
    Err(command(subcommand, args)?.exec()).context("vmm-harness does not start")
}

/// Becomes `vmm-harness fuzz-merge`, which needs a guest for reports with source lines only. Returns
/// only if that fails.
pub fn merge(args: &[OsString]) -> Result<ExitCode> {
    let mut command = Command::new(cargo::build_harness()?);
    if wants_lines(args) && std::env::var_os(cargo::IMAGE).is_none() {
        command.env(cargo::IMAGE, guest::image_for_steps()?);
    }
    Err(command.arg("fuzz-merge").args(args).exec()).context("vmm-harness does not start")
}

/// `vmm-harness SUBCOMMAND` with that guest, or the ordinary one for the parallel machine.
pub fn command(subcommand: &str, args: &[OsString]) -> Result<Command> {
    let image = if is_parallel(args) { guest::image()? } else { guest::image_for_steps()? };
    let mut command = Command::new(cargo::build_harness()?);
    command.arg(subcommand).args(args).env(cargo::IMAGE, image);
    if std::env::var_os(KEEP).is_none() {
        command.env(KEEP, relative(cargo::target_dir()?.join("fuzz")));
    }
    Ok(command)
}

/// Whether the arguments ask for a report with source lines.
fn wants_lines(args: &[OsString]) -> bool {
    let mut names = args.iter().filter_map(|arg| arg.to_str()?.split('=').next());
    names.any(|name| name == "--lcov" || name == "--html")
}

/// Whether the arguments name the parallel machine.
fn is_parallel(args: &[OsString]) -> bool {
    args.iter().any(|arg| arg == "--machine=parallel")
        || args.windows(2).any(|pair| pair == ["--machine", "parallel"])
}

/// A path as it is from here, if it lies below: easier to read, and to type.
fn relative(path: PathBuf) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).map(Into::into).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_with_source_lines_are_told_from_the_arguments() {
        let wants = |arg: &str| wants_lines(&["a.json".into(), arg.into()]);
        assert!(wants("--lcov") && wants("--html=x") && wants("--html"));
        assert!(!wants("--json") && !wants("--html-x") && !wants("html"));
    }

    #[test]
    fn the_machine_is_told_from_the_arguments() {
        let parallel = |args: &[&str]| {
            let args: Vec<_> = args.iter().map(OsString::from).collect();
            is_parallel(&args)
        };
        assert!(parallel(&["--seeds", "0..9", "--machine", "parallel"]));
        assert!(parallel(&["--machine=parallel"]));
        assert!(!parallel(&["--machine", "deterministic"]));
        assert!(!parallel(&["--corpus", "parallel", "--machine"]));
    }
}
