//! The virtual machine as nouns: its memory layout, its image, the state CPUs boot in, a vCPU.
//!
//! There are two machines on the same hardware. A [`SerialVm`] has one vCPU, which runs on the caller's
//! thread and is all of its guest's CPUs in turn. A [`Vm`] owns the KVM handles and one thread for each vCPU that was ever needed. vCPUs are made
//! when a CPU is first plugged, while the others run; an unplugged one is parked and its file
//! descriptor reused, since KVM cannot destroy a vCPU while its VM lives.

mod alarm;
mod boot;
mod hardware;
mod machine;
mod serial;
mod state;
mod vcpu;

pub use hardware::VmConfig;
pub use machine::Vm;
pub use serial::{Bell, Saved, SerialVm};
pub use vcpu::{Crash, Registers, VmEvent, VmEventKind};

/// Works out where each of so many CPUs would begin, and does nothing with it.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn entries(
    image: &percpu_guest::abi::ImageHeader,
    mem: &crate::memory::GuestMem,
    cpus: u32,
    ring: u8,
) {
    let aps = (1..cpus).flat_map(|cpu| boot::Entry::of_ap(image, mem.regions(), cpu, ring));
    for entry in std::iter::once(boot::Entry::of_boot_cpu(image, ring)).chain(aps) {
        let mut sregs = Default::default();
        entry.apply(&mut sregs);
        std::hint::black_box((entry.regs(), sregs));
    }
}

/// What a report of a crash asks of a machine.
pub trait Machine {
    /// Stops every vCPU.
    fn stop(&self);

    /// The registers of every vCPU that exists; `None` where one did not answer in time.
    fn registers(&self) -> Vec<(u32, Option<Registers>)>;
}
