//! CPUs of this machine coming and going.

use core::cell::UnsafeCell;
use core::sync::atomic::Ordering;

use crate::abi::{BootMode, CpuState, Doorbell, EventKind, MAX_CPUS, PlugError, TRAMPOLINE};
use percpu_core::cpu::CpuId;
use percpu_core::hotplug::{self, CpuOps, HotplugError, Section, Serve, StartError};
use percpu_core::{area, irq, percpu, preempt};

use crate::kernel::arch::irq::{IRQ_MASKED, IRQ_PENDING};
use crate::kernel::arch::{self, doorbell, lapic, tables};
use crate::kernel::sched::{self, Thread};
use crate::kernel::{events, ipi, shared, tick, workload};

/// How long a CPU may take to arrive. Long, because on a crowded host it waits for its turn.
const ARRIVAL_TIMEOUT_NS: u64 = 5_000_000_000;

/// The CPU the control thread belongs to, the boot CPU: it cannot go down.
pub const CONTROL_CPU: u32 = 0;

/// A CPU's own threads, made when it first comes up and used again later.
struct Threads {
    idle: UnsafeCell<[Option<&'static Thread>; MAX_CPUS]>,
    hotplug: UnsafeCell<[Option<&'static Thread>; MAX_CPUS]>,
}
// SAFETY: touched by the control thread only (and by the boot CPU before that runs).
unsafe impl Sync for Threads {}
static THREADS: Threads =
    Threads { idle: UnsafeCell::new([None; MAX_CPUS]), hotplug: UnsafeCell::new([None; MAX_CPUS]) };

/// Brings `cpu` up.
pub fn up(cpu: u32) -> Result<(), PlugError> {
    let cpu = CpuId::new(cpu as usize).ok_or(PlugError::NoSuchCpu)?;
    hotplug::cpu_up(cpu).map_err(|e| plug_error(&e))
}

/// Takes `cpu` down.
pub fn down(cpu: u32) -> Result<(), PlugError> {
    let id = CpuId::new(cpu as usize).ok_or(PlugError::NoSuchCpu)?;
    if cpu == CONTROL_CPU {
        return Err(PlugError::Busy);
    }
    hotplug::cpu_down(id).map_err(|e| plug_error(&e))
}

fn plug_error(error: &HotplugError) -> PlugError {
    match error {
        HotplugError::NotPresent => PlugError::NoSuchCpu,
        HotplugError::AlreadyOnline | HotplugError::NotOnline => PlugError::AlreadyThere,
        HotplugError::NoMemory => PlugError::NoMemory,
        HotplugError::TimedOut => PlugError::TimedOut,
        HotplugError::Step { .. } => PlugError::StepFailed,
        _ => PlugError::Busy,
    }
}

/// This machine's [`CpuOps`].
pub struct Machine;

impl CpuOps for Machine {
    fn start(&self, cpu: CpuId) -> Result<(), StartError> {
        let n = cpu.index() as u32;
        let (idle, hotplug) = threads_of(n).ok_or(StartError("no memory for its threads"))?;
        // SAFETY: the CPU does not run and its hotplug thread was taken off the queue when it died.
        unsafe {
            idle.reset();
            hotplug.reset();
            tables::set_start(n, idle.stack_top() as u64, area::offset(cpu) as u64);
        }
        set_state(n, CpuState::Starting);
        doorbell::ring(Doorbell::StartCpu, u64::from(n));
        if shared::boot().boot_mode == BootMode::Sipi as u32 {
            let _masked = irq::disable();
            lapic::send_init_sipi(n, TRAMPOLINE);
        }
        Ok(())
    }

    fn reap(&self, cpu: CpuId) {
        // The host lets a start wait until the vCPU has said its last word, and neither stack nor
        // area of a CPU is ever given back: nothing more to wait for.
        set_state(cpu.index() as u32, CpuState::Offline);
    }

    fn arrival_timeout_ns(&self) -> u64 {
        ARRIVAL_TIMEOUT_NS
    }

    /// No limit: on a crowded host a CPU waits for its turn, and one that hangs is for the host to find.
    fn answer_timeout_ns(&self) -> u64 {
        u64::MAX
    }

    fn wake(&self, cpu: CpuId) {
        // The interrupt makes the scheduler look, and the hotplug thread goes first.
        ipi::send(cpu.index() as u32);
    }
}

/// Registers what this machine does at a CPU's coming and going.
pub fn register_hotplug_steps() {
    hotplug::register(
        Section::Starting,
        "lapic:starting",
        Some(|_| {
            lapic::enable();
            tick::arm();
            Ok(())
        }),
        Some(|_| lapic::disable()),
    )
    .expect("a place for the machine's hotplug steps");
    // Nothing is done but that it is done by turns: what a plug that fails, before this step or after
    // it, takes back and does again.
    hotplug::register(
        Section::Online,
        "guest:online",
        Some(|cpu| {
            assert!(!ONLINE.xchg(true), "CPU {} is brought online twice", cpu.index());
            Ok(())
        }),
        Some(|cpu| {
            assert!(ONLINE.xchg(false), "CPU {} is taken offline twice", cpu.index());
        }),
    )
    .expect("a place for the machine's hotplug steps");
}

percpu! {
    /// Whether the CPU's ONLINE step was done and not undone. Only that step's callbacks, on the CPU's
    /// own thread, touch it.
    static ONLINE: PerCpu<bool> = false;
}

/// The idle and the hotplug thread of `cpu`.
fn threads_of(cpu: u32) -> Option<(&'static Thread, &'static Thread)> {
    // SAFETY: only the control thread and, before it, the boot CPU come here.
    let (idle, hotplug) = unsafe {
        (&mut (*THREADS.idle.get())[cpu as usize], &mut (*THREADS.hotplug.get())[cpu as usize])
    };
    if idle.is_none() {
        *idle = Thread::new(|_| sched::idle(), cpu as usize, u32::MAX, Some(cpu));
    }
    if hotplug.is_none() {
        *hotplug = Thread::new(run_hotplug_thread, cpu as usize, u32::MAX, Some(cpu));
    }
    Some(((*idle)?, (*hotplug)?))
}

/// Makes the boot CPU's current flow its idle thread and gives it a hotplug thread.
///
/// # Safety
///
/// Called once, on the boot CPU, before any other CPU runs; the caller goes on with `sched::idle`.
pub unsafe fn adopt_boot_cpu(cpu: u32) {
    let (idle, hotplug) = threads_of(cpu).expect("no memory for the boot CPU's threads");
    // SAFETY: see the contract.
    unsafe { sched::adopt_idle(cpu, idle) };
    hotplug.make_runnable();
    set_state(cpu, CpuState::Online);
    shared::control(cpu).onlines.fetch_add(1, Ordering::Relaxed);
}

/// The first Rust function of an AP, on its idle thread's stack.
pub extern "C" fn ap_main(cpu: u32) -> ! {
    // What an earlier life left behind. Interrupts stay masked until the CPU is online.
    IRQ_MASKED.write(1);
    IRQ_PENDING.write(0);
    preempt::clear_need_resched();
    ipi::enter(cpu);
    let id = CpuId::new(cpu as usize).expect("started as a CPU that is not possible");
    // SAFETY: interrupts are masked and GS holds this CPU's offset, by its start state.
    let (idle, hotplug) = match unsafe { hotplug::arrive(id) } {
        // SAFETY: the control thread made both before it started this CPU, and waits for it.
        Ok(()) => threads_of(cpu).expect("made before the CPU was started"),
        Err(_) => {
            ipi::leave(cpu);
            park(cpu)
        }
    };
    ipi::answer();
    // SAFETY: this is that CPU, and it goes on as its idle thread.
    unsafe { sched::adopt_idle(cpu, idle) };
    // Earlier than the hotplug thread, for which who brought the CPU up waits.
    workload::on_cpu_up();
    hotplug.make_runnable();
    set_state(cpu, CpuState::Online);
    shared::control(cpu).onlines.fetch_add(1, Ordering::Relaxed);
    // SAFETY: a CPU begins masked once.
    unsafe { arch::irq::unmask() };
    sched::idle()
}

/// A CPU's own hotplug thread: runs its ONLINE steps, and takes it down.
fn run_hotplug_thread(cpu: usize) {
    let id = CpuId::new(cpu).expect("a CPU that runs is possible");
    loop {
        match hotplug::serve(id) {
            Serve::Idle => {
                sched::wait_until(|cpu| CpuId::new(cpu as usize).is_some_and(hotplug::has_work))
            }
            Serve::Worked => {}
            Serve::Die => die(id),
        }
    }
}

/// Takes this CPU down; it executes nothing afterwards.
fn die(cpu: CpuId) -> ! {
    let n = cpu.index() as u32;
    set_state(n, CpuState::Dying);
    arch::irq::mask();
    // SAFETY: interrupts are masked, this is that CPU and the state machine asked for it.
    unsafe { hotplug::die(cpu) };
    set_state(n, CpuState::Dead);
    ipi::leave(n);
    // SAFETY: nothing follows but the parking.
    unsafe { hotplug::dead(cpu) };
    park(n)
}

fn park(_cpu: u32) -> ! {
    doorbell::ring_last(Doorbell::Dead, 0)
}

fn set_state(cpu: u32, state: CpuState) {
    shared::control(cpu).state.store(state as u32, Ordering::Release);
    let args = [u64::from(cpu), state as u64, 0, 0, 0];
    events::emit(EventKind::CpuChanged, args);
}
