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

/// What a report of a crash asks of a machine.
pub trait Machine {
    /// Stops every vCPU.
    fn stop(&self);

    /// The registers of every vCPU that exists; `None` where one did not answer in time.
    fn registers(&self) -> Vec<(u32, Option<Registers>)>;
}
