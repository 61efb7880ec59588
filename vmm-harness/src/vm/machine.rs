//! The VM: KVM handles, memory, the table of vCPUs.

use std::os::fd::AsRawFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_msi, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use percpu_guest::abi::{self, BootMode, BootParams};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::boot::{self, Entry};
use super::vcpu::{Registers, VcpuHandle, VmEvent};
use crate::error::Error;
use crate::image::Image;

/// Where KVM may put the task state segment it needs for itself on Intel hosts.
const KVM_TSS: usize = 0xfffb_d000;
/// The local APICs' message window: a write addressed here is an interrupt.
const MSI_WINDOW: u32 = 0xfee0_0000;
/// How long a vCPU may take to answer with its registers.
const REPORT_LIMIT: Duration = Duration::from_millis(500);
/// How long a vCPU may take to be ready for SIPI.
const READY_LIMIT: Duration = Duration::from_secs(1);

/// What kind of machine to make.
#[derive(Clone, Copy, Debug)]
pub struct VmConfig {
    /// The guest's orders; memory bounds and the clock's rate are filled in by [`Vm::new`].
    pub boot: BootParams,
    /// Bytes of guest memory, a multiple of 2 MiB.
    pub memory: u64,
}

impl VmConfig {
    /// Enough memory for `cpus` possible CPUs under every workload.
    pub fn memory_for(cpus: u32) -> u64 {
        (192 << 20) + u64::from(cpus) * (8 << 20)
    }
}

/// A virtual machine with its vCPUs.
pub struct Vm {
    shared: Arc<Shared>,
    events: Receiver<VmEvent>,
}

/// What the vCPU threads need of their VM.
pub(super) struct Shared {
    kvm: Kvm,
    fd: VmFd,
    mem: GuestMemoryMmap,
    cpuid: CpuId,
    tables: u64,
    ap_entry: u64,
    idt: u64,
    boot: BootParams,
    vcpus: Mutex<Vec<Option<VcpuHandle>>>,
    pub(super) events: Sender<VmEvent>,
}

impl Vm {
    /// Makes a VM with `image` and the shared region in memory. No vCPU exists yet.
    pub fn new(image: &Image, config: VmConfig) -> Result<Self, Error> {
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
            tsc_mhz: tsc_khz / 1000,
            memory_start: end.next_multiple_of(4096),
            memory_end: config.memory,
            ..config.boot
        };
        let header = GuestAddress(abi::SHARED);
        mem.write_obj(abi::MAGIC, header).map_err(Error::guest_memory)?;
        let version = u64::from(abi::ABI_VERSION) | (size_of::<abi::SharedHeader>() as u64) << 32;
        mem.write_obj(version, header.unchecked_add(8)).map_err(Error::guest_memory)?;
        crate::memory::write_view(&mem, header.0 + 16, &boot)?;

