//! What a signal handler knows of the CPU that its thread is: where the guest and the host take turns.

use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::Arc;

use percpu_guest::abi::{CODE3, CpuTables, DATA3, ExceptionFrame, ImageHeader, MAX_CPUS};
use vm_memory::GuestMemoryMmap;

use super::context::{Context, Flow};
use super::cpu::Stop;
use super::lapic::Lapic;
use super::place::Lodger;
use super::ram::Ram;
use super::timer::Timer;

/// Bytes below the stack pointer that code of an image for the host's own target may use.
const RED_ZONE: u64 = 128;

/// What all CPUs of a guest have in common.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) ram: Ram,
    pub(super) lodger: Lodger,
    pub(super) lapics: [Lapic; MAX_CPUS],
    pub(super) image: ImageHeader,
    /// As long as `ram`, which is a part of it.
    pub(super) _mem: GuestMemoryMmap,
}

/// A CPU as its thread's signal handlers see it.
pub(super) struct Seat {
    pub(super) cpu: u32,
    pub(super) common: Arc<Common>,
    /// Whether the guest executes; the host does if not.
    pub(super) inside: bool,
    /// Whoever does not.
    pub(super) other: Flow,
    /// GS base of the one that does not execute. The host's may be a CPU's offset, where the thread is one
    /// of `percpu_core::host`.
    pub(super) gs_base: u64,
    /// The last faulting address.
    pub(super) cr2: u64,
    /// Why the guest was left.
    pub(super) left: Left,
    /// Set from outside: the guest is not to be entered, or to be left soon.
    pub(super) stop: Arc<Stop>,
    pub(super) timer: Option<Timer>,
}

/// Why the guest was left.
#[derive(Clone, Copy, Debug)]
pub(super) enum Left {
    /// It was asked to.
    Asked,
    /// A store to the doorbell page.
    Doorbell(u64),
    /// An exception; the address of its [`ExceptionFrame`].
    Exception(u64),
    TripleFault,
    /// An access to where there is nothing.
    Stray {
        addr: u64,
        write: bool,
    },
    /// An access to a device by an instruction that is not understood.
    Instruction {
        rip: u64,
        addr: u64,
    },
    /// Something that the host's kernel did not give.
    Refused(&'static str),
}

thread_local! {
    /// The CPU that this thread is, while it runs one. A plain word: reading it in a signal handler is
    /// reading memory of the thread.
    static SEAT: Cell<*mut Seat> = const { Cell::new(null_mut()) };
}

impl Seat {
    /// Says that this thread is the CPU whose seat this is, or none.
    pub(super) fn occupy(seat: *mut Seat) {
        SEAT.set(seat);
    }

    /// The seat that this thread occupies.
    ///
    /// # Safety
    ///
    /// Called in a signal handler that blocks all others, and used until it returns only: so there is no
    /// other reference to the seat, of which the thread outside keeps a pointer.
    pub(super) unsafe fn of_this_thread<'a>() -> Option<&'a mut Seat> {
        // SAFETY: the pointer is set for as long as the seat is there; see the contract.
        unsafe { SEAT.get().as_mut() }
    }

    pub(super) fn lapic(&self) -> &Lapic {
        &self.common.lapics[self.cpu as usize % MAX_CPUS]
    }

    /// Lets the guest go on in place of the host, which stands in its call of `enter`; unless the guest is
    /// not to be entered.
    pub(super) fn enter(&mut self, context: &mut Context) {
        if self.stop.is_set() {
            self.left = Left::Asked;
            return;
        }
        context.exchange(&mut self.other);
        self.exchange_gs_base();
        self.inside = true;
        self.look(context);
    }

    /// Lets the host go on in place of the guest.
    pub(super) fn leave(&mut self, context: &mut Context, why: Left) {
        context.exchange(&mut self.other);
        self.exchange_gs_base();
        self.inside = false;
        self.left = why;
    }

    fn exchange_gs_base(&mut self) {
        let before = gs_base();
        set_gs_base(self.gs_base);
        self.gs_base = before;
    }

    /// Before the guest goes on: is it to stop, or to be interrupted?
    pub(super) fn look(&mut self, context: &mut Context) {
        if !self.inside {
            return;
        }
        if self.stop.is_set() {
            return self.leave(context, Left::Asked);
        }
        let vectors = self.lapic().take();
        if vectors != 0 {
            self.interrupt(context, vectors);
        }
    }

