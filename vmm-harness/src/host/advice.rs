//! Why there is no usable `/dev/kvm`, and how it comes to be: one answer for each place that people run
//! this in.

use super::place::{Inside, Place};
use crate::error::Error;

/// What is wrong, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) what: String,
    /// Lines, each a step or a command.
    pub(super) mend: Vec<String>,
}

fn advice(what: impl Into<String>, mend: &[&str]) -> Advice {
    Advice { what: what.into(), mend: mend.iter().map(|&line| line.into()).collect() }
}

/// Whether the error is about the device, so that the place tells more than it does.
pub(super) fn of(error: &Error, place: &Place) -> Advice {
    let (os, arch) = place.machine;
    if (os, arch) != ("linux", "x86_64") {
        return advice(
            format!("this is {os} on {arch}: guests need Linux on x86-64"),
            &["run it on such a machine, or in CI: GitHub's ubuntu-latest has KVM"],
        );
    }
    match error {
        Error::NoKvm => missing(place),
        Error::KvmPermission { group } => forbidden(place, group),
        error => advice(error.to_string(), &[]),
    }
}

fn missing(place: &Place) -> Advice {
    if let Some(inside) = place.inside().first() {
        return not_passed_on(*inside);
    }
    let module = place.module();
    if place.has_flag("vmx") || place.has_flag("svm") {
        if place.lacks_module(module) {
            return advice(
                format!("does not exist: this kernel was built without {module}"),
                &["install a kernel of the distribution that has it (CONFIG_KVM)"],
            );
        }
        let load = format!("sudo modprobe {module}");
        return advice(
            format!("does not exist: the module {module} is not loaded"),
            &[
                &load,
                "if that says \"Operation not supported\", turn virtualisation on in the firmware's set-up",
            ],
        );
    }
    if place.is_virtual() {
        return nested(place);
    }
    let names = if module == "kvm_intel" { "Intel VT-x" } else { "AMD-V, or SVM" };
    advice(
        "does not exist: the CPU does not offer virtualisation",
        &[&format!(
            "turn it on in the firmware's set-up ({names}), then switch the machine off and on"
        )],
    )
}

/// The device of the host is not there in what all this is in.
fn not_passed_on(inside: Inside) -> Advice {
    match inside {
        Inside::Kubernetes => advice(
            "does not exist in this pod: no device was asked for",
            &[
                "run a KVM device plugin on the nodes, and ask for its resource in the pod:",
                "  resources: { limits: { devices.kubevirt.io/kvm: \"1\" } }",
                "or mount /dev/kvm by hostPath into a privileged container",
            ],
        ),
        Inside::Container => advice(
            "does not exist in this container: it was not passed on",
            &[
                "docker run --device /dev/kvm ...",
                "podman run --device /dev/kvm --group-add keep-groups ...",
            ],
        ),
        Inside::Wsl(1) => advice(
            "does not exist: WSL 1 has no virtual machines",
            &["wsl --set-version DISTRIBUTION 2   (in Windows)"],
        ),
        Inside::Wsl(_) => advice(
            "does not exist: WSL 2 does not pass virtualisation on",
            &[
                "on Windows 11, in %UserProfile%\\.wslconfig:",
                "  [wsl2]",
                "  nestedVirtualization=true",
                "then, in Windows: wsl --shutdown",
            ],
        ),
        Inside::GitHub => advice(
            "does not exist on this runner",
            &[
                "take a Linux x64 runner (runs-on: ubuntu-latest): macOS, Windows and Arm runners \
                     have no KVM",
                "larger and self-hosted runners: one whose machine type has nested virtualisation",
            ],
        ),
    }
}

