//! The forms of percpu-core that neither host programs nor the guest use: on other machines, and
//! for one CPU.

use anyhow::Result;
use xshell::cmd;

use crate::cargo;

/// Machines for which percpu-core has no assembly but the offset's register.
const PORTABLE: &[&str] = &["aarch64-unknown-none", "riscv64gc-unknown-none-elf"];

/// Builds for the other machines that can be had, and tests the form for one CPU.
pub fn builds() -> Result<()> {
    let (sh, cargo) = (cargo::shell()?, cargo::cargo());
    let kernel = ["--package", "percpu-core", "--no-default-features"];
    let lints = ["-D", "warnings"];
    for target in PORTABLE {
        if percpu_guest_build::need(target)?.is_err() {
            println!("WARNING: NOT BUILT FOR {target}");
            continue;
        }
        for features in ["", "up"] {
            let check = cmd!(
                sh,
                "{cargo} clippy {kernel...} --features={features} --target {target} -- {lints...}"
            );
            cargo::run(check.into())?;
        }
    }
    cargo::run(cmd!(sh, "{cargo} clippy {kernel...} --features up -- {lints...}").into())?;
    // A kernel whose CPUs are threads, with a platform of its own.
    if cfg!(target_arch = "x86_64") {
        cargo::run(cmd!(sh, "{cargo} test {kernel...} --test counter_no_hotplug").into())?;
    }
    cargo::run(cmd!(sh, "{cargo} test --package percpu-core --features up --test up").into())
}
