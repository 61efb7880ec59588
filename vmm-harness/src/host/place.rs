//! Where this program runs, as far as files and the environment tell: the CPU, the kernel, containers and
//! virtual machines around it, and who may open `/dev/kvm`.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// A host, or a directory that looks like one.
pub(super) struct Place {
    root: PathBuf,
    environment: fn(&str) -> Option<String>,
    /// As [`std::env::consts::OS`] and `ARCH` have them.
    pub(super) machine: (&'static str, &'static str),
}

/// What a process may be inside of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inside {
    /// A container of Docker, Podman or the like.
    Container,
    /// A pod.
    Kubernetes,
    /// Windows' Linux, which is a virtual machine from version 2 on.
    Wsl(u8),
    /// A job of GitHub's.
    GitHub,
}

impl Place {
    /// This host.
    pub(super) fn here() -> Self {
        Self {
            root: "/".into(),
            environment: |name| std::env::var(name).ok(),
            machine: (std::env::consts::OS, std::env::consts::ARCH),
        }
    }

    #[cfg(test)]
    pub(super) fn made_up(root: &std::path::Path, environment: fn(&str) -> Option<String>) -> Self {
        Self { root: root.into(), environment, machine: ("linux", "x86_64") }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// A file's text; nothing if it cannot be read.
    pub(super) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap_or_default()
    }

    fn variable(&self, name: &str) -> Option<String> {
        (self.environment)(name).filter(|value| !value.is_empty())
    }

    /// The CPU's name.
    pub(super) fn cpu(&self) -> String {
        field(&self.read("/proc/cpuinfo"), "model name").unwrap_or("unknown").to_owned()
    }

    /// Whether the CPU says this of itself.
    pub(super) fn has_flag(&self, flag: &str) -> bool {
        let info = self.read("/proc/cpuinfo");
        field(&info, "flags").is_some_and(|flags| flags.split(' ').any(|other| other == flag))
    }

    /// The kernel module that serves `/dev/kvm` on such a CPU.
    pub(super) fn module(&self) -> &'static str {
        let info = self.read("/proc/cpuinfo");
        match field(&info, "vendor_id") {
            Some("GenuineIntel") => "kvm_intel",
            _ => "kvm_amd",
        }
    }

    /// The modules of that kind that are there.
    pub(super) fn modules(&self) -> Vec<&'static str> {
        let known = ["kvm_intel", "kvm_amd", "kvm_pvm"];
        known.into_iter().filter(|name| self.exists(&format!("/sys/module/{name}"))).collect()
    }

    /// Whether the kernel brings modules, so that one that is missing among them was never built.
    pub(super) fn lacks_module(&self, module: &str) -> bool {
        let release = self.read("/proc/sys/kernel/osrelease");
        let directory = format!("/lib/modules/{}", release.trim());
        if release.trim().is_empty() || !self.exists(&format!("{directory}/modules.dep")) {
            return false;
        }
        let file = format!("/{}.ko", module.replace('_', "-"));
        let names = ["modules.dep", "modules.builtin"];
        !names.iter().any(|list| self.read(&format!("{directory}/{list}")).contains(&file))
    }

    /// Memory that programs may still have.
    pub(super) fn memory_kib(&self) -> Option<u64> {
        field(&self.read("/proc/meminfo"), "MemAvailable")?.split(' ').next()?.parse().ok()
    }

    /// Who made the machine, as its firmware says: in a virtual machine, what runs that.
    pub(super) fn vendor(&self) -> String {
        let read = |name: &str| self.read(&format!("/sys/class/dmi/id/{name}"));
        format!("{} {}", read("sys_vendor").trim(), read("product_name").trim()).trim().to_owned()
    }

    /// Whether this is a virtual machine.
    pub(super) fn is_virtual(&self) -> bool {
        self.has_flag("hypervisor")
    }

    /// What all this is in, the innermost first.
    pub(super) fn inside(&self) -> Vec<Inside> {
        let mut inside = Vec::new();
        if self.variable("KUBERNETES_SERVICE_HOST").is_some() {
            inside.push(Inside::Kubernetes);
        }
        let container = self.exists("/.dockerenv")
            || self.exists("/run/.containerenv")
            || self.variable("container").is_some();
        if container {
            inside.push(Inside::Container);
        }
        if self.variable("GITHUB_ACTIONS").is_some() {
            inside.push(Inside::GitHub);
        }
        let release = self.read("/proc/sys/kernel/osrelease");
        // "5.15.90.1-microsoft-standard-WSL2", and "4.4.0-19041-Microsoft" of the first version.
        if release.to_lowercase().contains("microsoft") {
            inside.push(Inside::Wsl(if release.contains("Microsoft") { 1 } else { 2 }));
        }
        inside
    }

    /// Name of the group that owns `/dev/kvm`; its number where it has no name.
    pub(super) fn device_group(&self) -> String {
        let Ok(device) = std::fs::metadata(self.path("/dev/kvm")) else { return "kvm".into() };
        group_name(&self.read("/etc/group"), device.gid())
            .unwrap_or_else(|| device.gid().to_string())
    }

    /// Whether the user is a member of the group by the host's list; this process may have begun before.
    pub(super) fn is_listed(&self, group: &str) -> bool {
        let Some(user) = self.variable("USER") else { return false };
        let groups = self.read("/etc/group");
        let line = groups.lines().find(|line| line.split(':').next() == Some(group));
        let members = line.and_then(|line| line.split(':').nth(3)).unwrap_or_default();
        members.split(',').any(|member| member == user)
    }
}

/// The value of a `name : value` line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// Looks a group number up in the text of `/etc/group`.
fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_of_the_device_is_found_by_its_number() {
        let groups = "root:x:0:\nkvm:x:78:me\nother:x:780:\n";
        assert_eq!(group_name(groups, 78).as_deref(), Some("kvm"));
        assert_eq!(group_name(groups, 1), None);
    }
}
