//! The log, a ring of text a CPU; the host prints it in reports.

use core::fmt::{self, Write};
use core::sync::atomic::Ordering;

use crate::abi::LOG_RING_LEN;
use percpu_core::irq;

use crate::kernel::shared;

struct Ring(u32);

impl Write for Ring {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let ring = shared::log(self.0);
        let mut head = ring.head.load(Ordering::Relaxed);
        for byte in text.bytes() {
            ring.bytes[(head % LOG_RING_LEN as u64) as usize].store(byte, Ordering::Relaxed);
            head += 1;
        }
        ring.head.store(head, Ordering::Release);
        Ok(())
    }
}

/// Prints one line into this CPU's ring.
pub fn line(args: fmt::Arguments<'_>) {
    // Masked, so that a line is in one piece and the ring has one writer.
    let _masked = irq::disable();
    let mut ring = Ring(percpu_core::cpu::this_cpu_raw());
    // The ring takes everything.
    let _ = ring.write_fmt(args);
    let _ = ring.write_char('\n');
}
