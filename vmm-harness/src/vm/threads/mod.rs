//! The engine for hosts without KVM: the guest's own image, executed as native code in this process.
//!
//! It is not the guest's work done again in some other way but the same ELF file, which is possible since
//! the guest asks little of the machine below it. It is linked at fixed addresses that a process can
//! have. It can run in ring 3, above ring-0 stubs which do five things. Interrupts are masked in software.
//! The host is called by a store to a page without memory. So each of these has a counterpart here, and
//! nothing of the guest is built otherwise:
//!
//! | in a virtual machine | here |
//! |---|---|
//! | guest-physical memory, mapped one to one | a file in memory, mapped at those addresses (`place`) |
//! | a vCPU | a thread, which goes in and out of the guest (`cpu`, `seat`) |
//! | exit by a store to the doorbell page | SIGSEGV; the instruction is decoded (`fault`) |
//! | local APIC, its timer | SIGSEGV likewise; a timer of the kernel's (`lapic`, `timer`) |
//! | an interrupt, and the stub that takes it | a signal, whose handler does what the stub does (`seat`) |
//! | ring-0 services by `int3` | SIGTRAP: idle, flush, triple fault (`fault`) |
//! | page tables of the chunk space, TLB | SIGSEGV; the tables are walked, and the page mapped (`tlb`) |
//! | an exception, and the stub that reports it | the signal of the fault; the same frame (`seat`) |
//! | a kick that ends `KVM_RUN` | the same signal, whose handler leaves the guest |
//!
//! What holds below relies on is this:
//!
//! - Handlers block all signals, so that none interrupts another on a thread; and in the guest all signals
//!   are blocked but those of this engine, so that no handler of others runs on a guest's stack.
//! - A thread is in the guest from the signal in which its registers were exchanged to the one in which
//!   they are exchanged back; at every other moment what fails is the host's own, and goes to whoever had
//!   a handler before.
//! - One guest at a time lies at the guest's addresses. Others wait.
//!
//! # What it is not
//!
//! No sandbox. KVM keeps a guest in its memory; here a stray store of the guest's can hit whatever this
//! process has mapped, and its code could call the kernel. It is for guests that one would run as a program.
//! No real mode, so that CPUs are started directly. No ring 0. One TLB for all CPUs, so that a flush which
//! forgets a CPU is not seen. And the hardware's memory ordering is this host's, as with KVM.

mod context;
mod cpu;
mod fault;
mod lapic;
mod place;
mod ram;
mod seat;
mod signals;
mod timer;
mod tlb;

use std::sync::{Arc, OnceLock};

use percpu_guest::abi::ImageHeader;
use vm_memory::GuestMemoryMmap;

use self::context::Context;
use self::place::{Lodger, Stay};
use self::ram::Ram;
use self::seat::{Common, Left, Seat};
pub(super) use self::signals::install;
use super::engine::{Board, Cpu};
use super::kick;
use crate::error::Error;

/// The kernel lets processes read and write their GS base.
const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// A guest in this process.
#[derive(Debug)]
pub(super) struct ThreadBoard {
    common: Arc<Common>,
    /// The guest has the place for life.
    stay: Option<Stay>,
}

impl ThreadBoard {
    /// Makes one with `bytes` of memory. Either it has the guest's addresses for life, for which it waits
    /// here until they are free; or each run of its one CPU waits.
    pub(super) fn new(
        bytes: u64,
        image: &ImageHeader,
        for_life: bool,
    ) -> Result<(Self, GuestMemoryMmap), Error> {
        check()?;
        kick::install()?;
        let (lodger, mem) = Lodger::new(bytes)?;
        let stay = for_life.then(|| lodger.stay()).transpose()?;
        let ram = Ram::new(&mem, bytes)?;
        let common = Common {
            ram,
            lodger,
            lapics: std::array::from_fn(|_| Default::default()),
            image: *image,
            _mem: mem.clone(),
        };
        Ok((Self { common: Arc::new(common), stay }, mem))
    }
}

impl Board for ThreadBoard {
    fn create_cpu(&self, cpu: u32) -> Result<Box<dyn Cpu>, Error> {
        Ok(Box::new(cpu::ThreadCpu::new(cpu, self.common.clone(), self.stay.is_none())))
    }

    fn interrupt(&self, cpu: u32, vector: u8) -> Result<(), Error> {
        if let Some(lapic) = self.common.lapics.get(cpu as usize) {
            lapic.raise(vector.into());
        }
        Ok(())
    }
}

/// Whether this host and this process can run guests so; why not, if not.
pub fn check() -> Result<(), Error> {
    // SAFETY: reads the auxiliary vector; an unknown key gives 0.
    if unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE == 0 {
        return Err(Error::Threads(
            "its code writes the GS base, which this processor or a kernel before 5.9 does not allow"
                .into(),
        ));
    }
    static HANDLERS: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = HANDLERS.get_or_init(|| {
        fault::prepare();
        signals::install(signals::nudge(), on_nudge)?;
        signals::install_for_faults(on_fault)
    });
    installed.map_err(|errno| Error::os("sigaction", errno))
}

/// A CPU is to leave the guest; on other threads, nothing.
pub(super) extern "C" fn on_kick(
    _: libc::c_int,
    _: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: this is a handler that blocks all signals, and the context is the kernel's.
    let (seat, mut context) = unsafe { (Seat::of_this_thread(), Context::new(context)) };
    if let Some(seat) = seat.filter(|seat| seat.inside) {
        seat.leave(&mut context, Left::Asked);
    }
}

/// There is an interrupt for this thread's CPU, or its timer has run out. Comes in the guest only.
extern "C" fn on_nudge(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: as above; so is `info`.
    let (seat, mut context, info) =
        unsafe { (Seat::of_this_thread(), Context::new(context), &*info) };
    if let Some(seat) = seat {
        if info.si_code == libc::SI_TIMER {
            seat.lapic().expired();
        }
        seat.look(&mut context);
    }
}

/// An instruction has failed.
extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, raw: *mut libc::c_void) {
    // SAFETY: as above.
    let (seat, mut context) = unsafe { (Seat::of_this_thread(), Context::new(raw)) };
    match seat {
        Some(seat) if seat.inside => signals::keep_errno(|| {
            seat.fault(&mut context, signal);
            seat.look(&mut context);
        }),
        Some(seat) if signal == libc::SIGTRAP && context.rip() == cpu::inside() => {
            seat.enter(&mut context);
        }
        _ => signals::pass_on(signal, info, raw),
    }
}
