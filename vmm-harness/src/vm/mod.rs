//! The virtual machine as nouns: its memory layout, its image, where CPUs begin, a vCPU.
//!
//! There are two machines on the same hardware. A [`SerialVm`] has one CPU, which runs on the caller's
//! thread and is all of its guest's CPUs in turn. A [`Vm`] owns one thread for each vCPU that was ever
//! needed. vCPUs are made when a CPU is first plugged, while the others run; an unplugged one is parked
//! and reused.
//!
//! What executes the guest's instructions is an [`Engine`]: a board, which has the memory and makes CPUs,
//! and the CPUs, each of which executes until the guest calls the host. Everything above (threads and
//! their orders, doorbells, the judge, reports) is the same whatever the engine, and so is the guest.
//! `kvm` is the ordinary one; `threads` is for hosts without it.

mod alarm;
mod boot;
mod engine;
mod hardware;
mod kick;
mod kvm;
mod machine;
mod serial;
mod threads;
mod vcpu;

pub use engine::{Engine, Registers, Saved};
pub use hardware::VmConfig;
pub use machine::Vm;
pub use serial::{Bell, SerialVm};
pub use threads::check as check_threads;
pub use vcpu::{Crash, VmEvent, VmEventKind};

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
        kvm::apply(&entry, &mut sregs);
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