        let (tx, events) = mpsc::channel();
        let shared = Arc::new(Shared {
            kvm,
            fd,
            mem,
            cpuid,
            tables: image.header().tables,
            ap_entry: image.header().ap_entry,
            idt: image.header().idt,
            boot,
            vcpus: Mutex::new((0..abi::MAX_CPUS).map(|_| None).collect()),
            events: tx,
        });
        let boot_vcpu = VcpuHandle::spawn(0, boot_vcpu, shared.clone())?;
        shared.vcpus()[0] = Some(boot_vcpu);
        Ok(Self { shared, events })
    }

    /// Starts the boot CPU.
    pub fn start(&self, image: &Image) -> Result<(), Error> {
        let header = image.header();
        let entry = Entry {
            rip: header.entry,
            rsp: header.boot_stack,
            arg: abi::SHARED,
            gs_base: 0,
            tables: header.tables,
            idt: header.idt,
            ring: self.shared.boot.ring as u8,
        };
        self.shared.with_vcpu(0, |vcpu| vcpu.start(entry))
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.shared.mem
    }

    /// Waits for something to happen, until `deadline` at most.
    pub fn next_event(&self, deadline: Instant) -> Option<VmEvent> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.events.recv_timeout(left).ok()
    }

    /// Raises `vector` on CPU `cpu`, as a device's message-signalled interrupt does.
    pub fn interrupt(&self, cpu: u32, vector: u8) -> Result<(), Error> {
        let msi = kvm_msi {
            address_lo: MSI_WINDOW | cpu << 12,
            address_hi: 0,
            data: u32::from(vector),
            ..Default::default()
        };
        self.shared.fd.signal_msi(msi).map_err(Error::kvm("KVM_SIGNAL_MSI"))?;
        Ok(())
    }

    /// Parks every vCPU.
    pub fn park_all(&self) {
        for vcpu in self.shared.vcpus().iter().flatten() {
            vcpu.park();
        }
    }

    /// The registers of every vCPU that exists; `None` where one did not answer in time.
    pub fn registers(&self) -> Vec<(u32, Option<Registers>)> {
        let asked: Vec<_> = {
            let vcpus = self.shared.vcpus();
            vcpus
                .iter()
                .enumerate()
                .filter_map(|(cpu, vcpu)| Some((cpu as u32, vcpu.as_ref()?.report())))
                .collect()
        };
        let deadline = Instant::now() + REPORT_LIMIT;
        asked
            .into_iter()
            .map(|(cpu, answer)| {
                let left = deadline.saturating_duration_since(Instant::now());
                (cpu, answer.recv_timeout(left).ok())
            })
            .collect()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Each thread holds `Shared`; taking the handles out ends them and breaks the circle.
        let vcpus = std::mem::take(&mut *self.shared.vcpus());
        drop(vcpus);
    }
}

impl Shared {
    fn vcpus(&self) -> std::sync::MutexGuard<'_, Vec<Option<VcpuHandle>>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `f` on vCPU `cpu`, which is created first if it does not exist yet.
    fn with_vcpu<R>(
        self: &Arc<Self>,
        cpu: u32,
        f: impl FnOnce(&VcpuHandle) -> R,
    ) -> Result<R, Error> {
        let mut vcpus = self.vcpus();
        let possible = self.boot.possible as usize;
        let Some(slot) = vcpus.get_mut(cpu as usize).filter(|_| (cpu as usize) < possible) else {
            return Err(Error::no_such_cpu(cpu, possible as u32));
        };
        let vcpu = match slot {
            Some(vcpu) => vcpu,
            None => {
                let fd = create_vcpu(&self.fd, &self.cpuid, cpu)?;
                slot.insert(VcpuHandle::spawn(cpu, fd, self.clone())?)
            }
        };
        Ok(f(vcpu))
    }

    /// Starts an AP on behalf of the guest: to wait for the guest's INIT and SIPI, or, in `direct`
    /// mode, at its entry. The entry state comes from the guest's own tables; whatever it holds,
    /// KVM is what runs it.
    pub(super) fn start_cpu(self: &Arc<Self>, cpu: u32) -> Result<(), Error> {
        if self.boot.boot_mode == BootMode::Sipi as u32 {
            let ready = self.with_vcpu(cpu, VcpuHandle::await_sipi)?;
            // An answer that does not come is a CPU that does not arrive: the guest's to notice.
            let _ = ready.recv_timeout(READY_LIMIT);
            return Ok(());
        }
        let tables = self.tables + u64::from(cpu) * size_of::<abi::CpuTables>() as u64;
        let word = |offset: usize| {
            self.mem
                .read_obj::<u64>(GuestAddress(tables + offset as u64))
                .map_err(Error::guest_memory)
        };
        let entry = Entry {
            rip: self.ap_entry,
            rsp: word(std::mem::offset_of!(abi::CpuTables, start_rsp))?,
            arg: u64::from(cpu),
            gs_base: word(std::mem::offset_of!(abi::CpuTables, gs_base))?,
            tables,
            idt: self.idt,
            ring: self.boot.ring as u8,
        };
        self.with_vcpu(cpu, |vcpu| vcpu.start(entry))
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

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm")
            .field("kvm", &self.shared.kvm.as_raw_fd())
            .field("boot", &self.shared.boot)
            .finish_non_exhaustive()
    }
}
