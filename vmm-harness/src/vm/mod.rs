//! The virtual machine as nouns: its memory layout, its image, the state CPUs boot in, a vCPU.
//!
//! A [`Vm`] owns the KVM handles and one thread for each vCPU that was ever needed. vCPUs are made
//! when a CPU is first plugged, while the others run; an unplugged one is parked and its file
//! descriptor reused, since KVM cannot destroy a vCPU while its VM lives.

mod boot;
mod machine;
mod state;
mod vcpu;

pub use machine::{Vm, VmConfig};
pub use vcpu::{Crash, Registers, VmEvent, VmEventKind};
