//! What the tests of this package share: where the guest image is, and what it may run on.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Whether there are to be no virtual machines: guests run as threads, and what needs KVM is left out.
pub fn no_vm() -> bool {
    std::env::var_os("PERCPU_NO_VM").is_some_and(|value| value == "1")
}

/// What guests can run on here, by the names on the command line, the usual one first.
#[allow(dead_code, reason = "not every test program wants it")]
pub fn engines() -> &'static [&'static str] {
    if no_vm() { &["threads"] } else { &["kvm", "threads"] }
}

/// The guest image: the one that `PERCPU_GUEST_IMAGE` names, else a freshly built one.
#[allow(dead_code, reason = "not every test program wants both")]
pub fn image() -> PathBuf {
    built("PERCPU_GUEST_IMAGE", &["xtask", "guest"])
}

/// The same for the deterministic machine, and `PERCPU_STEPS_IMAGE`.
#[allow(dead_code, reason = "not every test program wants both")]
pub fn steps_image() -> PathBuf {
    built("PERCPU_STEPS_IMAGE", &["xtask", "guest", "--steps"])
}

fn built(variable: &str, build: &[&str]) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let output = Command::new(env!("CARGO"))
        .args(build)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo can be started");
    assert!(output.status.success(), "`cargo {}` failed", build.join(" "));
    let path = String::from_utf8(output.stdout).expect("a path in UTF-8");
    path.trim_end().into()
}
