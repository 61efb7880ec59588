//! How cargo is called: where from, where to, and how quietly.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

/// The image that `vmm-harness` and its tests use.
pub const IMAGE: &str = "PERCPU_GUEST_IMAGE";
/// The image that tests of the deterministic machine use.
pub const STEPS_IMAGE: &str = "PERCPU_STEPS_IMAGE";

/// The checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// A shell in the checkout.
pub fn shell() -> Result<Shell> {
    let sh = Shell::new()?;
    sh.change_dir(root());
    Ok(sh)
}

/// The cargo that runs this program.
pub fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Where cargo puts what it builds, whatever way it was told: this program lies in it.
pub fn target_dir() -> Result<PathBuf> {
    let xtask = std::env::current_exe().context("this program's own path is unknown")?;
    let target = xtask.ancestors().nth(2).context("this program lies in no target directory")?;
    Ok(target.to_owned())
}

/// Builds the host program for speed and returns where it is.
pub fn build_harness() -> Result<PathBuf> {
    let sh = shell()?;
    let cargo = cargo();
    run(cmd!(sh, "{cargo} build --release --package vmm-harness").into())?;
    Ok(target_dir()?.join("release/vmm-harness"))
}

/// Runs a cargo command; that it fails is an error.
pub fn run(command: Command) -> Result<()> {
    let order = command.get_args().next().unwrap_or_default().to_owned();
    ensure!(succeeds(command)?, "`cargo {}` failed", order.display());
    Ok(())
}

/// Runs a cargo command, and passes on what it says on stderr except for what it says every time.
pub fn succeeds(mut command: Command) -> Result<bool> {
    if std::io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} does not start", command.get_program().display()))?;
    for line in BufReader::new(child.stderr.take().expect("it was asked for")).split(b'\n') {
        let line = line.context("cargo's output cannot be read")?;
        let line = String::from_utf8_lossy(&line);
        if !says_nothing_new(&line) {
            eprintln!("{line}");
        }
    }
    Ok(child.wait()?.success())
}

/// Whether cargo says this at the end of any run: that it finished, or, after a test has said so
/// itself, that the test failed.
fn says_nothing_new(line: &str) -> bool {
    let plain = strip_colours(line);
    let plain = plain.trim_start();
    plain.starts_with("Finished `") || plain.starts_with("error: test failed, to rerun pass")
}

/// Drops terminal sequences of the form `ESC [ ... m`.
fn strip_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain += before;
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_says_every_time_is_recognised_in_colour_too() {
        assert!(says_nothing_new("    Finished `release` profile [optimized] target(s) in 0.03s"));
        assert!(says_nothing_new("\x1b[1m\x1b[32m    Finished\x1b[0m `guest` profile in 1s"));
        assert!(says_nothing_new("error: test failed, to rerun pass `--test guest`"));
        assert!(!says_nothing_new("   Compiling libc v0.2.0"));
        assert!(!says_nothing_new("\x1b[1m\x1b[31merror\x1b[0m: cannot find value"));
    }
}
