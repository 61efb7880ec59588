//! The engine that is KVM: the virtual machine's handles.

mod cpu;
mod segments;
mod state;

use std::os::fd::AsRawFd;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_msi, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

#[cfg(any(test, feature = "fuzzing"))]
pub(super) use self::segments::apply;
use super::engine::{Board, Cpu};
use crate::error::Error;

/// Where KVM may put the task state segment it needs for itself on Intel hosts.
const KVM_TSS: usize = 0xfffb_d000;
/// The local APICs' message window: a write addressed here is an interrupt.
const MSI_WINDOW: u32 = 0xfee0_0000;

/// A virtual machine of KVM's without its vCPUs.
pub(super) struct KvmBoard {
    kvm: Kvm,
    fd: VmFd,
    cpuid: CpuId,
    /// As long as the machine, which has it as its memory.
    _mem: GuestMemoryMmap,
}

impl KvmBoard {
    /// Makes a VM with `bytes` of memory.
    pub(super) fn new(bytes: u64) -> Result<(Self, GuestMemoryMmap), Error> {
        let kvm = crate::host::open_kvm()?;
        let fd = kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
        fd.set_tss_address(KVM_TSS).map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;

        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)])
            .map_err(|e| Error::memory(bytes, e))?;
        let host = mem.get_host_address(GuestAddress(0)).map_err(Error::guest_memory)?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: bytes,
            userspace_addr: host as u64,
        };
        // SAFETY: `userspace_addr` is the mapping just made, of `bytes` bytes; it is the one region. `_mem`
        // keeps it as long as this board, and no vCPU runs for longer (see `Board::create_cpu`).
        unsafe { fd.set_user_memory_region(region) }
            .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        Ok((Self { kvm, fd, cpuid, _mem: mem.clone() }, mem))
    }
}

impl Board for KvmBoard {
    /// KVM cannot destroy a vCPU while the VM lives.
    fn create_cpu(&self, cpu: u32) -> Result<Box<dyn Cpu>, Error> {
        let fd = create_vcpu(&self.fd, &self.cpuid, cpu)?;
        Ok(Box::new(cpu::KvmCpu::new(fd)?))
    }

    fn interrupt(&self, cpu: u32, vector: u8) -> Result<(), Error> {
        let msi = kvm_msi {
            address_lo: MSI_WINDOW | cpu << 12,
            address_hi: 0,
            data: u32::from(vector),
            ..Default::default()
        };
        self.fd.signal_msi(msi).map_err(Error::kvm("KVM_SIGNAL_MSI"))?;
        Ok(())
    }
}

impl std::fmt::Debug for KvmBoard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmBoard").field("kvm", &self.kvm.as_raw_fd()).finish_non_exhaustive()
    }
}

fn create_vcpu(vm: &VmFd, cpuid: &CpuId, cpu: u32) -> Result<VcpuFd, Error> {
    let fd = vm.create_vcpu(u64::from(cpu)).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
    fd.set_cpuid2(&cpuid_of(cpuid, cpu)).map_err(Error::kvm("KVM_SET_CPUID2"))?;
    Ok(fd)
}

/// The host's CPUID table with the APIC id of `cpu` in the leaves that name it.
fn cpuid_of(host: &CpuId, cpu: u32) -> CpuId {
    let mut cpuid = host.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0x00ff_ffff | cpu << 24,
            0xb | 0x1f => entry.edx = cpu,
            0x8000_001e => entry.eax = cpu,
            _ => {}
        }
    }
    cpuid
}
