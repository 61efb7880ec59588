//! Whether there is a KVM to run guests with.

use std::fs::File;
use std::io::ErrorKind;

const KVM: &str = "/dev/kvm";

/// Why `/dev/kvm` cannot be used and what to do about that, if it cannot.
pub fn missing() -> Option<String> {
    let error = File::options().read(true).write(true).open(KVM).err()?;
    let what_to_do = match error.kind() {
        ErrorKind::NotFound => {
            "load the kvm_intel or kvm_amd module, or in a container pass --device /dev/kvm"
        }
        ErrorKind::PermissionDenied => {
            "join the group that owns it (sudo usermod -aG kvm $USER, then log in again)"
        }
        _ => "see what `cargo xtask doctor` says",
    };
    Some(format!("{KVM} cannot be opened ({error}): {what_to_do}"))
}

/// Says what that means for tests, if it is so, and whether it is.
pub fn warn_if_missing() -> bool {
    let Some(why) = missing() else { return false };
    println!("WARNING: {why}");
    println!("GUESTS RUN AS THREADS OF A PROCESS: ring 0, INIT-SIPI and benchmarks are not tested");
    true
}
