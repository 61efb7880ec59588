//! What this host's KVM can do, and which ring the guest shall run in.

mod advice;
mod doctor;
mod engine;
mod place;
mod scratch;

use std::time::{Duration, Instant};

use kvm_ioctls::{Cap, Kvm};

use crate::error::Error;
use crate::vm::Engine;
pub use doctor::Doctor;
pub use engine::EngineChoice;
use place::Place;

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
    /// What runs guests. All that is said of KVM is of no account if it is another.
    pub engine: Engine,
    /// Why this one.
    pub why: String,
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
            engine: Engine::Kvm,
            why: "/dev/kvm can be used".into(),
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
            _ if self.engine == Engine::Threads => (3, "a process runs in ring 3".into()),
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
        libc::EACCES | libc::EPERM => Error::KvmPermission { group: Place::here().device_group() },
        errno => Error::KvmOpen(std::io::Error::from_raw_os_error(errno)),
    })?;
    match kvm.get_api_version() {
        12 => Ok(kvm),
        found => Err(Error::KvmApiVersion { found }),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(super) fn host(ring0_ns: f64, fsgsbase: bool) -> HostInfo {
        HostInfo {
            engine: Engine::Kvm,
            why: String::new(),
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
