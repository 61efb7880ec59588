//! The machine that runs its CPUs one at a time, on the thread of whoever calls.

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;
use percpu_guest::abi::Doorbell;
use vm_memory::GuestMemoryMmap;

use super::Machine;
use super::hardware::{Hardware, VmConfig};
use super::state::CpuState;
use super::vcpu::{Crash, Exit, Registers, registers, run_once};
use crate::error::Error;
use crate::image::Image;

/// A doorbell that a CPU rang, and its argument.
pub type Bell = (Doorbell, u64);

/// A virtual machine whose vCPUs run only while they are told to.
#[derive(Debug)]
pub struct SerialVm {
    hardware: Hardware,
    /// By CPU; made when it is first started.
    vcpus: Vec<Option<Vcpu>>,
}

struct Vcpu {
    fd: VcpuFd,
    /// The state of a new vCPU.
    pristine: CpuState,
}

impl Vcpu {
    fn new(fd: VcpuFd) -> Result<Self, Error> {
        Ok(Self { pristine: CpuState::save(&fd)?, fd })
    }
}

impl SerialVm {
    /// Makes a VM with `image` and the shared region in memory, and the boot CPU, which does not run
    /// yet.
    pub fn new(image: &Image, config: VmConfig) -> Result<Self, Error> {
        let (hardware, boot) = Hardware::new(image, config)?;
        let mut vcpus: Vec<_> = (0..config.boot.possible).map(|_| None).collect();
        vcpus[0] = Some(Vcpu::new(boot)?);
        Ok(Self { hardware, vcpus })
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.hardware.mem
    }

    /// Puts the boot CPU, or another one, to its beginning.
    pub fn start(&mut self, cpu: u32) -> Result<(), Error> {
        let possible = self.vcpus.len() as u32;
        let Some(slot) = self.vcpus.get_mut(cpu as usize) else {
            return Err(Error::no_such_cpu(cpu, possible));
        };
        let vcpu = match slot {
            Some(vcpu) => vcpu,
            None => slot.insert(Vcpu::new(self.hardware.create_vcpu(cpu)?)?),
        };
        let entry = match cpu {
            0 => self.hardware.boot_entry(),
            _ => self.hardware.ap_entry(cpu)?,
        };
        complete_exit(&mut vcpu.fd);
        vcpu.pristine.enter(&vcpu.fd, &entry)
    }

    /// Runs a CPU that was started until it rings a doorbell.
    pub fn run(&mut self, cpu: u32) -> Result<Bell, Crash> {
        let Some(Some(vcpu)) = self.vcpus.get_mut(cpu as usize) else {
            return Err(Crash::Host(format!("CPU {cpu} is to run and was never started")));
        };
        loop {
            match run_once(&mut vcpu.fd) {
                Exit::Doorbell(value) => {
                    let bell = Doorbell::from_code(value as u8).ok_or(Crash::BadDoorbell(value))?;
                    return Ok((bell, value >> 8));
                }
                Exit::Nothing => {}
                Exit::Crash(crash) => return Err(crash),
            }
        }
    }

    /// The registers of each vCPU that exists, from which [`restore`](Self::restore) lets it go on.
    pub fn save(&mut self) -> Result<Vec<Option<Saved>>, Error> {
        self.vcpus
            .iter_mut()
            .map(|vcpu| {
                let Some(vcpu) = vcpu else { return Ok(None) };
                complete_exit(&mut vcpu.fd);
                let regs = vcpu.fd.get_regs().map_err(Error::kvm("KVM_GET_REGS"))?;
                let sregs = vcpu.fd.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
                Ok(Some(Saved { regs, sregs }))
            })
            .collect()
    }

    /// Lets the boot CPU execute `code` from its saved state, with two arguments, until it rings.
    pub fn call(
        &mut self,
        saved: &[Option<Saved>],
        code: u64,
        rbx: u64,
        r12: u64,
    ) -> Result<Bell, Crash> {
        let (Some(Some(vcpu)), Some(Some(saved))) = (self.vcpus.first_mut(), saved.first()) else {
            return Err(Crash::Host("the boot CPU was never started".into()));
        };
        let regs = kvm_regs { rip: code, rbx, r12, ..saved.regs };
        let set = vcpu.fd.set_sregs(&saved.sregs).and_then(|()| vcpu.fd.set_regs(&regs));
        set.map_err(|e| Crash::Host(format!("its registers cannot be set: {e}")))?;
        self.run(0)
    }

    /// Bytes of guest memory.
    pub fn memory_size(&self) -> u64 {
        self.hardware.memory
    }

    /// Puts vCPUs back to where they were. Everything else of them (vector registers, model-specific
    /// registers, the APIC) the guest does not change once a CPU runs.
    pub fn restore(&mut self, saved: &[Option<Saved>]) -> Result<(), Error> {
        for (vcpu, saved) in self.vcpus.iter_mut().zip(saved) {
            let (Some(vcpu), Some(saved)) = (vcpu, saved) else { continue };
            // What a store to the doorbell still owes is nothing that registers show.
            // Another CR3 first: what the vCPU remembers of page tables is forgotten by that.
            let other = kvm_sregs { cr3: saved.sregs.cr3 + 4096, ..saved.sregs };
            vcpu.fd.set_sregs(&other).map_err(Error::kvm("KVM_SET_SREGS"))?;
            vcpu.fd.set_sregs(&saved.sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
            vcpu.fd.set_regs(&saved.regs).map_err(Error::kvm("KVM_SET_REGS"))?;
        }
        Ok(())
    }
}

/// Registers of a vCPU between two instructions.
#[derive(Debug, Clone)]
pub struct Saved {
    regs: kvm_regs,
    sregs: kvm_sregs,
}

/// An MMIO exit is finished by the next `KVM_RUN`, which must not be one from other registers.
fn complete_exit(fd: &mut VcpuFd) {
    fd.set_kvm_immediate_exit(1);
    // Ends at once with EINTR.
    let _ = fd.run();
    fd.set_kvm_immediate_exit(0);
}

impl Machine for SerialVm {
    fn stop(&self) {}

    fn registers(&self) -> Vec<(u32, Option<Registers>)> {
        (0..)
            .zip(&self.vcpus)
            .filter_map(|(cpu, vcpu)| Some((cpu, registers(&vcpu.as_ref()?.fd))))
            .collect()
    }
}

impl std::fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vcpu").finish_non_exhaustive()
    }
}
