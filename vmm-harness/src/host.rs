//! What this host's KVM can do, and which ring the guest shall run in.

use kvm_ioctls::Kvm;

use crate::error::Error;

/// Opens `/dev/kvm`, with an error that says what to do when that fails.
pub fn open_kvm() -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|e| match e.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => Error::NoKvm,
        libc::EACCES | libc::EPERM => Error::KvmPermission { group: device_group() },
        errno => Error::KvmOpen(std::io::Error::from_raw_os_error(errno)),
    })?;
    match kvm.get_api_version() {
        12 => Ok(kvm),
        found => Err(Error::KvmApiVersion { found }),
    }
}

/// Name of the group that owns `/dev/kvm`, by the host's group file; its number where it has no
/// name.
fn device_group() -> String {
    use std::os::unix::fs::MetadataExt;
    let Ok(device) = std::fs::metadata("/dev/kvm") else { return "kvm".into() };
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    group_name(&groups, device.gid()).unwrap_or_else(|| device.gid().to_string())
}

/// Looks a group number up in the text of `/etc/group`.
fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == gid.to_string()).then(|| name.to_owned())
    })
}
