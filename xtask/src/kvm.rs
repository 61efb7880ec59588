//! Whether there is a KVM to run guests with.

use std::fs::File;
use std::io::ErrorKind;

use anyhow::{Result, anyhow};

const KVM: &str = "/dev/kvm";

/// Whether the device is there at all.
pub fn exists() -> bool {
    std::path::Path::new(KVM).exists()
}

/// An error that says what to do unless `/dev/kvm` can be opened.
pub fn require() -> Result<()> {
    let error = match File::options().read(true).write(true).open(KVM) {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    let what_to_do = match error.kind() {
        ErrorKind::NotFound => {
            "load the kvm_intel or kvm_amd module, or in a container pass --device /dev/kvm"
        }
        ErrorKind::PermissionDenied => {
            "join the group that owns it (sudo usermod -aG kvm $USER, then log in again)"
        }
        _ => "see what `cargo xtask doctor` says",
    };
    Err(anyhow!(
        "{KVM} cannot be opened ({error}): {what_to_do}, or leave out what needs it with --no-vm"
    ))
}
