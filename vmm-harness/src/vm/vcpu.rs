//! A vCPU: its thread, its run loop, how it is kicked, parked and reused.
//!
//! The thread owns the engine's CPU. It is *parked* (waits for an order) or *runs* (is in the loop that
//! runs the CPU). An order reaches a running vCPU by a kick: the order is queued, then the CPU's
//! [`Stopper`] is set, then a signal ends a run that already began. The loop clears the stopper before it
//! looks at the queue, so no order is lost whichever comes first (Firecracker's protocol).

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use percpu_guest::abi::Doorbell;

use super::boot::Entry;
use super::engine::{Cpu, Exit, Registers, Stopper};
use super::kick;
use super::machine::Shared;
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
    /// The guest kernel panicked; the address of its [`PanicRecord`](percpu_guest::abi::PanicRecord).
    Panic(u64),
    /// An exception nobody expected; the address of its [`ExceptionFrame`](percpu_guest::abi::ExceptionFrame).
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

/// The handle of a vCPU. Dropping it ends the thread.
pub(super) struct VcpuHandle {
    orders: Sender<Order>,
    stopper: Arc<dyn Stopper>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuHandle {
    /// Makes the thread of a new vCPU; it is parked.
    pub(super) fn spawn(cpu: u32, engine: Box<dyn Cpu>, vm: Arc<Shared>) -> Result<Self, Error> {
        kick::install()?;
        let stopper = engine.stopper();
        let (orders, inbox) = mpsc::channel();
        let vcpu = Vcpu { cpu, engine, vm, inbox, stopper: stopper.clone(), next: None };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{cpu}"))
            .spawn(move || vcpu.main())
            .map_err(Error::thread)?;
        Ok(Self { orders, stopper, thread: Some(thread) })
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
        self.stopper.set(true);
        if let Some(thread) = &self.thread {
            // SAFETY: the thread is not joined yet, so its id is valid; the signal has a handler.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), kick::signal()) };
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

/// Asks the host's scheduler for short turns. Where it knows no such thing, turns stay long.
fn ask_for_short_turns() {
    // SAFETY: getpriority touches no memory.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let mut attr = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: SLICE.as_nanos() as u64,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: sched_setattr reads `size` bytes at `attr`, and writes its first field where it does not
    // take that size. `attr` lives across the call.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attr, 0) };
}

/// The thread's side.
struct Vcpu {
    cpu: u32,
    engine: Box<dyn Cpu>,
    vm: Arc<Shared>,
    inbox: Receiver<Order>,
    stopper: Arc<dyn Stopper>,
    /// A start that came while the CPU's life before was not quite over.
    next: Option<Order>,
}

/// Why the run loop ended.
enum Stop {
    Parked,
    End,
}

impl Vcpu {
    fn main(mut self) {
        ask_for_short_turns();
        while let Some(order) = self.next.take().or_else(|| self.inbox.recv().ok()) {
            let prepared = match order {
                Order::Start(entry) => self.engine.begin(&entry),
                Order::AwaitSipi(ready) => {
                    let waiting = self.engine.await_sipi();
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
    }

    fn run(&mut self) -> Stop {
        loop {
            self.stopper.set(false);
            while let Ok(order) = self.inbox.try_recv() {
                match order {
                    Order::Report(reply) => self.reply(&reply),
                    Order::Park => return Stop::Parked,
                    Order::End => return Stop::End,
                    // The guest brings the CPU up again before the vCPU has said its last word.
                    order @ (Order::Start(_) | Order::AwaitSipi(_)) => self.next = Some(order),
                }
            }
            let crash = match self.engine.run() {
                Exit::Doorbell(value) => match self.doorbell(value) {
                    Ok(true) => continue,
                    Ok(false) => {
                        // A parked vCPU must not owe half an instruction.
                        self.engine.finish();
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

    fn crash(&mut self, crash: Crash) {
        self.tell(VmEventKind::Crashed(crash));
    }

    fn tell(&self, kind: VmEventKind) {
        // Nobody listens any more when the run is over.
        let _ = self.vm.events.send(VmEvent { cpu: self.cpu, at: Instant::now(), kind });
    }

    fn reply(&self, reply: &SyncSender<Registers>) {
        if let Some(registers) = self.engine.registers() {
            let _ = reply.try_send(registers);
        }
    }
}
