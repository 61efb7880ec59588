//! Crates that use the harness as somebody else's would: workspaces of their own below `examples`, checked
//! and tested like the rest, in the same target directory.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use percpu_guest_build::{Build, Kind};
use xshell::{Shell, cmd};

use crate::cargo;

/// The crates: each with a binary `guest` behind a feature of that name.
const CRATES: [&str; 1] = ["free-list"];

fn source(name: &str) -> PathBuf {
    cargo::root().join("examples").join(name)
}

/// A shell in the crate, which gets the workspace's versions of what both depend on.
fn shell(name: &str) -> Result<Shell> {
    let sh = cargo::shell()?;
    sh.copy_file("Cargo.lock", source(name).join("Cargo.lock"))?;
    sh.change_dir(source(name));
    Ok(sh)
}

/// Whether all are formatted.
pub fn form() -> Result<()> {
    for name in CRATES {
        let (sh, cargo) = (shell(name)?, cargo::cargo());
        // As the workspace is.
        let style = cargo::root().join("rustfmt.toml");
        let check = ["--check", "--config-path"];
        cargo::run(cmd!(sh, "{cargo} fmt -- {check...} {style}").into())?;
    }
    Ok(())
}

/// Lints of all, for the host and for the guest.
pub fn lints() -> Result<()> {
    let lints = ["-D", "warnings"];
    for name in CRATES {
        let (sh, cargo, target) = (shell(name)?, cargo::cargo(), cargo::target_dir()?);
        let host = cmd!(sh, "{cargo} clippy --all-targets --target-dir {target} -- {lints...}");
        cargo::run(host.into())?;
        let guest = Build::new(&source(name), name, "guest")?.feature("guest");
        for kind in [Kind::Usual, Kind::Steps] {
            let mut clippy = guest.command("clippy", kind);
            clippy.arg("--").args(lints);
            cargo::run(clippy)?;
        }
    }
    Ok(())
}

/// Documentation of all.
pub fn documentation() -> Result<()> {
    for name in CRATES {
        let (sh, cargo, target) = (shell(name)?, cargo::cargo(), cargo::target_dir()?);
        let doc = cmd!(sh, "{cargo} doc --no-deps --target-dir {target}");
        cargo::run(doc.env("RUSTDOCFLAGS", "-Dwarnings").into())?;
    }
    Ok(())
}

/// The tests of one after the other, as somebody runs them who has nothing but that crate.
pub fn tests(filter: Option<&OsString>, no_vm: Option<&str>) -> Result<bool> {
    let mut passed = true;
    for name in CRATES {
        let (sh, cargo, target) = (shell(name)?, cargo::cargo(), cargo::target_dir()?);
        let tests = cmd!(sh, "{cargo} test --target-dir {target} -- {filter...}");
        let mut tests: Command =
            tests.env_remove(cargo::IMAGE).env_remove(cargo::STEPS_IMAGE).into();
        match no_vm {
            Some(variable) => tests.env(variable, "1"),
            None => tests.env_remove("PERCPU_NO_VM"),
        };
        passed &= cargo::succeeds(tests)?;
    }
    Ok(passed)
}
