//! What this host's KVM can do, and which ring the guest shall run in.

mod scratch;

use std::fmt;
use std::time::{Duration, Instant};

use kvm_ioctls::{Cap, Kvm};

use crate::error::{Error, Status};

/// Nanoseconds an instruction beyond which ring 0 is emulated: hardware takes about one, an
/// emulator several hundred.
const EMULATED_NS: f64 = 50.0;

/// Capabilities without which nothing goes.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
];

/// Bit of CPUID leaf 7, EBX: `rdgsbase` and `wrgsbase` exist.
const FSGSBASE: u32 = 1 << 0;
/// The kernel lets processes use them.
const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// Which ring the guest shall run in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum RingChoice {
    /// Ring 0, or ring 3 where ring 0 is emulated.
    #[default]
    Auto,
    /// Ring 0.
    #[value(name = "0")]
    Ring0,
    /// Ring 3 over small ring-0 stubs.
    #[value(name = "3")]
    Ring3,
}

/// What was found out about this host.
#[derive(Clone, Debug)]
pub struct HostInfo {
    /// Version of the KVM API.
    pub api_version: i32,
    /// vCPUs that KVM recommends at most.
    pub recommended_vcpus: u32,
    /// vCPUs that a VM can have.
    pub max_vcpus: u32,
    /// Capabilities in use, with whether this host has them.
    pub capabilities: Vec<(&'static str, bool)>,
    /// Nanoseconds an instruction takes in ring 0.
    pub ring0_ns: f64,
    /// Whether the guest can write its GS base itself, which ring 3 needs.
    pub fsgsbase: bool,
    /// The guest's TSC frequency, where KVM tells.
    pub tsc_khz: Option<u32>,
    /// How long it took to find out.
    pub took: Duration,
}

/// This host.
#[derive(Debug)]
pub struct Host;

impl Host {
    /// Asks KVM and times ring 0 in a scratch VM; takes some milliseconds.
    pub fn probe() -> Result<HostInfo, Error> {
        let start = Instant::now();
        let kvm = open_kvm()?;
        let capabilities: Vec<_> =
            NEEDED.iter().map(|(cap, name)| (*name, kvm.check_extension(*cap))).collect();
        let fsgsbase = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?
            .as_slice()
            .iter()
            .any(|leaf| leaf.function == 7 && leaf.index == 0 && leaf.ebx & FSGSBASE != 0);
        // kvm-pvm does not announce it, but its ring 3 runs as a process of the host does.
        // SAFETY: reads the auxiliary vector; an unknown key gives 0.
        let of_processes = unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0;
        let speed = scratch::measure(&kvm)?;
        Ok(HostInfo {
            api_version: kvm.get_api_version(),
            recommended_vcpus: kvm.get_nr_vcpus() as u32,
            max_vcpus: kvm.get_max_vcpus() as u32,
            capabilities,
            ring0_ns: speed.ring0_ns,
            fsgsbase: fsgsbase || of_processes,
            tsc_khz: speed.tsc_khz,
            took: start.elapsed(),
        })
    }
}

impl HostInfo {
    /// The first capability that is missing, as an error.
    pub fn require_capabilities(&self) -> Result<(), Error> {
        match self.capabilities.iter().find(|(_, present)| !present) {
            Some((name, _)) => Err(Error::KvmCapability(name)),
            None => Ok(()),
        }
    }

    /// Refuses more vCPUs than KVM gives.
    pub fn require_vcpus(&self, wanted: u32) -> Result<(), Error> {
        if wanted > self.max_vcpus {
            return Err(Error::TooManyCpus { wanted, max: self.max_vcpus });
        }
        Ok(())
    }

    /// Whether ring 0 is emulated.
    pub fn emulates_ring0(&self) -> bool {
        self.ring0_ns > EMULATED_NS
    }

    /// The ring to run the guest in, and why.
    pub fn choose_ring(&self, choice: RingChoice) -> (u8, String) {
        let cost = format!("an instruction takes {:.1} ns in ring 0", self.ring0_ns);
        match choice {
            RingChoice::Ring0 if self.emulates_ring0() => {
                (0, format!("asked for, though {cost}: ring 0 is emulated here and will be slow"))
            }
            RingChoice::Ring0 => (0, "asked for".into()),
            RingChoice::Ring3 => (3, "asked for".into()),
            RingChoice::Auto if !self.emulates_ring0() => (0, format!("{cost}: it runs natively")),
            RingChoice::Auto if !self.fsgsbase => {
                (0, format!("{cost}: it is emulated, but without FSGSBASE ring 3 cannot be used"))
            }
            RingChoice::Auto => (3, format!("{cost}: it is emulated, ring 3 runs natively")),
        }
    }
}

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
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

/// What `doctor` prints: what this host has, what will be used and why, and what to do when
/// something is missing.
#[derive(Debug)]
pub struct Doctor {
    host: Result<HostInfo, Error>,
    cpu: String,
    cores: usize,
    module: String,
    memory: String,
}

impl Doctor {
    /// Examines this host. What goes wrong is part of the result.
    pub fn examine() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let modules = ["kvm_intel", "kvm_amd", "kvm_pvm"];
        let loaded = modules
            .into_iter()
            .filter(|module| std::path::Path::new("/sys/module").join(module).exists());
        let module = loaded.collect::<Vec<_>>().join(", ");
        Self {
            host: Host::probe(),
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
            module: if module.is_empty() { "none that is known".into() } else { module },
            memory: field(&read("/proc/meminfo"), "MemAvailable").unwrap_or("unknown").to_owned(),
        }
    }

