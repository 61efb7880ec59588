//! The tools beside cargo that some commands take: whether they are there, and how they come to be.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

/// How cargo-fuzz and what it takes are installed.
pub const INSTALL_FUZZ: &str =
    "rustup toolchain install nightly && cargo install cargo-fuzz --locked";

/// The nightly toolchains that rustup has.
pub fn nightlies(sh: &Shell) -> Result<Vec<String>> {
    let list = cmd!(sh, "rustup toolchain list").quiet().ignore_stderr().read();
    let list = list.context("rustup, which knows the toolchains, does not start")?;
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.filter(|name| name.starts_with("nightly")).map(Into::into).collect())
}

/// Whether a toolchain has all of these components.
pub fn has_components(sh: &Shell, toolchain: &str, components: &[&str]) -> Result<bool> {
    let list = cmd!(sh, "rustup component list --installed --toolchain {toolchain}");
    let list = list.quiet().ignore_stderr().ignore_status().read()?;
    Ok(components.iter().all(|part| list.lines().any(|line| line.starts_with(part))))
}

/// The first nightly toolchain that has all of these components, which `install` installs.
pub fn nightly_with(sh: &Shell, components: &[&str], install: &str) -> Result<String> {
    let nightlies = nightlies(sh).with_context(|| format!("with rustup: {install}"))?;
    for nightly in nightlies {
        if has_components(sh, &nightly, components)? {
            return Ok(nightly);
        }
    }
    bail!("no nightly toolchain has {}; run\n    {install}", components.join(" and "))
}

/// A nightly toolchain with which cargo-fuzz can be run.
pub fn for_fuzzing(sh: &Shell) -> Result<String> {
    match nightlies(sh)?.into_iter().next() {
        Some(toolchain) if runs("cargo-fuzz") => Ok(toolchain),
        _ => bail!(
            "the fuzz targets take a nightly toolchain and cargo-fuzz; install them with\n    \
             {INSTALL_FUZZ}"
        ),
    }
}

/// Whether a program is there.
pub fn runs(program: impl AsRef<OsStr>) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
