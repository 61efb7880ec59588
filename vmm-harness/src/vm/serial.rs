//! The machine with one vCPU, which runs on the thread of whoever calls. All CPUs of its guest are
//! contexts of that one.

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;
use percpu_guest::abi::Doorbell;
use vm_memory::GuestMemoryMmap;

use super::alarm::Alarm;
use super::hardware::{Hardware, VmConfig};
use super::state::CpuState;
use super::vcpu::{Crash, Exit, Registers, registers, run_once};
use crate::error::Error;
use crate::image::Image;

/// A doorbell that was rung, and its argument.
pub type Bell = (Doorbell, u64);

/// A virtual machine that runs only while it is told to.
pub struct SerialVm {
    hardware: Hardware,
    vcpu: VcpuFd,
    /// For a guest that never leaves.
    alarm: Alarm,
}

impl SerialVm {
    /// Makes a VM with `image` and the shared region in memory, and puts its vCPU to the boot CPU's
    /// beginning.
    pub fn new(image: &Image, config: VmConfig) -> Result<Self, Error> {
        let (hardware, vcpu) = Hardware::new(image, config)?;
        CpuState::save(&vcpu)?.enter(&vcpu, &hardware.boot_entry())?;
        Ok(Self { hardware, vcpu, alarm: Alarm::new(Alarm::PATIENCE)? })
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.hardware.mem
    }

    /// Runs the guest until it rings a doorbell.
    pub fn run(&mut self) -> Result<Bell, Crash> {
        loop {
            let (exit, late) = self.alarm.around(|| run_once(&mut self.vcpu));
            match exit {
                Exit::Doorbell(value) => {
                    let bell = Doorbell::from_code(value as u8).ok_or(Crash::BadDoorbell(value))?;
                    return Ok((bell, value >> 8));
                }
                Exit::Nothing if late => return Err(Crash::Stuck(Alarm::PATIENCE)),
                Exit::Nothing => {}
                Exit::Crash(crash) => return Err(crash),
            }
        }
    }

    /// The registers, from which [`restore`](Self::restore) lets it go on.
    pub fn save(&mut self) -> Result<Saved, Error> {
        // An MMIO exit is finished by the next `KVM_RUN`, which must not be one from other
        // registers. It ends at once with EINTR.
        self.vcpu.set_kvm_immediate_exit(1);
        let _ = self.vcpu.run();
        self.vcpu.set_kvm_immediate_exit(0);
        let regs = self.vcpu.get_regs().map_err(Error::kvm("KVM_GET_REGS"))?;
        let sregs = self.vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
        Ok(Saved { regs, sregs })
    }

    /// Executes `code` from a saved state, with two arguments, until it rings.
    pub fn call(&mut self, saved: &Saved, code: u64, rbx: u64, r12: u64) -> Result<Bell, Crash> {
        let regs = kvm_regs { rip: code, rbx, r12, ..saved.regs };
        let set = self.vcpu.set_sregs(&saved.sregs).and_then(|()| self.vcpu.set_regs(&regs));
        set.map_err(|e| Crash::Host(format!("its registers cannot be set: {e}")))?;
        self.run()
    }

    /// Puts the vCPU back to where it was. Everything else of it (vector registers, model-specific
    /// registers, the APIC) the guest does not change once it runs.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), Error> {
        // What a store to the doorbell still owes is nothing that registers show.
        // Another CR3 first: what the vCPU remembers of page tables is forgotten by that.
        let other = kvm_sregs { cr3: saved.sregs.cr3 + 4096, ..saved.sregs };
        self.vcpu.set_sregs(&other).map_err(Error::kvm("KVM_SET_SREGS"))?;
        self.vcpu.set_sregs(&saved.sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
        self.vcpu.set_regs(&saved.regs).map_err(Error::kvm("KVM_SET_REGS"))
    }

    /// The registers by now.
    pub fn registers(&self) -> Option<Registers> {
        registers(&self.vcpu)
    }

    /// Bytes of guest memory.
    pub fn memory_size(&self) -> u64 {
        self.hardware.memory
    }
}

/// Registers of a vCPU between two instructions.
#[derive(Debug, Clone)]
pub struct Saved {
    regs: kvm_regs,
    sregs: kvm_sregs,
}

impl std::fmt::Debug for SerialVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialVm").field("hardware", &self.hardware).finish_non_exhaustive()
    }
}
