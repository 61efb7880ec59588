//! The machine with one CPU, which runs on the thread of whoever calls. All CPUs of its guest are
//! contexts of that one.

use kvm_bindings::kvm_regs;
use percpu_guest::abi::Doorbell;
use vm_memory::GuestMemoryMmap;

use super::alarm::Alarm;
use super::engine::{Cpu, Exit, Registers, Saved};
use super::hardware::{Hardware, VmConfig};
use super::vcpu::Crash;
use crate::error::Error;
use crate::image::Image;

/// A doorbell that was rung, and its argument.
pub type Bell = (Doorbell, u64);

/// A virtual machine that runs only while it is told to.
pub struct SerialVm {
    /// Goes before the hardware it is of.
    cpu: Box<dyn Cpu>,
    hardware: Hardware,
    /// For a guest that never leaves.
    alarm: Alarm,
}

impl SerialVm {
    /// Makes a VM with `image` and the shared region in memory, and puts its CPU to the boot CPU's
    /// beginning.
    pub fn new(image: &Image, config: VmConfig) -> Result<Self, Error> {
        let (hardware, mut cpu) = Hardware::new(image, config, false)?;
        cpu.begin(&hardware.boot_entry())?;
        Ok(Self { hardware, cpu, alarm: Alarm::new(Alarm::PATIENCE)? })
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.hardware.mem
    }

    /// Runs the guest until it rings a doorbell.
    pub fn run(&mut self) -> Result<Bell, Crash> {
        loop {
            // That it waits for others is not the guest's fault.
            self.cpu.ready().map_err(|error| Crash::Host(error.to_string()))?;
            let (exit, late) = self.alarm.around(|| self.cpu.run());
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
        self.cpu.finish();
        self.cpu.save()
    }

    /// Executes `code` from a saved state, with two arguments, until it rings.
    pub fn call(&mut self, saved: &Saved, code: u64, rbx: u64, r12: u64) -> Result<Bell, Crash> {
        let regs = kvm_regs { rip: code, rbx, r12, ..saved.regs };
        let set = self.cpu.load(&Saved { regs, sregs: saved.sregs });
        set.map_err(|e| Crash::Host(format!("its registers cannot be set: {e}")))?;
        self.run()
    }

    /// Puts the CPU back to where it was, and makes it forget what it remembers of page tables.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), Error> {
        // What a store to the doorbell still owes is nothing that registers show.
        self.cpu.load_and_forget(saved)
    }

    /// The registers by now.
    pub fn registers(&self) -> Option<Registers> {
        self.cpu.registers()
    }

    /// Bytes of guest memory.
    pub fn memory_size(&self) -> u64 {
        self.hardware.memory
    }
}

impl std::fmt::Debug for SerialVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialVm").field("hardware", &self.hardware).finish_non_exhaustive()
    }
}
