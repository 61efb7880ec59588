//! KVM's handles, guest memory, and what there is to know to make and start CPUs: what a machine of
//! either kind is built on.

use std::os::fd::AsRawFd;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_msi, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use percpu_guest::abi::{self, BootParams, ImageHeader};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::boot::{self, Entry};
use crate::error::Error;
use crate::image::Image;

/// Where KVM may put the task state segment it needs for itself on Intel hosts.
const KVM_TSS: usize = 0xfffb_d000;
/// The local APICs' message window: a write addressed here is an interrupt.
const MSI_WINDOW: u32 = 0xfee0_0000;

/// What kind of machine to make.
#[derive(Clone, Copy, Debug)]
pub struct VmConfig {
    /// The guest's orders; memory bounds are filled in, and so is the clock's rate if it is 0.
    pub boot: BootParams,
    /// Bytes of guest memory, a multiple of 2 MiB.
    pub memory: u64,
    /// Bytes at the end of it that the guest is not told of.
    pub kept: u64,
}

impl VmConfig {
    /// A machine that is told of all its memory.
    pub fn new(boot: BootParams, memory: u64) -> Self {
        Self { boot, memory, kept: 0 }
    }

    /// Enough memory for `cpus` possible CPUs under every workload.
    pub fn memory_for(cpus: u32) -> u64 {
        (192 << 20) + u64::from(cpus) * (8 << 20)
    }
}

/// A virtual machine without its vCPUs.
pub(super) struct Hardware {
    kvm: Kvm,
    fd: VmFd,
    pub(super) mem: GuestMemoryMmap,
    cpuid: CpuId,
    image: ImageHeader,
    pub(super) boot: BootParams,
    pub(super) memory: u64,
}

impl Hardware {
    /// Makes a VM with `image` and the shared region in memory, and the boot CPU's vCPU.
    pub(super) fn new(image: &Image, config: VmConfig) -> Result<(Self, VcpuFd), Error> {
        let kvm = crate::host::open_kvm()?;
        let fd = kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
        fd.set_tss_address(KVM_TSS).map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;

        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), config.memory as usize)])
            .map_err(|e| Error::memory(config.memory, e))?;
        let host = mem.get_host_address(GuestAddress(0)).map_err(Error::guest_memory)?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: config.memory,
            userspace_addr: host as u64,
        };
        // SAFETY: the region is the mapping just made; `Shared` keeps `mem` as long as `fd`.
        unsafe { fd.set_user_memory_region(region) }
            .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;

        boot::write_page_tables(&mem, config.memory)?;
        let end = image.load(&mem)?;
        let boot_vcpu = create_vcpu(&fd, &cpuid, 0)?;
        let tsc_khz = boot_vcpu.get_tsc_khz().map_err(Error::kvm("KVM_GET_TSC_KHZ"))?;
        let boot = BootParams {
            tsc_mhz: if config.boot.tsc_mhz == 0 { tsc_khz / 1000 } else { config.boot.tsc_mhz },
            memory_start: end.next_multiple_of(4096),
            memory_end: config.memory - config.kept,
            ..config.boot
        };
        let header = GuestAddress(abi::SHARED);
        mem.write_obj(abi::MAGIC, header).map_err(Error::guest_memory)?;
        let version = u64::from(abi::ABI_VERSION) | (size_of::<abi::SharedHeader>() as u64) << 32;
        mem.write_obj(version, header.unchecked_add(8)).map_err(Error::guest_memory)?;
        crate::memory::write_view(&mem, header.0 + 16, &boot)?;

        Ok((
            Self { kvm, fd, mem, cpuid, image: *image.header(), boot, memory: config.memory },
            boot_vcpu,
        ))
    }

    /// A new vCPU. KVM cannot destroy it while the VM lives.
    pub(super) fn create_vcpu(&self, cpu: u32) -> Result<VcpuFd, Error> {
        create_vcpu(&self.fd, &self.cpuid, cpu)
    }

    /// Where the boot CPU begins.
    pub(super) fn boot_entry(&self) -> Entry {
        Entry::of_boot_cpu(&self.image, self.boot.ring as u8)
    }

    /// Where another CPU begins if the host starts it.
    pub(super) fn ap_entry(&self, cpu: u32) -> Result<Entry, Error> {
        Entry::of_ap(&self.image, &self.mem, cpu, self.boot.ring as u8)
    }

    /// Raises `vector` on CPU `cpu`, as a device's message-signalled interrupt does.
    pub(super) fn interrupt(&self, cpu: u32, vector: u8) -> Result<(), Error> {
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

impl std::fmt::Debug for Hardware {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hardware")
            .field("kvm", &self.kvm.as_raw_fd())
            .field("boot", &self.boot)
            .finish_non_exhaustive()
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