/// Inside of a virtual machine whose host keeps virtualisation to itself.
fn nested(place: &Place) -> Advice {
    let vendor = place.vendor();
    let is = |names: &[&str]| names.iter().any(|name| vendor.contains(name));
    let mend: &[&str] = if is(&["VMware"]) {
        &[
            "with the machine switched off: Processors, \"Virtualize Intel VT-x/EPT or AMD-V/RVI\"",
            "(vhv.enable = \"TRUE\" in its .vmx file)",
        ]
    } else if is(&["VirtualBox", "innotek"]) {
        &["with the machine switched off: VBoxManage modifyvm NAME --nested-hw-virt on"]
    } else if is(&["Microsoft"]) {
        &[
            "Hyper-V, with the machine switched off:",
            "  Set-VMProcessor -VMName NAME -ExposeVirtualizationExtensions $true",
            "Azure: a size that has nested virtualisation, as Dv5",
        ]
    } else if is(&["Google"]) {
        &[
            "make the machine again with --enable-nested-virtualization, of a type that has it (N2, C3)",
        ]
    } else if is(&["Amazon"]) {
        &["take a bare-metal type (*.metal), or one that has nested virtualisation"]
    } else if is(&["Xen"]) {
        &["in the machine's configuration: hap=1 and nestedhvm=1"]
    } else {
        &[
            "on the host: options kvm_intel nested=1 (kvm_amd likewise) in /etc/modprobe.d/kvm.conf",
            "libvirt, with the machine switched off: <cpu mode='host-passthrough'/>; QEMU: -cpu host",
        ]
    };
    let by = if vendor.is_empty() { "a host".into() } else { vendor };
    advice(
        format!("does not exist: this is a virtual machine ({by}) without nested virtualisation"),
        mend,
    )
}

