//! Crates that are workspaces of their own: examples, which use the harness as another project would, and
//! tests that need other features than the workspace's members. They are checked and tested like the
//! rest, in the same target directory.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use percpu_guest_build::{Build, Kind};
use xshell::{Shell, cmd};

use crate::cargo;

struct Standalone {
    path: &'static str,
    /// The package, if it has a binary `guest` behind a feature of that name.
    guest: Option<&'static str>,
    /// How it is tested: options of `cargo test`.
    profiles: &'static [&'static str],
}

const CRATES: [Standalone; 2] = [
    Standalone {
        path: "examples/free-list",
        guest: Some("free-list"),
        profiles: &["--profile=dev"],
    },
    // A release build needs another amount of stack and has no debug assertions.
    Standalone {
        path: "percpu-core/kernel-tests",
        guest: None,
        profiles: &["--profile=dev", "--profile=release"],
    },
];

impl Standalone {
    fn source(&self) -> PathBuf {
        cargo::root().join(self.path)
    }

    /// A shell in the crate, which gets the workspace's versions of what both depend on.
    fn shell(&self) -> Result<Shell> {
        let sh = cargo::shell()?;
        sh.copy_file("Cargo.lock", self.source().join("Cargo.lock"))?;
        sh.change_dir(self.source());
        Ok(sh)
    }
}

/// Whether all are formatted.
pub fn form() -> Result<()> {
    for this in &CRATES {
        let (sh, cargo) = (this.shell()?, cargo::cargo());
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
    for this in &CRATES {
        let (sh, cargo, target) = (this.shell()?, cargo::cargo(), cargo::target_dir()?);
        let host = cmd!(sh, "{cargo} clippy --all-targets --target-dir {target} -- {lints...}");
        cargo::run(host.into())?;
        let Some(name) = this.guest else { continue };
        let guest = Build::new(&this.source(), name, "guest")?.feature("guest");
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
    for this in &CRATES {
        let (sh, cargo, target) = (this.shell()?, cargo::cargo(), cargo::target_dir()?);
        let doc = cmd!(sh, "{cargo} doc --no-deps --target-dir {target}");
        cargo::run(doc.env("RUSTDOCFLAGS", "-Dwarnings").into())?;
    }
    Ok(())
}

/// The tests of one after the other, as in a checkout that has nothing but that crate.
pub fn tests(filter: Option<&OsString>, no_vm: Option<&str>) -> Result<bool> {
    let mut passed = true;
    for this in &CRATES {
        let (sh, cargo, target) = (this.shell()?, cargo::cargo(), cargo::target_dir()?);
        for profile in this.profiles {
            let tests = cmd!(sh, "{cargo} test {profile} --target-dir {target} -- {filter...}");
            let mut tests: Command =
                tests.env_remove(cargo::IMAGE).env_remove(cargo::STEPS_IMAGE).into();
            match no_vm {
                Some(variable) => tests.env(variable, "1"),
                None => tests.env_remove("PERCPU_NO_VM"),
            };
            passed &= cargo::succeeds(tests)?;
        }
    }
    Ok(passed)
}
