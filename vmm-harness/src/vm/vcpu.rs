//! A vCPU: its thread, its run loop, how it is kicked, parked and reused.
//!
//! The thread owns the file descriptor. It is *parked* (waits for an order) or *runs* (is in the
//! `KVM_RUN` loop). An order reaches a running vCPU by a kick: the order is queued, then
//! `immediate_exit` is set, then a signal ends a `KVM_RUN` that already began. The run loop clears
//! `immediate_exit` before it looks at the queue, so no order is lost whichever comes first
//! (Firecracker's protocol).

use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Once};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::KVM_MP_STATE_UNINITIALIZED;
use kvm_ioctls::{VcpuExit, VcpuFd};
use percpu_guest::abi::{self, Doorbell};

use super::boot::Entry;
use super::machine::Shared;
use super::state::{CpuState, set_mp_state};
use crate::error::Error;

/// How long each turn on a host CPU may be before another vCPU gets one. Short turns keep the wait
/// for a lock holder or a hotplug step short where vCPUs outnumber host CPUs.
const SLICE: Duration = Duration::from_micros(300);

/// What happened in a VM, to be told to whoever runs it.
#[derive(Debug)]
pub struct VmEvent {
    /// vCPU it happened on.
    pub cpu: u32,
    /// When.
    pub at: Instant,
    /// What.
    pub kind: VmEventKind,
}

/// The kinds of [`VmEvent`].
#[derive(Debug)]
pub enum VmEventKind {
    /// The guest has executed its first instructions.
    Hello,
    /// The guest says that something worth a look is in its event rings.
    Event,
    /// The vCPU is parked because the guest said that the CPU is dead.
    Parked,
    /// The guest is done.
    Exit,
    /// The vCPU cannot go on.
    Crashed(Crash),
}

/// Why a vCPU cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Crash {
    /// The guest kernel panicked; the address of its [`abi::PanicRecord`].
    Panic(u64),
    /// An exception nobody expected; the address of its [`abi::ExceptionFrame`].
    Exception(u64),
    /// An exception while a double fault was delivered.
    TripleFault,
    /// KVM gave up: its suberror.
    KvmInternal(u32),
    /// A load or store where there is neither memory nor a device.
    StrayAccess {
        /// Guest-physical address.
        addr: u64,
        /// A store.
        write: bool,
    },
    /// A doorbell value without meaning.
    BadDoorbell(u64),
    /// An exit that no guest of ours can cause.
    UnexpectedExit(String),
    /// An ioctl failed.
    Host(String),
    /// It did not leave the guest for so long, and was made to.
    Stuck(Duration),
}

/// General registers and those that say where the vCPU is.
#[derive(Debug, Clone, Copy)]
pub struct Registers {
    /// General registers.
    pub regs: kvm_bindings::kvm_regs,
    /// Control register 2: the last faulting address.
    pub cr2: u64,
    /// GS base.
    pub gs_base: u64,
    /// Current privilege level.
    pub cpl: u8,
}

/// What a vCPU's thread is told.
enum Order {
    /// Begin at an entry, from the state of a new vCPU.
    Start(Entry),
    /// Wait for INIT and SIPI, from the state of a new vCPU; say when they may be sent.
    AwaitSipi(SyncSender<()>),
    /// Report the registers and go on.
    Report(SyncSender<Registers>),
    /// Stop running; stay.
    Park,
    /// End the thread.
    End,
}

/// The handle of a vCPU. Dropping it ends the thread and the vCPU.
pub(super) struct VcpuHandle {
    orders: Sender<Order>,
    immediate_exit: Arc<ImmediateExit>,
    /// The thread leaves its file descriptor behind, so that `immediate_exit` stays mapped until it
    /// is joined.
    thread: Option<JoinHandle<VcpuFd>>,
}

/// The address of `immediate_exit` in a vCPU's shared page.
struct ImmediateExit(*mut u8);

// SAFETY: the byte is reached only by atomic operations here and by the kernel, which reads it at
// the start of KVM_RUN.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    fn set(&self, on: bool) {
        // SAFETY: the page is mapped as long as the `VcpuFd` lives. The thread that owns it hands it
        // to whoever joins, which the last user of this does, in `VcpuHandle::drop`; the thread
        // itself uses this only while it runs.
        unsafe { AtomicU8::from_ptr(self.0) }.store(u8::from(on), Ordering::Release);
    }
}