    /// Does what the guest's own stub does: notes the vectors if interrupts are masked, and else masks
    /// them and lets the thread go on in `irq_continue`, which handles the first and then what is noted.
    fn interrupt(&mut self, context: &mut Context, vectors: u64) {
        let gs = gs_base();
        let (ram, image) = (self.common.ram, self.common.image);
        let masked = gs.wrapping_add(image.irq_masked);
        let Some(count) = ram.load_virt_u32(masked) else {
            return self.leave(context, Left::Stray { addr: masked, write: false });
        };
        let first = vectors.trailing_zeros();
        let noted = if count != 0 { vectors } else { vectors & (vectors - 1) };
        let word = gs.wrapping_add(image.irq_pending);
        if noted != 0 && ram.set_virt_bits(word, noted).is_none() {
            return self.leave(context, Left::Stray { addr: word, write: true });
        }
        if count != 0 {
            return;
        }
        let red_zone = if image.ring3_only != 0 { RED_ZONE } else { 0 };
        let frame = [
            u64::from(super::lapic::FIRST_VECTOR + first),
            context.get(libc::REG_EFL),
            context.get(libc::REG_RBP),
            context.rip(),
        ];
        let rsp = context.rsp().wrapping_sub(red_zone + size_of_val(&frame) as u64);
        for (at, value) in words_from(rsp).zip(frame) {
            // There is no stack: the stub would fault there.
            if ram.push(at, value).is_none() {
                self.cr2 = at;
                return self.exception(context, PAGE_FAULT, WRITE | USER);
            }
        }
        ram.store_virt_u32(masked, 1);
        context.set(libc::REG_RSP, rsp);
        context.set_rip(image.irq_continue);
    }

    /// Leaves the guest with what its own stub tells of an exception.
    pub(super) fn exception(&mut self, context: &mut Context, vector: u64, error: u64) {
        use libc::*;
        let register = |number| context.get(number);
        let frame = ExceptionFrame {
            gpr: [
                REG_RAX, REG_RBX, REG_RCX, REG_RDX, REG_RSI, REG_RDI, REG_RBP, REG_R8, REG_R9,
                REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
            ]
            .map(register),
            vector,
            error,
            rip: context.rip(),
            cs: CODE3.into(),
            rflags: register(REG_EFL),
            rsp: context.rsp(),
            ss: DATA3.into(),
        };
        // Where the processor would begin to push: the end of the CPU's ring-0 stack.
        let end = (u64::from(self.cpu) + 1) * size_of::<CpuTables>() as u64;
        let at = self.common.image.tables.wrapping_add(end - size_of::<ExceptionFrame>() as u64);
        let ExceptionFrame { gpr, vector, error, rip, cs, rflags, rsp, ss } = frame;
        let words = gpr.into_iter().chain([vector, error, rip, cs, rflags, rsp, ss]);
        for (to, word) in words_from(at).zip(words) {
            if self.common.ram.store_u64(to, word).is_none() {
                return self.leave(context, Left::TripleFault);
            }
        }
        self.leave(context, Left::Exception(at));
    }
}

/// Addresses of words, from one on. Whatever it is: the guest said it.
fn words_from(at: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |n: u64| at.wrapping_add(n.wrapping_mul(8)))
}

/// Vector of a page fault.
pub(super) const PAGE_FAULT: u64 = 14;
/// Bits of its error code.
pub(super) const PROTECTION: u64 = 1;
pub(super) const WRITE: u64 = 1 << 1;
pub(super) const USER: u64 = 1 << 2;

pub(super) fn gs_base() -> u64 {
    let base;
    // SAFETY: reads a register; that processes may was checked before any CPU was made.
    unsafe {
        std::arch::asm!("rdgsbase {}", out(reg) base, options(nomem, nostack, preserves_flags))
    };
    base
}

pub(super) fn set_gs_base(base: u64) {
    // SAFETY: as above. The value is canonical: the guest's was checked, the host's was in the register.
    // Nothing of the host's that uses GS executes before the host's value is back: handlers do not, and
    // all signals but theirs are blocked in the guest.
    unsafe {
        std::arch::asm!("wrgsbase {}", in(reg) base, options(nomem, nostack, preserves_flags))
    };
}
