//! `cargo xtask doctor`: what can be built and run here.

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use percpu_guest_build::BARE;
use xshell::{Shell, cmd};

use crate::toolchain::{self, INSTALL_FUZZ};
use crate::{cargo, miri, tsan};

/// A tool, and what to do where it is missing.
struct Tool {
    name: &'static str,
    /// What there is; `None` if there is nothing.
    found: Option<String>,
    /// For what it is needed.
    needed_for: &'static str,
    mend: String,
}

/// Says which tools are there, then becomes `vmm-harness doctor`.
pub fn doctor() -> Result<ExitCode> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        println!(
            "missing  host                this is {os} on {arch}: guests need Linux on x86-64"
        );
        return Ok(ExitCode::from(3));
    }
    let sh = cargo::shell()?;
    for tool in tools(&sh) {
        println!("{}", tool.line(std::io::stdout().is_terminal() && colours()));
    }
    let harness = cargo::build_harness()?;
    Err(Command::new(harness).arg("doctor").exec()).context("vmm-harness does not start")
}

fn tools(sh: &Shell) -> Vec<Tool> {
    let version = |command: xshell::Cmd<'_>| {
        command
            .quiet()
            .ignore_stderr()
            .read()
            .ok()
            .and_then(|text| Some(text.lines().next()?.to_owned()))
    };
    let nightlies = toolchain::nightlies(sh).unwrap_or_default();
    let has = |components: &[&str]| {
        let has = |name: &&String| toolchain::has_components(sh, name, components).unwrap_or(false);
        nightlies.iter().find(has).cloned()
    };
    let installed = percpu_guest_build::is_installed(BARE).unwrap_or(false);
    vec![
        Tool {
            name: "Rust",
            found: version(cmd!(sh, "rustc --version")),
            needed_for: "everything",
            mend: "https://rustup.rs".into(),
        },
        Tool {
            name: "guest target",
            found: installed.then(|| BARE.to_owned()),
            needed_for: "the guest",
            mend: "the first build of the guest adds it".into(),
        },
        Tool {
            name: "nightly Rust",
            found: nightlies.first().cloned(),
            needed_for: "miri and fuzz-vmm",
            mend: "rustup toolchain install nightly".into(),
        },
        Tool {
            name: "Miri",
            found: has(miri::COMPONENTS),
            needed_for: "miri and ci",
            mend: miri::INSTALL.into(),
        },
        Tool {
            name: "library source",
            found: has(tsan::COMPONENTS),
            needed_for: "tsan",
            mend: tsan::INSTALL.into(),
        },
        Tool {
            name: "cargo-fuzz",
            found: toolchain::runs("cargo-fuzz").then(|| "there".to_owned()),
            needed_for: "fuzz-vmm",
            mend: INSTALL_FUZZ.into(),
        },
        Tool {
            name: "genhtml",
            found: version(cmd!(sh, "genhtml --version")),
            needed_for: "other pages of --lcov files than those of --html",
            mend: "the package lcov of your distribution".into(),
        },
    ]
}

impl Tool {
    fn line(&self, colours: bool) -> String {
        let (mark, code) =
            if self.found.is_some() { ("ok     ", "1;32") } else { ("warn   ", "1") };
        let mark = if colours { format!("\x1b[{code}m{mark}\x1b[0m") } else { mark.to_owned() };
        match &self.found {
            Some(found) => format!("{mark}  {:<20}{found}", self.name),
            None => format!(
                "{mark}  {:<20}missing, for {}\n{:29}{}",
                self.name, self.needed_for, "", self.mend
            ),
        }
    }
}

/// Whether the environment leaves colours to a terminal.
fn colours() -> bool {
    let set = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var("CLICOLOR").map_or(true, |value| value != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_told_with_what_it_is_for_and_how_to_get_it() {
        let tool = |found| Tool {
            name: "Miri",
            found,
            needed_for: "miri",
            mend: "rustup component add miri".into(),
        };
        let there = tool(Some("nightly-x86_64".into())).line(false);
        assert_eq!(there, "ok       Miri                nightly-x86_64");
        let text = tool(None).line(false);
        assert!(text.starts_with("warn     Miri                missing, for miri\n"), "{text}");
        assert!(text.ends_with("rustup component add miri"), "{text}");
        assert!(tool(None).line(true).contains('\u{1b}'));
    }
}
