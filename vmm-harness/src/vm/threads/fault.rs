//! What becomes of an instruction of the guest that failed: a device, a page to be mapped, a service of
//! ring 0, or an exception.

use std::ptr;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind, Register};
use percpu_guest::abi::DOORBELL;

use super::super::boot::LAPIC;
use super::super::kick;
use super::context::Context;
use super::lapic::Asked;
use super::place::{self, LOWEST, PLACE};
use super::seat::{Left, PAGE_FAULT, PROTECTION, Seat, USER, WRITE, gs_base};
use super::signals;
use crate::memory::Why;

const BREAKPOINT: u64 = 3;
const PAGE: u64 = 4096;
/// The longest instruction.
const LONGEST: usize = 15;

/// Services of the guest's `int3`, by number.
const IDLE: u32 = 0;
const FLUSH_TLB: u32 = 1;

impl Seat {
    /// Deals with the fault that `signal` tells of.
    pub(super) fn fault(&mut self, context: &mut Context, signal: libc::c_int) {
        let error = context.get(libc::REG_ERR);
        match context.get(libc::REG_TRAPNO) {
            // Not what the processor found, but what the kernel could not do for it.
            PAGE_FAULT if signal == libc::SIGBUS => {
                self.leave(context, Left::Refused("memory for the guest"));
            }
            PAGE_FAULT => self.page_fault(context, error),
            BREAKPOINT => self.service(context),
            vector => self.exception(context, vector, error),
        }
    }

    fn page_fault(&mut self, context: &mut Context, error: u64) {
        let addr = context.get(libc::REG_CR2);
        let write = error & WRITE != 0;
        self.cr2 = addr;
        let to = match self.common.ram.translate(addr) {
            // The kernel has its own idea of which pages are present.
            Err(Why::WildTable) => return self.leave(context, Left::Stray { addr, write }),
            Err(_) => return self.exception(context, PAGE_FAULT, error & !PROTECTION | USER),
            Ok(to) if write && !to.writable => {
                return self.exception(context, PAGE_FAULT, error | PROTECTION | USER);
            }
            Ok(to) => to.phys,
        };
        if to >= self.common.ram.len() {
            self.device(context, to, write);
        } else if place::is_chunk(addr) {
            if !PLACE.tlb.fill(&self.common.lodger, addr, to) {
                self.leave(context, Left::Refused("a mapping (see vm.max_map_count)"));
            }
        } else if to < LOWEST {
            self.leave(context, Left::Stray { addr: to, write });
        } else {
            self.exception(context, PAGE_FAULT, error);
        }
    }

    fn device(&mut self, context: &mut Context, addr: u64, write: bool) {
        if !write || (addr != DOORBELL && !(LAPIC..LAPIC + PAGE).contains(&addr)) {
            return self.leave(context, Left::Stray { addr, write });
        }
        let Some((value, next)) = self.stored(context) else {
            return self.leave(context, Left::Instruction { rip: context.rip(), addr });
        };
        context.set_rip(next);
        if addr == DOORBELL {
            return self.leave(context, Left::Doorbell(value));
        }
        let asked = self.lapic().write(addr - LAPIC, value as u32, self.timer.as_ref());
        match asked {
            Asked::Nothing => {}
            Asked::Interrupt(cpu, vector) => {
                if let Some(target) = self.common.lapics.get(cpu as usize) {
                    target.raise(vector);
                }
            }
            Asked::Unknown => self.leave(context, Left::Instruction { rip: context.rip(), addr }),
        }
    }

    /// What the instruction stores, if it is a plain store, and the address of the next one.
    fn stored(&self, context: &Context) -> Option<(u64, u64)> {
        let rip = context.rip();
        let mut bytes = [0; LONGEST];
        // Code lies where memory is mapped one to one.
        let instruction = decode(self.common.ram.bytes(rip, &mut bytes), rip);
        let value = match instruction.code() {
            Code::Mov_rm32_r32 | Code::Mov_rm64_r64 => {
                register(context, instruction.op1_register())?
            }
            Code::Mov_rm32_imm32 | Code::Mov_rm64_imm32 => instruction.immediate(1),
            _ => return None,
        };
        (instruction.op0_kind() == OpKind::Memory).then_some((value, instruction.next_ip()))
    }

    fn service(&mut self, context: &mut Context) {
        match context.get(libc::REG_RAX) as u32 {
            IDLE => self.idle(context),
            FLUSH_TLB => PLACE.tlb.flush(&self.common.ram),
            _ => self.leave(context, Left::TripleFault),
        }
    }

    /// Waits for an interrupt, unless one is noted already. The guest has interrupts masked: what comes is
    /// noted when it goes on.
    fn idle(&mut self, context: &mut Context) {
        let word = gs_base().wrapping_add(self.common.image.irq_pending);
        match self.common.ram.load_virt_u64(word) {
            Some(0) => {}
            Some(_) => return,
            None => return self.leave(context, Left::Stray { addr: word, write: false }),
        }
        // Signals are blocked here, so that whichever comes after this look ends the wait.
        while !self.lapic().is_raised() && !self.stop.is_set() {
            match wait(&[signals::nudge(), kick::signal()]) {
                Some(info) if info.si_code == libc::SI_TIMER => self.lapic().expired(),
                Some(info) if info.si_signo == kick::signal() => {
                    return self.leave(context, Left::Asked);
                }
                _ => {}
            }
        }
    }
}

/// Takes one of the signals, which are blocked, and waits for it if need be.
fn wait(signals: &[libc::c_int]) -> Option<libc::siginfo_t> {
    let mask = signals.iter().fold(0_u64, |mask, signal| mask | 1 << (signal - 1));
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel reads a mask of so many bytes and writes `info`; it waits without limit. The
    // system call itself, since the C library's function is not among those that a handler may call.
    unsafe {
        let taken = libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const mask,
            info.as_mut_ptr(),
            ptr::null::<libc::timespec>(),
            size_of_val(&mask),
        );
        (taken > 0).then(|| info.assume_init())
    }
}

/// The decoder makes tables of its own when it is first used, for which it needs memory: so it is used
/// before any handler is installed.
pub(super) fn prepare() {
    decode(&[0x90], 0);
}

fn decode(code: &[u8], rip: u64) -> Instruction {
    Decoder::with_ip(64, code, rip, DecoderOptions::NONE).decode()
}

/// The value of a 32-bit or 64-bit register.
fn register(context: &Context, register: Register) -> Option<u64> {
    let number = match register.full_register() {
        Register::RAX => libc::REG_RAX,
        Register::RBX => libc::REG_RBX,
        Register::RCX => libc::REG_RCX,
        Register::RDX => libc::REG_RDX,
        Register::RSI => libc::REG_RSI,
        Register::RDI => libc::REG_RDI,
        Register::RBP => libc::REG_RBP,
        Register::RSP => libc::REG_RSP,
        Register::R8 => libc::REG_R8,
        Register::R9 => libc::REG_R9,
        Register::R10 => libc::REG_R10,
        Register::R11 => libc::REG_R11,
        Register::R12 => libc::REG_R12,
        Register::R13 => libc::REG_R13,
        Register::R14 => libc::REG_R14,
        Register::R15 => libc::REG_R15,
        _ => return None,
    };
    let value = context.get(number);
    Some(if register.is_gpr32() { u64::from(value as u32) } else { value })
}
