//! A vCPU of KVM.

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{KVM_MP_STATE_UNINITIALIZED, kvm_run, kvm_sregs};
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

/// The byte `immediate_exit` of a vCPU's shared page, in a mapping of its own.
///
/// Other threads write the byte while the vCPU's thread is in [`VcpuFd::run`], which makes a `&mut` to all
/// of `kvm_run` in the mapping that `VcpuFd` has. An access through that mapping would alias the reference.
/// The same page at another address does not.
struct ImmediateExit {
    page: *mut libc::c_void,
}

/// Bytes of the mapping; the kernel makes it a page.
const MAPPED: usize = offset_of!(kvm_run, immediate_exit) + 1;

// SAFETY: the mapping belongs to the process, and all accesses through it are atomic.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    fn map(fd: &VcpuFd) -> Result<Self, Error> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses an address where nothing is mapped.
        let page = unsafe {
            libc::mmap(ptr::null_mut(), MAPPED, access, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if page == libc::MAP_FAILED {
            return Err(Error::os("mmap", io::Error::last_os_error().raw_os_error().unwrap_or(0)));
        }
        Ok(Self { page })
    }

    fn byte(&self) -> &AtomicU8 {
        // SAFETY: the byte lies in the mapping, which lives as long as `self`. This process reaches it at
        // this address only here, so by atomic accesses only. The kernel reads it when KVM_RUN begins.
        unsafe {
            AtomicU8::from_ptr(self.page.byte_add(offset_of!(kvm_run, immediate_exit)).cast())
        }
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        // SAFETY: `map` made the mapping, and no reference to the byte outlives `self`.
        unsafe { libc::munmap(self.page, MAPPED) };
    }
}

impl Stopper for ImmediateExit {
    fn set(&self, on: bool) {
        self.byte().store(u8::from(on), Ordering::Release);
    }
}

impl KvmCpu {
    pub(super) fn new(fd: VcpuFd) -> Result<Self, Error> {
        let pristine = CpuState::save(&fd)?;
        let immediate_exit = Arc::new(ImmediateExit::map(&fd)?);
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
            // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, so KVM has filled this member of the
            // union. Whatever is there, any bytes are a valid integer.
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use vm_memory::{Bytes, GuestAddress};

    use super::super::super::alarm::Alarm;
    use super::super::super::{boot, kick};
    use super::super::KvmBoard;
    use super::*;

    const BYTES: u64 = 4 << 20;
    const CODE: u64 = 0x20_0000;
    /// Longer than anything here takes, unless the guest runs on.
    const PATIENCE: Duration = Duration::from_secs(2);

    /// A vCPU that loops for ever once it is in the guest; `None` where there is no KVM.
    fn looping() -> Option<(KvmCpu, KvmBoard)> {
        if crate::host::open_kvm().is_err() {
            eprintln!("no usable /dev/kvm: left out");
            return None;
        }
        let (board, mem) = KvmBoard::new(BYTES).unwrap();
        boot::write_page_tables(&mem, BYTES).unwrap();
        // 1: jmp 1b
        mem.write_slice(&[0xeb, 0xfe], GuestAddress(CODE)).unwrap();
        let fd = super::super::create_vcpu(&board.fd, &board.cpuid, 0).unwrap();
        let mut cpu = KvmCpu::new(fd).unwrap();
        let entry = Entry {
            rip: CODE,
            rsp: CODE,
            arg: 0,
            gs_base: 0,
            tables: CODE + 0x1000,
            idt: CODE + 0x2000,
            ring: 3,
        };
        cpu.begin(&entry).unwrap();
        Some((cpu, board))
    }

    /// Runs the vCPU, which must leave the guest for no reason of its own and without the alarm's help.
    fn leaves(cpu: &mut KvmCpu, alarm: &mut Alarm) {
        let (exit, late) = alarm.around(|| cpu.run());
        assert!(matches!(exit, Exit::Nothing), "{exit:?}");
        assert!(!late, "it was in the guest until the alarm");
    }

    #[test]
    fn a_stop_between_the_last_look_and_the_entry_ends_the_run_without_a_signal() {
        let Some((mut cpu, _board)) = looping() else { return };
        let mut alarm = Alarm::new(PATIENCE).unwrap();
        let stopper = cpu.stopper();
        std::thread::spawn(move || stopper.set(true)).join().unwrap();
        leaves(&mut cpu, &mut alarm);
        cpu.finish();
        // Cleared, it lets the guest run, and so the alarm ends that.
        let (exit, late) = alarm.around(|| cpu.run());
        assert!(matches!(exit, Exit::Nothing) && late, "{exit:?}");
    }

    #[test]
    fn a_kick_ends_a_run_that_has_begun() {
        let Some((mut cpu, _board)) = looping() else { return };
        let mut alarm = Alarm::new(PATIENCE).unwrap();
        let (stopper, runner) = (cpu.stopper(), kick::this_thread());
        let began = Instant::now();
        let kicker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            stopper.set(true);
            kick::thread(runner);
        });
        leaves(&mut cpu, &mut alarm);
        assert!(began.elapsed() >= Duration::from_millis(100), "it was not in the guest");
        kicker.join().unwrap();
        // The kick came at the end of a run; it holds for the next one, too.
        leaves(&mut cpu, &mut alarm);
    }

    #[test]
    fn the_byte_is_reached_at_an_address_outside_of_what_the_library_has_references_to() {
        let Some((mut cpu, _board)) = looping() else { return };
        let stopper = cpu.immediate_exit.clone();
        let run: *mut kvm_run = cpu.fd.get_kvm_run();
        let (byte, run) = (stopper.byte().as_ptr().addr(), run.addr());
        assert!(!(run..run + size_of::<kvm_run>()).contains(&byte));
        stopper.set(true);
        assert_eq!(cpu.fd.get_kvm_run().immediate_exit, 1);
        stopper.set(false);
        assert_eq!(cpu.fd.get_kvm_run().immediate_exit, 0);
        // It outlives the vCPU.
        drop(cpu);
        stopper.set(true);
        assert_eq!(stopper.byte().load(Ordering::Acquire), 1);
    }
}