    /// The status with which `doctor` ends.
    pub fn status(&self) -> Status {
        match &self.host {
            Ok(host) => host.require_capabilities().map_or_else(|e| e.status(), |()| Status::Held),
            Err(e) => e.status(),
        }
    }
}

/// The value of a `name : value` line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

impl fmt::Display for Doctor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: &str| writeln!(f, "{name:<24}{value}");
        row("CPU", &self.cpu)?;
        row("cores", &self.cores.to_string())?;
        row("memory available", &self.memory)?;
        row("KVM modules", &self.module)?;
        let host = match &self.host {
            Ok(host) => host,
            Err(e) => {
                row("KVM", "not usable")?;
                return writeln!(f, "\n{e}");
            }
        };
        row("KVM API", &host.api_version.to_string())?;
        let vcpus = format!("{} recommended, {} at most", host.recommended_vcpus, host.max_vcpus);
        row("vCPUs", &vcpus)?;
        for (name, present) in &host.capabilities {
            row(name, if *present { "yes" } else { "MISSING" })?;
        }
        row("FSGSBASE", if host.fsgsbase { "yes" } else { "no" })?;
        let tsc = host.tsc_khz.map_or("unknown".into(), |khz| format!("{} MHz", khz / 1000));
        row("TSC", &tsc)?;
        row("ring 0", &format!("{:.1} ns an instruction", host.ring0_ns))?;
        row("probe", &format!("{:.1} ms", host.took.as_secs_f64() * 1e3))?;
        let (ring, why) = host.choose_ring(RingChoice::Auto);
        row("ring for the guest", &format!("{ring} ({why})"))?;
        match host.require_capabilities() {
            Ok(()) => writeln!(f, "\nThis host can run the percpu guest."),
            Err(e) => writeln!(f, "\n{e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(ring0_ns: f64, fsgsbase: bool) -> HostInfo {
        HostInfo {
            api_version: 12,
            recommended_vcpus: 2,
            max_vcpus: 8,
            capabilities: vec![("KVM_CAP_IRQCHIP", true)],
            ring0_ns,
            fsgsbase,
            tsc_khz: None,
            took: Duration::ZERO,
        }
    }

    #[test]
    fn ring_3_is_taken_where_ring_0_is_emulated() {
        let ring = |ns, fsgsbase, choice| host(ns, fsgsbase).choose_ring(choice).0;
        assert_eq!(ring(0.7, true, RingChoice::Auto), 0);
        assert_eq!(ring(800.0, true, RingChoice::Auto), 3);
        assert_eq!(ring(800.0, false, RingChoice::Auto), 0);
        assert_eq!(ring(800.0, true, RingChoice::Ring0), 0);
        assert_eq!(ring(0.7, true, RingChoice::Ring3), 3);
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut poor = host(1.0, true);
        poor.capabilities.push(("KVM_CAP_SIGNAL_MSI", false));
        let error = poor.require_capabilities().unwrap_err();
        assert!(error.to_string().contains("KVM_CAP_SIGNAL_MSI"), "{error}");
        assert_eq!(error.exit_code(), 3);
        assert!(host(1.0, true).require_vcpus(8).is_ok());
        assert_eq!(host(1.0, true).require_vcpus(9).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn doctor_says_what_to_do_without_kvm() {
        let doctor = Doctor {
            host: Err(Error::KvmPermission { group: "kvm".into() }),
            cpu: "a CPU".into(),
            cores: 1,
            module: "kvm_amd".into(),
            memory: "1 kB".into(),
        };
        let text = doctor.to_string();
        assert!(text.contains("usermod -aG kvm"), "{text}");
        assert_eq!(doctor.status(), Status::Host);
    }

    #[test]
    fn group_of_the_device_is_found_by_its_number() {
        let groups = "root:x:0:\nkvm:x:78:me\nother:x:780:\n";
        assert_eq!(group_name(groups, 78).as_deref(), Some("kvm"));
        assert_eq!(group_name(groups, 1), None);
    }

    #[test]
    fn probe_of_a_host_with_kvm_measures_a_plausible_speed() {
        if open_kvm().is_err() {
            eprintln!("no usable /dev/kvm: not measured");
            return;
        }
        let host = Host::probe().unwrap();
        assert!(host.ring0_ns > 0.1 && host.ring0_ns < 100_000.0, "{host:?}");
        assert!(host.max_vcpus >= 1, "{host:?}");
        println!("{}", Doctor::examine());
    }
}
