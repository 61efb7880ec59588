//! Everything that ends a run early, one sentence each that says what to do, and the exit statuses.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fmt, io};

use percpu_guest::abi::{ABI_VERSION, IMAGE_HEADER_SYMBOL, SharedHeader};
use vm_memory::guest_memory;

use crate::memory::Wild;

/// What the process says to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Every invariant held.
    Held = 0,
    /// An invariant was broken, or a test failed.
    Broken = 1,
    /// The command line, a file or the image is wrong.
    Usage = 2,
    /// This host cannot run virtual machines.
    Host = 3,
    /// The guest crashed.
    Crashed = 4,
    /// A CPU hung.
    Hung = 5,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        ExitCode::from(status as u8)
    }
}

/// Why a run could not be started or finished.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An image whose steps nobody counts.
    #[error(
        "{path} was not built for a machine that runs CPUs one at a time: build it with \
         `cargo xtask guest --steps`"
    )]
    NotInstrumented {
        /// The image.
        path: PathBuf,
    },
    /// The image counts steps, and whoever runs it does not read them.
    #[error(
        "{path} was built for the machine that runs CPUs one at a time: build the ordinary one with \
         `cargo xtask guest`"
    )]
    Instrumented {
        /// The image.
        path: PathBuf,
    },
    /// The guest stopped before any run began.
    #[error("the guest does not boot: {0}")]
    GuestBoot(String),
    /// There is no `/dev/kvm`.
    #[error(
        "/dev/kvm does not exist: load the kvm_intel or kvm_amd module, enable virtualisation in \
         the firmware, or in a container pass --device /dev/kvm"
    )]
    NoKvm,
    /// `/dev/kvm` may not be opened.
    #[error(
        "/dev/kvm may not be opened by this user: join the group that owns it \
         (sudo usermod -aG {group} $USER, then log in again)"
    )]
    KvmPermission {
        /// Group that owns the device.
        group: String,
    },
    /// `/dev/kvm` could not be opened for another reason.
    #[error("/dev/kvm could not be opened ({0}): check the host's kernel log for kvm messages")]
    KvmOpen(io::Error),
    /// Not the API that exists since 2007.
    #[error(
        "/dev/kvm speaks API version {found}, this program needs version 12: update the kernel"
    )]
    KvmApiVersion {
        /// What it speaks.
        found: i32,
    },
    /// A capability is missing.
    #[error("this host's KVM has no {0}: run on a newer kernel, or outside this virtual machine")]
    KvmCapability(&'static str),
    /// A KVM call failed.
    #[error("KVM refused {call} ({source}): `vmm-harness doctor` shows what this host can do")]
    Kvm {
        /// The ioctl.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// A few instructions in a scratch VM did not end as they must.
    #[error(
        "KVM runs no 64-bit code, a scratch VM ended with {0}: look for kvm messages in the kernel log"
    )]
    ScratchVm(String),
    /// More vCPUs than KVM gives.
    #[error("{wanted} CPUs were asked for, this host's KVM gives at most {max}: lower --cpus")]
    TooManyCpus {
        /// What was asked for.
        wanted: u32,
        /// What there is.
        max: u32,
    },
    /// The host has no memory for the guest.
    #[error(
        "the host has no {wanted_mib} MiB for the guest ({source}): free memory or lower --max-cpus"
    )]
    HostMemory {
        /// What was asked for.
        wanted_mib: u64,
        /// What mmap said.
        source: io::Error,
    },
    /// A signal handler, a timer or a thread could not be had from the host.
    #[error(
        "the host's kernel refused {call} ({source}): check the limits of this process (ulimit -a)"
    )]
    Os {
        /// The call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The guest cannot be run as threads of this process.
    #[error("the guest cannot run as threads of this process: {0}")]
    Threads(String),
    /// The image file cannot be read.
    #[error("the guest image {path} cannot be read ({source}): build it with `cargo xtask guest`")]
    ImageUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not an ELF file at all, or a damaged one.
    #[error(
        "{path} is not a usable 64-bit x86 ELF file ({why}): build the guest with `cargo xtask guest`"
    )]
    ImageNotElf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// An ELF file, but no percpu guest.
    #[error(
        "{path} is no percpu guest, it has no symbol {IMAGE_HEADER_SYMBOL}: give the file that \
         `cargo xtask guest` made"
    )]
    ImageForeign {
        /// The file.
        path: PathBuf,
    },
    /// Built from another version of the interface.
    #[error(
        "{path} speaks ABI version {image} with a header of {image_size} bytes, this host version \
         {ABI_VERSION} with {}: build both from the same source (`cargo xtask guest`)",
        size_of::<SharedHeader>()
    )]
    AbiMismatch {
        /// The file, or "the guest" where the running guest said it.
        path: PathBuf,
        /// Version of the image.
        image: u32,
        /// Size of its shared header.
        image_size: u32,
    },
    /// An address that the image or the guest's set-up needs leads nowhere.
    #[error("{0}: the image does not fit this program, build it again")]
    Wild(#[from] Wild),
    /// vm-memory refused an address.
    #[error("{0}: the image does not fit this program, build it again")]
    GuestAddress(guest_memory::Error),
    /// A CPU beyond those that are possible.
    #[error("CPU {cpu} cannot exist, CPUs 0 to {} are possible: raise --max-cpus", possible - 1)]
    NoSuchCpu {
        /// The CPU.
        cpu: u32,
        /// Number of possible CPUs.
        possible: u32,
    },
    /// A wrong argument that the parser cannot see.
    #[error("{0}")]
    Usage(String),
    /// A scenario's file cannot be read.
    #[error("the scenario {path} cannot be read ({source}): give a file or a seed")]
    ScenarioUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not say what a file of its kind must.
    #[error("{path}, line {line}: {why}")]
    FileWrong {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what to give instead.
        why: String,
    },
    /// A report of a campaign cannot be read.
    #[error(
        "the report {path} cannot be read ({source}): give a file that `fuzz --json FILE` wrote"
    )]
    FuzzReportUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A report, a scenario or a failure cannot be written.
    #[error(
        "{path} cannot be written ({source}): free space, or check the directory and its permissions"
    )]
    FileUnwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Coverage of two images is to be put together.
    #[error(
        "coverage of {other} is not coverage of {one}: the numbers of edges mean other places there; \
         run all shards with one image"
    )]
    CoverageOfAnotherImage {
        /// The image, as its edges name it.
        one: String,
        /// The other one.
        other: String,
    },
}

