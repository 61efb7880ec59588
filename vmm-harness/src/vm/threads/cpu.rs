//! A CPU as the host runs it: how its thread goes into the guest and comes out again.
//!
//! Both are the work of a signal handler, which is given all of what it interrupts and decides what goes
//! on. To go in, the thread executes a breakpoint of ours: the handler keeps the host's registers and
//! puts the guest's in their place. When the guest is to be left it does the same the other way, and the
//! host goes on after its breakpoint.

use std::arch::naked_asm;
use std::cell::UnsafeCell;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_sregs};

use super::super::boot::Entry;
use super::super::engine::{Cpu, Exit, Registers, Saved, Stopper};
use super::super::kick;
use super::super::vcpu::Crash;
use super::context::Flow;
use super::place::{PLACE, Stay};
use super::seat::{Common, Left, Seat};
use super::signals;
use super::timer::Timer;
use crate::error::Error;

/// How long to look at the time stamp counter to know its rate.
const LOOK: Duration = Duration::from_millis(10);

/// A CPU.
pub(super) struct ThreadCpu {
    /// Where it is stays the same, and handlers reach it by a pointer.
    seat: Box<UnsafeCell<Seat>>,
    common: Arc<Common>,
    /// The place is not the guest's for life: to be had for every run.
    lodges: bool,
    /// Had for the run that is to come.
    stay: Option<Stay>,
}

impl ThreadCpu {
    pub(super) fn new(cpu: u32, common: Arc<Common>, lodges: bool) -> Self {
        let seat = Seat {
            cpu,
            common: common.clone(),
            inside: false,
            other: Flow::new(&kvm_regs::default(), signals::blocked_in_guest()),
            gs_base: 0,
            cr2: 0,
            left: Left::Asked,
            stop: Arc::new(Stop(AtomicBool::new(false))),
            timer: None,
        };
        Self { seat: Box::new(UnsafeCell::new(seat)), common, lodges, stay: None }
    }

    /// What a run needs of the thread it is on.
    fn prepare_thread(&mut self) -> Result<(), Error> {
        signals::ensure_stack().map_err(|errno| Error::os("sigaltstack", errno))?;
        let seat = self.seat.get_mut();
        if !seat.timer.as_ref().is_some_and(Timer::is_of_this_thread) {
            let timer = Timer::new().map_err(|errno| Error::os("timer_create", errno))?;
            seat.timer = Some(timer);
            signals::hold_nudges();
            seat.lapic().is_on(kick::this_thread());
        }
        Ok(())
    }

    fn set_registers(&mut self, regs: &kvm_regs, gs_base: u64) -> Result<(), Error> {
        if (gs_base.cast_signed()) << 16 >> 16 != gs_base.cast_signed() {
            return Err(Error::Threads(format!("its GS base {gs_base:#x} is no address")));
        }
        let seat = self.seat.get_mut();
        seat.other.set(regs);
        seat.gs_base = gs_base;
        Ok(())
    }
}

impl Cpu for ThreadCpu {
    fn tsc_khz(&self) -> Result<u32, Error> {
        static RATE: OnceLock<u32> = OnceLock::new();
        Ok(*RATE.get_or_init(measure_tsc))
    }

    fn begin(&mut self, entry: &Entry) -> Result<(), Error> {
        let seat = self.seat.get_mut();
        if let Some(timer) = &seat.timer {
            timer.arm(0);
        }
        seat.lapic().reset();
        seat.other = Flow::new(&kvm_regs::default(), signals::blocked_in_guest());
        self.set_registers(&entry.regs(), entry.gs_base)
    }

    fn await_sipi(&mut self) -> Result<(), Error> {
        Err(Error::Threads("its CPUs know no real mode: give --boot direct".into()))
    }

    fn ready(&mut self) -> Result<(), Error> {
        self.prepare_thread()?;
        if self.lodges && self.stay.is_none() {
            self.stay = Some(self.common.lodger.stay()?);
        }
        Ok(())
    }

    fn run(&mut self) -> Exit {
        if let Err(error) = self.ready() {
            return Exit::Crash(Crash::Host(error.to_string()));
        }
        let seat = self.seat.get();
        Seat::occupy(seat);
        enter();
        Seat::occupy(null_mut());
        self.stay = None;
        // SAFETY: no handler uses the seat any more, for this thread occupies none.
        let left = unsafe { (*seat).left };
        Exit::Crash(match left {
            Left::Asked => return Exit::Nothing,
            Left::Doorbell(value) => return Exit::Doorbell(value),
            Left::Exception(frame) => Crash::Exception(frame),
            Left::TripleFault => Crash::TripleFault,
            Left::Stray { addr, write } => Crash::StrayAccess { addr, write },
            Left::Instruction { rip, addr } => Crash::UnexpectedExit(format!(
                "the instruction at {rip:#x} asks the device at {addr:#x} for what is not known here"
            )),
            Left::Refused(what) => Crash::Host(format!("the host's kernel did not give {what}")),
        })
    }