impl VcpuHandle {
    /// Makes the thread of a new vCPU; it is parked.
    pub(super) fn spawn(cpu: u32, mut fd: VcpuFd, vm: Arc<Shared>) -> Result<Self, Error> {
        install_kick_handler()?;
        let pristine = CpuState::save(&fd)?;
        let immediate_exit = Arc::new(ImmediateExit(&raw mut fd.get_kvm_run().immediate_exit));
        let (orders, inbox) = mpsc::channel();
        let vcpu = Vcpu {
            cpu,
            fd,
            pristine,
            vm,
            inbox,
            immediate_exit: immediate_exit.clone(),
            next: None,
        };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{cpu}"))
            .spawn(move || vcpu.main())
            .map_err(Error::thread)?;
        Ok(Self { orders, immediate_exit, thread: Some(thread) })
    }

    pub(super) fn start(&self, entry: Entry) {
        self.send(Order::Start(entry));
    }

    /// Makes the vCPU wait for INIT and SIPI; what is returned answers once they may be sent.
    pub(super) fn await_sipi(&self) -> Receiver<()> {
        let (tx, rx) = mpsc::sync_channel(1);
        self.send(Order::AwaitSipi(tx));
        rx
    }

    pub(super) fn park(&self) {
        self.send(Order::Park);
    }

    /// Asks for the registers; the answer may be fetched later, so that many vCPUs can be asked at
    /// once.
    pub(super) fn report(&self) -> Receiver<Registers> {
        let (tx, rx) = mpsc::sync_channel(1);
        self.send(Order::Report(tx));
        rx
    }

    fn send(&self, order: Order) {
        // A thread that has ended can take no order, and none is owed one.
        let _ = self.orders.send(order);
        self.immediate_exit.set(true);
        if let Some(thread) = &self.thread {
            // SAFETY: the thread is not joined yet, so its id is valid; the signal has a handler.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
        }
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        self.send(Order::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The signal that ends a `KVM_RUN`.
pub(super) fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Lets that signal do nothing else.
pub(super) fn install_kick_handler() -> Result<(), Error> {
    static ONCE: Once = Once::new();
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = vmm_sys_util::signal::register_signal_handler(kick_signal(), nothing)
            .map_err(|e| Error::kvm("sigaction")(kvm_ioctls::Error::new(e.errno())));
    });
    result
}

/// Asks the host's scheduler for short turns. Where it knows no such thing, turns stay long.
fn ask_for_short_turns() {
    #[repr(C)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    // SAFETY: getpriority touches no memory.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: 0,
        flags: 0,
        nice,
        priority: 0,
        runtime: SLICE.as_nanos() as u64,
        deadline: 0,
        period: 0,
    };
    // SAFETY: sched_setattr reads `size` bytes at `attr`, which lives across the call.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
}

/// The thread's side.
struct Vcpu {
    cpu: u32,
    fd: VcpuFd,
    pristine: CpuState,
    vm: Arc<Shared>,
    inbox: Receiver<Order>,
    immediate_exit: Arc<ImmediateExit>,
    /// A start that came while the CPU's life before was not quite over.
    next: Option<Order>,
}

/// Why the run loop ended.
enum Stop {
    Parked,
    End,
}

impl Vcpu {
    fn main(mut self) -> VcpuFd {
        ask_for_short_turns();
        while let Some(order) = self.next.take().or_else(|| self.inbox.recv().ok()) {
            let prepared = match order {
                Order::Start(entry) => self.pristine.enter(&self.fd, &entry),
                Order::AwaitSipi(ready) => {
                    let waiting = self.enter_wait();
                    // Whoever asked may have given up.
                    let _ = ready.try_send(());
                    waiting
                }
                Order::Report(reply) => {
                    self.reply(&reply);
                    continue;
                }
                Order::Park => continue,
                Order::End => break,
            };
            let stop = match prepared {
                Ok(()) => self.run(),
                Err(e) => {
                    self.crash(Crash::Host(e.to_string()));
                    Stop::Parked
                }
            };
            if let Stop::End = stop {
                break;
            }
        }
        self.fd
    }