impl Error {
    /// The status with which the process ends for this error.
    pub fn status(&self) -> Status {
        match self {
            Self::NoKvm
            | Self::KvmPermission { .. }
            | Self::KvmOpen(_)
            | Self::KvmApiVersion { .. }
            | Self::KvmCapability(_)
            | Self::Kvm { .. }
            | Self::ScratchVm(_)
            | Self::HostMemory { .. }
            | Self::Threads(_)
            | Self::Os { .. } => Status::Host,
            Self::GuestBoot(_) => Status::Crashed,
            Self::NotInstrumented { .. }
            | Self::Instrumented { .. }
            | Self::TooManyCpus { .. }
            | Self::ImageUnreadable { .. }
            | Self::ImageNotElf { .. }
            | Self::ImageForeign { .. }
            | Self::AbiMismatch { .. }
            | Self::Wild(_)
            | Self::GuestAddress(_)
            | Self::NoSuchCpu { .. }
            | Self::Usage(_)
            | Self::ScenarioUnreadable { .. }
            | Self::FuzzReportUnreadable { .. }
            | Self::FileWrong { .. }
            | Self::FileUnwritable { .. }
            | Self::CoverageOfAnotherImage { .. } => Status::Usage,
        }
    }

    /// [`status`](Self::status) as a number.
    pub fn exit_code(&self) -> u8 {
        self.status() as u8
    }