    fn stopper(&self) -> Arc<dyn Stopper> {
        // SAFETY: nobody runs the CPU now, or `self` could not be borrowed.
        unsafe { (*self.seat.get()).stop.clone() }
    }

    fn registers(&self) -> Option<Registers> {
        // SAFETY: as above.
        let seat = unsafe { &*self.seat.get() };
        let regs = seat.other.get();
        Some(Registers { regs, cr2: seat.cr2, gs_base: seat.gs_base, cpl: 3 })
    }

    fn save(&mut self) -> Result<Saved, Error> {
        let seat = self.seat.get_mut();
        let mut sregs = kvm_sregs::default();
        sregs.gs.base = seat.gs_base;
        Ok(Saved { regs: seat.other.get(), sregs })
    }

    fn load(&mut self, saved: &Saved) -> Result<(), Error> {
        self.set_registers(&saved.regs, saved.sregs.gs.base)
    }

    fn load_and_forget(&mut self, saved: &Saved) -> Result<(), Error> {
        // Who is not there has nothing mapped.
        if self.common.lodger.is_here() {
            PLACE.tlb.flush(&self.common.ram);
        }
        self.load(saved)
    }
}

impl Drop for ThreadCpu {
    fn drop(&mut self) {
        // Nobody is to be signalled any more.
        self.seat.get_mut().lapic().is_on(0);
    }
}

/// Keeps a CPU out of the guest while it is set.
pub(super) struct Stop(AtomicBool);

impl Stop {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Stopper for Stop {
    fn set(&self, on: bool) {
        self.0.store(on, Ordering::Release);
    }
}

/// Lets the guest go on whose seat this thread occupies; returns when it is left. All registers that a
/// function must keep are kept by the handler, which keeps all.
#[unsafe(naked)]
extern "C" fn enter() {
    naked_asm!("int3", "ret")
}

/// Where the host stands while the guest executes: after the breakpoint.
pub(super) fn inside() -> u64 {
    (enter as *const ()).expose_provenance() as u64 + 1
}

/// The rate of the time stamp counter, by the host's clock.
fn measure_tsc() -> u32 {
    // SAFETY: every x86-64 CPU has the instruction.
    let ticks = || unsafe { std::arch::x86_64::_rdtsc() };
    let (began, first) = (Instant::now(), ticks());
    std::thread::sleep(LOOK);
    let (elapsed, last) = (began.elapsed(), ticks());
    let khz = u128::from(last.wrapping_sub(first)) * 1_000_000 / elapsed.as_nanos().max(1);
    u32::try_from(khz).unwrap_or(u32::MAX).max(1000)
}

#[cfg(test)]
mod tests {
    use percpu_guest::abi::{DOORBELL, ImageHeader};
    use vm_memory::{Bytes, GuestAddress};

    use super::super::super::boot;
    use super::super::super::engine::Board;
    use super::super::{ThreadBoard, check, seat};
    use super::*;

    const BYTES: u64 = 4 << 20;
    const CODE: u64 = 0x20_0000;

    /// A thread that is a CPU of `percpu_core::host` has its offset there.
    #[test]
    fn the_gs_base_of_the_thread_is_what_it_was_when_the_guest_is_left() {
        if let Err(why) = check() {
            eprintln!("{why}: left out");
            return;
        }
        const HOST: u64 = 0x1234_5000;
        const GUEST: u64 = 0x7000;
        let header = [0; size_of::<ImageHeader>()];
        let header: ImageHeader = crate::memory::view_from_bytes(&header).unwrap();
        let (board, mem) = ThreadBoard::new(BYTES, &header, false).unwrap();
        boot::write_page_tables(&mem, BYTES).unwrap();
        // mov rax, DOORBELL; mov [rax], edi
        let code = [&[0x48, 0xb8], &DOORBELL.to_le_bytes()[..], &[0x89, 0x38]].concat();
        mem.write_slice(&code, GuestAddress(CODE)).unwrap();
        let mut cpu = board.create_cpu(0).unwrap();
        let arg = 5;
        let entry = Entry { rip: CODE, rsp: CODE, arg, gs_base: GUEST, tables: 0, idt: 0, ring: 3 };
        cpu.begin(&entry).unwrap();

        let before = seat::gs_base();
        seat::set_gs_base(HOST);
        let exit = cpu.run();
        let after = seat::gs_base();
        seat::set_gs_base(before);
        assert!(matches!(exit, Exit::Doorbell(5)), "{exit:?}");
        assert_eq!(after, HOST);
        assert_eq!(cpu.registers().unwrap().gs_base, GUEST);
    }
}
