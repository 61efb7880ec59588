//! A panic reaches the host with its message and its stack.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::abi::{CpuState, Doorbell, MAX_CPUS, PanicRecord};

use crate::kernel::arch::{doorbell, irq};
use crate::kernel::shared;

const EMPTY: PanicRecord = PanicRecord { rbp: 0, len: 0, message: [0; 496] };

struct Records([UnsafeCell<PanicRecord>; MAX_CPUS]);
// SAFETY: a CPU writes its own record only, with interrupts masked, and once.
unsafe impl Sync for Records {}
static RECORDS: Records = Records([const { UnsafeCell::new(EMPTY) }; MAX_CPUS]);
static PANICKED: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];

impl Write for Message<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let used = self.0.len as usize;
        let n = text.len().min(self.0.message.len() - used);
        self.0.message[used..used + n].copy_from_slice(&text.as_bytes()[..n]);
        self.0.len += n as u64;
        Ok(())
    }
}

struct Message<'a>(&'a mut PanicRecord);

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    irq::mask();
    let cpu = percpu_core::cpu::this_cpu_raw() as usize % MAX_CPUS;
    let record = RECORDS.0[cpu].get();
    if !PANICKED[cpu].swap(true, Ordering::Relaxed) {
        shared::control(cpu as u32).state.store(CpuState::Crashed as u32, Ordering::Release);
        // SAFETY: the flag makes this CPU's first panic the only one that gets here, and no
        // interrupt comes between.
        let record = unsafe { &mut *record };
        // SAFETY: reads a register.
        unsafe { asm!("mov {}, rbp", out(reg) record.rbp) };
        // The message takes what fits.
        let _ = write!(Message(record), "{info}");
    }
    doorbell::ring_last(Doorbell::Panic, record.expose_provenance() as u64)
}