    fn enter_wait(&self) -> Result<(), Error> {
        self.pristine.restore(&self.fd)?;
        set_mp_state(&self.fd, KVM_MP_STATE_UNINITIALIZED)
    }

    fn run(&mut self) -> Stop {
        loop {
            self.immediate_exit.set(false);
            while let Ok(order) = self.inbox.try_recv() {
                match order {
                    Order::Report(reply) => self.reply(&reply),
                    Order::Park => return Stop::Parked,
                    Order::End => return Stop::End,
                    // The guest brings the CPU up again before the vCPU has said its last word.
                    order @ (Order::Start(_) | Order::AwaitSipi(_)) => self.next = Some(order),
                }
            }
            let crash = match run_once(&mut self.fd) {
                Exit::Doorbell(value) => match self.doorbell(value) {
                    Ok(true) => continue,
                    Ok(false) => {
                        self.complete_exit();
                        return Stop::Parked;
                    }
                    Err(crash) => crash,
                },
                Exit::Nothing => continue,
                Exit::Crash(crash) => crash,
            };
            self.crash(crash);
            return Stop::Parked;
        }
    }

    /// Does what a doorbell asks; false ends the run.
    fn doorbell(&self, value: u64) -> Result<bool, Crash> {
        let argument = value >> 8;
        match Doorbell::from_code(value as u8) {
            Some(Doorbell::Hello) => self.tell(VmEventKind::Hello),
            Some(Doorbell::Event) => self.tell(VmEventKind::Event),
            Some(Doorbell::Yield) => std::thread::yield_now(),
            Some(Doorbell::StartCpu) => {
                let cpu = u32::try_from(argument).map_err(|_| Crash::BadDoorbell(value))?;
                match self.vm.start_cpu(cpu) {
                    Ok(()) => {}
                    Err(e) => return Err(Crash::Host(format!("CPU {cpu} cannot be started: {e}"))),
                }
            }
            Some(Doorbell::Dead) => {
                self.tell(VmEventKind::Parked);
                return Ok(false);
            }
            Some(Doorbell::Exit) => {
                self.tell(VmEventKind::Exit);
                return Ok(false);
            }
            Some(Doorbell::Exception) => return Err(Crash::Exception(argument)),
            Some(Doorbell::Panic) => return Err(Crash::Panic(argument)),
            // The others are of a guest whose CPUs run one at a time.
            _ => return Err(Crash::BadDoorbell(value)),
        }
        Ok(true)
    }

    /// An MMIO exit is finished by the next `KVM_RUN`; a parked vCPU must not owe one.
    fn complete_exit(&mut self) {
        self.immediate_exit.set(true);
        let _ = self.fd.run();
        self.immediate_exit.set(false);
    }

    fn crash(&mut self, crash: Crash) {
        self.tell(VmEventKind::Crashed(crash));
    }

    fn tell(&self, kind: VmEventKind) {
        // Nobody listens any more when the run is over.
        let _ = self.vm.events.send(VmEvent { cpu: self.cpu, at: Instant::now(), kind });
    }

    fn reply(&self, reply: &SyncSender<Registers>) {
        if let Some(registers) = registers(&self.fd) {
            let _ = reply.try_send(registers);
        }
    }
}

/// Why a vCPU has left the guest.
pub(super) enum Exit {
    /// A store to the doorbell page.
    Doorbell(u64),
    /// No reason of its own: it may go on.
    Nothing,
    /// It cannot go on.
    Crash(Crash),
}

/// Runs the vCPU until it leaves the guest.
pub(super) fn run_once(fd: &mut VcpuFd) -> Exit {
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
            // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, so this member is the one KVM
            // filled.
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

/// The registers of a vCPU that does not run.
pub(super) fn registers(fd: &VcpuFd) -> Option<Registers> {
    let (regs, sregs) = (fd.get_regs().ok()?, fd.get_sregs().ok()?);
    Some(Registers { regs, cr2: sregs.cr2, gs_base: sregs.gs.base, cpl: sregs.cs.dpl })
}