    /// Turns the error of a KVM call into one of ours: `.map_err(Error::kvm("KVM_CREATE_VM"))`.
    pub fn kvm(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |e| Self::Kvm { call, source: io::Error::from_raw_os_error(e.errno()) }
    }

    /// A physical address outside guest memory.
    pub fn guest_memory(error: guest_memory::Error) -> Self {
        Self::GuestAddress(error)
    }

    /// `bytes` of guest memory could not be had.
    pub fn memory(bytes: u64, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::HostMemory { wanted_mib: bytes >> 20, source: io::Error::other(error) }
    }

    /// A CPU beyond those that are possible.
    pub fn no_such_cpu(cpu: u32, possible: u32) -> Self {
        Self::NoSuchCpu { cpu, possible: possible.max(1) }
    }

    /// The kernel refused a call, with this error number.
    pub fn os(call: &'static str, errno: i32) -> Self {
        Self::Os { call, source: io::Error::from_raw_os_error(errno) }
    }

    /// A thread could not be started.
    pub fn thread(source: io::Error) -> Self {
        Self::Os { call: "a thread", source }
    }

    /// The image file cannot be read.
    pub fn image_unreadable(path: &Path, source: io::Error) -> Self {
        Self::ImageUnreadable { path: path.into(), source }
    }

    /// The image file is no ELF file.
    pub fn not_elf(path: &Path) -> Self {
        Self::ImageNotElf { path: path.into(), why: "its header is not that of an ELF file".into() }
    }

    /// The image file is an ELF file, but cannot be loaded.
    pub fn image_load(path: &Path, error: impl fmt::Display) -> Self {
        Self::ImageNotElf { path: path.into(), why: error.to_string() }
    }

    /// The image is not for a machine that runs CPUs one at a time.
    pub fn not_instrumented(path: &Path) -> Self {
        Self::NotInstrumented { path: path.into() }
    }

    /// The image is for a machine that runs CPUs one at a time.
    pub fn instrumented(path: &Path) -> Self {
        Self::Instrumented { path: path.into() }
    }

    /// The image file is no percpu guest.
    pub fn foreign_elf(path: &Path) -> Self {
        Self::ImageForeign { path: path.into() }
    }

    /// The image was built from another version of the interface.
    pub fn abi_mismatch(path: &Path, image: u32, image_size: u32) -> Self {
        Self::AbiMismatch { path: path.into(), image, image_size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_lacks_and_what_the_user_got_wrong_have_statuses_of_their_own() {
        let path = Path::new("guest.elf");
        for error in [
            Error::NoKvm,
            Error::KvmPermission { group: "kvm".into() },
            Error::KvmApiVersion { found: 11 },
            Error::kvm("KVM_RUN")(kvm_ioctls::Error::new(libc::EFAULT)),
            Error::memory(64 << 20, io::Error::from_raw_os_error(libc::ENOMEM)),
        ] {
            assert_eq!(error.exit_code(), 3, "{error}");
        }
        for error in [
            Error::not_elf(path),
            Error::foreign_elf(path),
            Error::abi_mismatch(path, 7, 100),
            Error::image_unreadable(path, io::Error::from_raw_os_error(libc::ENOENT)),
            Error::no_such_cpu(4, 4),
        ] {
            assert_eq!(error.exit_code(), 2, "{error}");
        }
    }

    #[test]
    fn an_abi_mismatch_names_both_versions() {
        let text = Error::abi_mismatch(Path::new("guest.elf"), 7, 100).to_string();
        assert!(text.contains("version 7") && text.contains("100 bytes"), "{text}");
        assert!(text.contains(&format!("version {ABI_VERSION}")), "{text}");
        assert!(text.contains(&size_of::<SharedHeader>().to_string()), "{text}");
    }

    #[test]
    fn a_missing_permission_names_the_group_to_join() {
        let text = Error::KvmPermission { group: "virt".into() }.to_string();
        assert!(text.contains("usermod -aG virt"), "{text}");
    }
}
