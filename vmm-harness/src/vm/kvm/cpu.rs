//! A vCPU of KVM.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{KVM_MP_STATE_UNINITIALIZED, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use percpu_guest::abi;

use super::super::boot::Entry;
use super::super::engine::{Cpu, Exit, Registers, Saved, Stopper};
use super::super::vcpu::Crash;
use super::state::{CpuState, set_mp_state};
use crate::error::Error;

/// A vCPU and the state it was made with.
pub(super) struct KvmCpu {
    fd: VcpuFd,
    pristine: CpuState,
    immediate_exit: Arc<ImmediateExit>,
}

/// The address of `immediate_exit` in a vCPU's shared page.
struct ImmediateExit(*mut u8);

// SAFETY: the byte is reached only by atomic operations here and by the kernel, which reads it at
// the start of KVM_RUN.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl Stopper for ImmediateExit {
    fn set(&self, on: bool) {
        // SAFETY: the page is mapped as long as the `VcpuFd` lives. The thread that owns it hands it
        // to whoever joins, which the last user of this does, in `VcpuHandle::drop`; the thread
        // itself uses this only while it runs.
        unsafe { AtomicU8::from_ptr(self.0) }.store(u8::from(on), Ordering::Release);
    }
}

impl KvmCpu {
    pub(super) fn new(mut fd: VcpuFd) -> Result<Self, Error> {
        let pristine = CpuState::save(&fd)?;
        let immediate_exit = Arc::new(ImmediateExit(&raw mut fd.get_kvm_run().immediate_exit));
        Ok(Self { fd, pristine, immediate_exit })
    }
}

impl Cpu for KvmCpu {
    fn tsc_khz(&self) -> Result<u32, Error> {
        self.fd.get_tsc_khz().map_err(Error::kvm("KVM_GET_TSC_KHZ"))
    }

    fn begin(&mut self, entry: &Entry) -> Result<(), Error> {
        self.pristine.enter(&self.fd, entry)
    }

    fn await_sipi(&mut self) -> Result<(), Error> {
        self.pristine.restore(&self.fd)?;
        set_mp_state(&self.fd, KVM_MP_STATE_UNINITIALIZED)
    }

    fn run(&mut self) -> Exit {
        run_once(&mut self.fd)
    }

    /// An MMIO exit is finished by the next `KVM_RUN`, which must not be one from other registers. It
    /// ends at once with EINTR.
    fn finish(&mut self) {
        self.immediate_exit.set(true);
        let _ = self.fd.run();
        self.immediate_exit.set(false);
    }

    fn stopper(&self) -> Arc<dyn Stopper> {
        self.immediate_exit.clone()
    }

    fn registers(&self) -> Option<Registers> {
        let (regs, sregs) = (self.fd.get_regs().ok()?, self.fd.get_sregs().ok()?);
        Some(Registers { regs, cr2: sregs.cr2, gs_base: sregs.gs.base, cpl: sregs.cs.dpl })
    }

    fn save(&mut self) -> Result<Saved, Error> {
        let regs = self.fd.get_regs().map_err(Error::kvm("KVM_GET_REGS"))?;
        let sregs = self.fd.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
        Ok(Saved { regs, sregs })
    }

    fn load(&mut self, saved: &Saved) -> Result<(), Error> {
        self.fd.set_sregs(&saved.sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
        self.fd.set_regs(&saved.regs).map_err(Error::kvm("KVM_SET_REGS"))
    }

    /// Another CR3 first: what the vCPU remembers of page tables is forgotten by that.
    fn load_and_forget(&mut self, saved: &Saved) -> Result<(), Error> {
        let other = kvm_sregs { cr3: saved.sregs.cr3 + 4096, ..saved.sregs };
        self.fd.set_sregs(&other).map_err(Error::kvm("KVM_SET_SREGS"))?;
        self.load(saved)
    }
}

/// Runs the vCPU until it leaves the guest.
fn run_once(fd: &mut VcpuFd) -> Exit {
    let crash = match fd.run() {
        Ok(VcpuExit::MmioWrite(addr, data)) if addr == abi::DOORBELL => {
            let mut value = [0; 8];
            let n = data.len().min(8);
            value[..n].copy_from_slice(&data[..n]);
            return Exit::Doorbell(u64::from_le_bytes(value));
        }
        Ok(VcpuExit::MmioWrite(addr, _)) => Crash::StrayAccess { addr, write: true },
        Ok(VcpuExit::MmioRead(addr, _)) => Crash::StrayAccess { addr, write: false },
        Ok(VcpuExit::Shutdown) => Crash::TripleFault,
        Ok(VcpuExit::InternalError) => {
            // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, so this member is the one KVM
            // filled.
            let suberror = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
            Crash::KvmInternal(suberror)
        }
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => return Exit::Nothing,
        Ok(exit) => Crash::UnexpectedExit(format!("{exit:?}")),
        // A kick, or the first KVM_RUN of an AP that waits for SIPI.
        Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => return Exit::Nothing,
        Err(e) => Crash::Host(format!("KVM_RUN: {e}")),
    };
    Exit::Crash(crash)
}
