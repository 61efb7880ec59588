//! The machine whose vCPUs have a thread each.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use percpu_guest::abi::{self, BootMode};
use vm_memory::GuestMemoryMmap;

use super::Machine;
use super::engine::Registers;
use super::hardware::{Hardware, VmConfig};
use super::vcpu::{VcpuHandle, VmEvent};
use crate::error::Error;
use crate::image::Image;

/// How long a vCPU may take to answer with its registers.
const REPORT_LIMIT: Duration = Duration::from_millis(500);
/// How long a vCPU may take to be ready for SIPI.
const READY_LIMIT: Duration = Duration::from_secs(1);

/// A virtual machine with its vCPUs.
pub struct Vm {
    shared: Arc<Shared>,
    events: Receiver<VmEvent>,
}

/// What the vCPU threads need of their VM.
pub(super) struct Shared {
    hardware: Hardware,
    vcpus: Mutex<Vec<Option<VcpuHandle>>>,
    pub(super) events: Sender<VmEvent>,
}

impl Vm {
    /// Makes a VM with `image` and the shared region in memory. No vCPU exists yet.
    pub fn new(image: &Image, config: VmConfig) -> Result<Self, Error> {
        let (hardware, boot_cpu) = Hardware::new(image, config, true)?;
        let (tx, events) = mpsc::channel();
        let shared = Arc::new(Shared {
            hardware,
            vcpus: Mutex::new((0..abi::MAX_CPUS).map(|_| None).collect()),
            events: tx,
        });
        let boot_vcpu = VcpuHandle::spawn(0, boot_cpu, shared.clone())?;
        shared.vcpus()[0] = Some(boot_vcpu);
        Ok(Self { shared, events })
    }

    /// Starts the boot CPU.
    pub fn start(&self) -> Result<(), Error> {
        let entry = self.shared.hardware.boot_entry();
        self.shared.with_vcpu(0, |vcpu| vcpu.start(entry))
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.shared.hardware.mem
    }

    /// Waits for something to happen, until `deadline` at most.
    pub fn next_event(&self, deadline: Instant) -> Option<VmEvent> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.events.recv_timeout(left).ok()
    }

    /// Raises `vector` on CPU `cpu`, as a device's message-signalled interrupt does.
    pub fn interrupt(&self, cpu: u32, vector: u8) -> Result<(), Error> {
        self.shared.hardware.interrupt(cpu, vector)
    }

    /// Parks every vCPU.
    pub fn park_all(&self) {
        for vcpu in self.shared.vcpus().iter().flatten() {
            vcpu.park();
        }
    }
}

impl Machine for Vm {
    fn stop(&self) {
        self.park_all();
    }

    fn registers(&self) -> Vec<(u32, Option<Registers>)> {
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
        let possible = self.hardware.boot.possible as usize;
        let Some(slot) = vcpus.get_mut(cpu as usize).filter(|_| (cpu as usize) < possible) else {
            return Err(Error::no_such_cpu(cpu, possible as u32));
        };
        let vcpu = match slot {
            Some(vcpu) => vcpu,
            None => {
                let made = self.hardware.create_cpu(cpu)?;
                slot.insert(VcpuHandle::spawn(cpu, made, self.clone())?)
            }
        };
        Ok(f(vcpu))
    }

    /// Starts an AP on behalf of the guest: to wait for the guest's INIT and SIPI, or, in `direct`
    /// mode, at its entry.
    pub(super) fn start_cpu(self: &Arc<Self>, cpu: u32) -> Result<(), Error> {
        if self.hardware.boot.boot_mode == BootMode::Sipi as u32 {
            let ready = self.with_vcpu(cpu, VcpuHandle::await_sipi)?;
            // An answer that does not come is a CPU that does not arrive: the guest's to notice.
            let _ = ready.recv_timeout(READY_LIMIT);
            return Ok(());
        }
        let entry = self.hardware.ap_entry(cpu)?;
        self.with_vcpu(cpu, |vcpu| vcpu.start(entry))
    }
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm").field("hardware", &self.shared.hardware).finish_non_exhaustive()
    }
}
