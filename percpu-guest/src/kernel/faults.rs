//! Deliberate misbehaviour, by which the host's own reports are tested. Not tests themselves: the
//! host asks for one in the boot parameters.

use core::arch::asm;

use crate::abi::{Fault, SHARED};

use crate::kernel::arch::{irq, service, tsc};
use crate::kernel::sched;

/// Lets the machine run a little, then does what `code` says.
pub fn misbehave(code: u32) {
    let until = tsc::now_ns() + 200_000_000;
    while tsc::now_ns() < until {
        sched::yield_now();
    }
    match Fault::from_code(code) {
        Some(Fault::Panic) => panic_on_purpose(),
        Some(Fault::TripleFault) => service::triple_fault(),
        Some(Fault::SpinMasked) => spin_masked(),
        Some(Fault::ScribbleHeader) => scribble_header(),
        Some(Fault::PageFault) => read_unmapped(),
        Some(Fault::None) | None => {}
    }
}

#[inline(never)]
fn panic_on_purpose() {
    panic!("this panic was asked for");
}

#[inline(never)]
fn spin_masked() {
    irq::mask();
    loop {
        core::hint::spin_loop();
    }
}

#[inline(never)]
fn scribble_header() {
    let header = core::ptr::with_exposed_provenance_mut::<u8>(SHARED as usize);
    for i in 0..64 {
        // SAFETY: none; this is the fault. The bytes are RAM that only the host cares for.
        unsafe { header.add(i).write_volatile(0xd1) };
    }
}

#[inline(never)]
fn read_unmapped() {
    // SAFETY: none; this is the fault. The exception stub reports it and stops the CPU.
    unsafe { asm!("mov {x}, [{addr}]", x = out(reg) _, addr = in(reg) 0x10usize) };
}