fn forbidden(place: &Place, group: &str) -> Advice {
    let inside = place.inside();
    if inside.contains(&Inside::GitHub) {
        return advice(
            "may not be opened by the runner's user; a step before this one:",
            &[
                "echo 'KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0666\", OPTIONS+=\"static_node=kvm\"' |",
                "  sudo tee /etc/udev/rules.d/99-kvm.rules",
                "sudo udevadm control --reload-rules && sudo udevadm trigger --name-match=kvm",
            ],
        );
    }
    if inside.contains(&Inside::Container) {
        return advice(
            format!("may not be opened by this container's user (group {group})"),
            &[
                "docker run --device /dev/kvm --group-add \"$(stat -c %g /dev/kvm)\" ...",
                "podman run --device /dev/kvm --group-add keep-groups ...",
            ],
        );
    }
    if place.is_listed(group) {
        return advice(
            format!("may not be opened: you joined {group} after this session began"),
            &[&format!("log in again, or for this shell: newgrp {group}")],
        );
    }
    advice(
        format!("may not be opened by this user: it belongs to the group {group}"),
        &[
            &format!("sudo usermod -aG {group} $USER, then log in again"),
            "where no group owns it, in /etc/udev/rules.d/99-kvm.rules:",
            "  KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\"",
        ],
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A directory that looks like a host, for as long as a test takes.
    struct Root(std::path::PathBuf);

    impl Root {
        /// With these files, and a CPU that has these flags.
        fn new(flags: &str, files: &[(&str, &str)]) -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("percpu-place-{}-{number}", std::process::id());
            let root = Self(std::env::temp_dir().join(name));
            let cpu =
                format!("vendor_id\t: GenuineIntel\nmodel name\t: A CPU\nflags\t\t: fpu {flags}\n");
            root.write("proc/cpuinfo", &cpu);
            files.iter().for_each(|(path, text)| root.write(path, text));
            root
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().expect("a file")).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn nothing(_: &str) -> Option<String> {
        None
    }

    #[track_caller]
    fn says(error: &Error, place: &Place, words: &[&str]) {
        let advice = of(error, place);
        let text = format!("{}\n{}", advice.what, advice.mend.join("\n"));
        for word in words {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
    }

    #[track_caller]
    fn missing_says(flags: &str, files: &[(&str, &str)], words: &[&str]) {
        let root = Root::new(flags, files);
        says(&Error::NoKvm, &Place::made_up(&root.0, nothing), words);
    }

    const RELEASE: (&str, &str) = ("proc/sys/kernel/osrelease", "6.1.0\n");

    #[test]
    fn a_module_that_is_not_loaded_is_to_be_loaded() {
        let depends = ("lib/modules/6.1.0/modules.dep", "kernel/arch/x86/kvm/kvm-intel.ko.xz:\n");
        missing_says(
            "vmx",
            &[RELEASE, depends],
            &["kvm_intel is not loaded", "modprobe kvm_intel"],
        );
        missing_says("vmx", &[], &["modprobe kvm_intel", "firmware"]);
    }

    #[test]
    fn a_kernel_without_the_module_is_told_from_that() {
        let depends = ("lib/modules/6.1.0/modules.dep", "kernel/fs/ext4/ext4.ko:\n");
        missing_says("vmx", &[RELEASE, depends], &["built without kvm_intel", "CONFIG_KVM"]);
    }

    #[test]
    fn virtualisation_may_be_off_in_the_firmware() {
        missing_says("sse2", &[], &["does not offer virtualisation", "Intel VT-x"]);
        let amd = ("proc/cpuinfo", "vendor_id : AuthenticAMD\nflags : fpu\n");
        missing_says("", &[amd], &["AMD-V"]);
    }

    #[test]
    fn a_virtual_machine_without_nested_virtualisation_is_told_by_its_maker() {
        for (vendor, words) in [
            ("QEMU", ["host-passthrough", "nested=1"]),
            ("VMware, Inc.", ["vhv.enable", "VMware, Inc. Box"]),
            ("Microsoft Corporation", ["ExposeVirtualizationExtensions", "Azure"]),
            ("innotek GmbH", ["VBoxManage", "--nested-hw-virt"]),
            ("Google", ["--enable-nested-virtualization", "N2"]),
            ("Amazon EC2", ["metal", "virtual machine (Amazon EC2 Box)"]),
            ("Xen", ["nestedhvm=1", "hap=1"]),
        ] {
            let dmi =
                [("sys/class/dmi/id/sys_vendor", vendor), ("sys/class/dmi/id/product_name", "Box")];
            missing_says("hypervisor", &dmi, &words);
        }
        missing_says("hypervisor", &[], &["(a host)", "libvirt"]);
    }

    #[test]
    fn a_container_has_the_devices_it_was_given() {
        missing_says("vmx", &[(".dockerenv", "")], &["docker run --device /dev/kvm"]);
        missing_says("vmx", &[("run/.containerenv", "")], &["podman run --device /dev/kvm"]);
        let root = Root::new("vmx", &[(".dockerenv", "")]);
        let pod = |name: &str| (name == "KUBERNETES_SERVICE_HOST").then(|| "10.0.0.1".to_owned());
        let place = Place::made_up(&root.0, pod);
        says(&Error::NoKvm, &place, &["device plugin", "devices.kubevirt.io/kvm"]);
    }

    #[test]
    fn wsl_has_to_be_told() {
        let second = "5.15.90.1-microsoft-standard-WSL2";
        let release = |text| [("proc/sys/kernel/osrelease", text)];
        missing_says(
            "hypervisor",
            &release(second),
            &["nestedVirtualization=true", "wsl --shutdown"],
        );
        missing_says("vmx", &release("4.4.0-19041-Microsoft"), &["--set-version"]);
    }

    fn github(name: &str) -> Option<String> {
        (name == "GITHUB_ACTIONS").then(|| "true".to_owned())
    }

    fn me(name: &str) -> Option<String> {
        (name == "USER").then(|| "me".to_owned())
    }

    #[test]
    fn runners_of_github_have_it_or_need_a_rule() {
        let root = Root::new("hypervisor", &[]);
        let place = Place::made_up(&root.0, github);
        says(&Error::NoKvm, &place, &["ubuntu-latest", "macOS"]);
        let error = Error::KvmPermission { group: "kvm".into() };
        says(&error, &place, &["99-kvm.rules", "udevadm"]);
    }

    #[test]
    fn who_may_not_open_it_joins_the_group_or_logs_in_again() {
        let error = Error::KvmPermission { group: "virt".into() };
        let root = Root::new("vmx", &[("etc/group", "virt:x:78:you\n")]);
        let place = Place::made_up(&root.0, me);
        says(&error, &place, &["usermod -aG virt", "log in again", "udev"]);
        root.write("etc/group", "virt:x:78:you,me\n");
        says(&error, &place, &["after this session began", "newgrp virt"]);
        root.write(".dockerenv", "");
        says(&error, &place, &["--group-add"]);
    }

    #[test]
    fn other_machines_are_not_supported() {
        let place = |machine| {
            let mut place = Place::made_up(Path::new("/nowhere"), nothing);
            place.machine = machine;
            place
        };
        says(&Error::NoKvm, &place(("macos", "aarch64")), &["macos on aarch64", "Linux on x86-64"]);
        says(&Error::NoKvm, &place(("linux", "aarch64")), &["linux on aarch64"]);
    }
}
