//! What the tests of this package share: where the guest image is, and whether VMs may be used.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Whether tests that need a VM are to leave themselves out.
pub fn no_vm() -> bool {
    std::env::var_os("PERCPU_NO_VM").is_some_and(|value| value == "1")
}

/// The guest image: the one that `PERCPU_GUEST_IMAGE` names, else a freshly built one.
pub fn image() -> PathBuf {
    if let Some(path) = std::env::var_os("PERCPU_GUEST_IMAGE") {
        return path.into();
    }
    let output = Command::new(env!("CARGO"))
        .args(["xtask", "guest"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo can be started");
    assert!(output.status.success(), "`cargo xtask guest` failed");
    let path = String::from_utf8(output.stdout).expect("a path in UTF-8");
    path.trim_end().into()
}
