//! Workloads: what the kernel does all day while CPUs come and go.
//!
//! An image declares them by [`#[workload]`](crate::workload); the host lists them from the section
//! `guest_workloads` and says which ones run. Each has as many threads as the host says. A thread works
//! in operations; what it adds to a conserved object it also writes to its own ledger row, which no
//! per-CPU code touches. Between operations it stands at a *boundary*: there it counts the operation for
//! the CPU it is on, gives the CPU away after its turn, and waits as long as the host wants quiet.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use percpu_core::{cpu, preempt};

use crate::abi::{
    Doorbell, EventKind, Fault, Invariant, LEDGER_THREADS, MOST_WORKLOADS, SumKind, WorkloadEntry,
};
use crate::kernel::arch::{self, doorbell, tsc};
use crate::kernel::rng::Rng;
use crate::kernel::{events, faults, sched, section, shared};

static STARTED: AtomicBool = AtomicBool::new(false);
/// Threads of all workloads, which have the first rows of the ledger.
static THREADS: AtomicU32 = AtomicU32::new(0);

/// A [`WorkloadEntry`] with pointers, which the linker fills in.
#[doc(hidden)]
#[repr(C)]
pub struct Entry {
    /// The name's bytes.
    pub name: *const u8,
    /// How many.
    pub name_len: usize,
    /// Before the first thread starts.
    pub init: fn(),
    /// The life of a thread.
    pub run: fn(Worker),
    /// Each time the timer fires.
    pub interrupt: fn(),
    /// When a CPU has come up, interrupts masked, before it takes threads.
    pub cpu_up: fn(),
    /// Bits of [`WorkloadEntry::flags`].
    pub flags: u64,
}
// SAFETY: never written; the pointers are to statics and functions.
unsafe impl Sync for Entry {}

const _: () = assert!(size_of::<Entry>() == size_of::<WorkloadEntry>());

section::table! {
    /// All workloads of the image, in the order in which the linker has put them: that of their bits.
    fn entries() -> &'static [Entry] = "guest_workloads", __start_guest_workloads, __stop_guest_workloads, guest_workloads_anchor
}

/// For what a workload has no function of its own.
#[doc(hidden)]
pub fn nothing() {}

/// What [`#[workload]`](crate::workload) can stand before: `fn(&mut Worker)`, an operation that is done
/// again and again, or `fn(Worker)`, the whole life of a thread, which calls [`Worker::boundary`] itself.
#[doc(hidden)]
pub trait Body<Form> {
    /// Lives a thread's life.
    fn run(self, worker: Worker);
}

#[doc(hidden)]
pub struct Operation;
#[doc(hidden)]
pub struct Life;

impl<F: FnMut(&mut Worker)> Body<Operation> for F {
    fn run(mut self, mut worker: Worker) {
        loop {
            self(&mut worker);
            if !worker.boundary() {
                return;
            }
        }
    }
}

impl<F: FnOnce(Worker)> Body<Life> for F {
    fn run(self, worker: Worker) {
        self(worker);
    }
}

/// A thread of a workload, as the workload sees it: random choices, the thread's account.
pub struct Worker {
    /// Random choices, reproducible from the run's seed.
    pub rng: Rng,
    /// The workload's number.
    workload: usize,
    row: u32,
    index: u32,
    /// When the thread last came back from a boundary where it gave the CPU away.
    since: u64,
}

/// How long a thread works before it gives its CPU away by itself: short, since that is when
/// threads migrate and waiting ones get their turn, and long against the switch.
const TURN_US: u64 = 50;

impl Worker {
    /// Which thread of its workload it is, from 0.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its row in the ledger.
    pub fn row(&self) -> u32 {
        self.row
    }

    /// Enters an amount in the thread's ledger row: what the host holds against what it finds.
    pub fn book(&self, slot: u32, amount: i64) {
        let cell = &shared::ledger(self.row).slots[slot as usize];
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// What the thread's row says.
    pub fn booked(&self, slot: u32) -> i64 {
        shared::ledger(self.row).slots[slot as usize].load(Ordering::Relaxed)
    }

    /// Enters an amount in an account of the thread's.
    pub fn book_account(&self, account: u32, amount: i64) {
        let cell = shared::account(account);
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// What an account says.
    pub fn account(&self, account: u32) -> i64 {
        shared::account(account).load(Ordering::Relaxed)
    }

    /// G1: what an operation has turned off is on again at its end.
    fn check_no_guard(&self) {
        checked(Invariant::G1);
        let left = u64::from(preempt::count()) + u64::from(arch::irq::masked());
        if left != 0 {
            let here = cpu::this_cpu_raw();
            events::violation(Invariant::G1, here, self.row.into(), left, 0);
        }
    }

    /// Ends an operation; false if the thread is to end. To be called with nothing under way that
    /// others would wait for: the host may want quiet now.
    pub fn boundary(&mut self) -> bool {
        self.check_no_guard();
        let header = shared::header();
        shared::this_control().ops[self.workload].fetch_add(1, Ordering::Relaxed);
        if header.stopping.load(Ordering::Relaxed) != 0 || !may_go_on() {
            return false;
        }
        let turn = TURN_US * u64::from(shared::boot().tsc_mhz);
        if header.quiesce.load(Ordering::Relaxed) != 0 {
            rest();
        } else if tsc::now().wrapping_sub(self.since) > turn {
            sched::yield_now();
        } else {
            return true;
        }
        self.since = tsc::now();
        true
    }
}

/// Counts an operation against those that the host asked for, of all threads together; false if
/// there is none left.
fn may_go_on() -> bool {
    let wanted = shared::boot().operations;
    wanted == 0 || shared::header().operations_done.fetch_add(1, Ordering::Relaxed) + 1 < wanted
}

/// Waits at a boundary until the quiet is over.
fn rest() {
    let header = shared::header();
    // The host sets `quiesce` and then waits for `busy` to reach 0: a thread that goes on first
    // says so and then looks again, so one of the two sees the other.
    loop {
        header.busy.fetch_sub(1, Ordering::SeqCst);
        // Those that still work have the CPUs to themselves.
        sched::wait_until(|_| shared::header().quiesce.load(Ordering::SeqCst) == 0);
        header.busy.fetch_add(1, Ordering::SeqCst);
        if header.quiesce.load(Ordering::SeqCst) == 0 {
            return;
        }
    }
}

/// What a CPU does when it has come up, interrupts masked, before it takes threads.
pub(crate) fn on_cpu_up() {
    if STARTED.load(Ordering::Acquire) {
        chosen().for_each(|(_, entry)| (entry.cpu_up)());
    }
}

/// Work in interrupt context, each time the timer fires.
pub(crate) fn on_interrupt() {
    let header = shared::header();
    if !STARTED.load(Ordering::Acquire) {
        return;
    }
    header.busy.fetch_add(1, Ordering::SeqCst);
    if header.quiesce.load(Ordering::SeqCst) == 0 {
        chosen().for_each(|(_, entry)| (entry.interrupt)());
    }
    header.busy.fetch_sub(1, Ordering::SeqCst);
}

/// Enters an amount in the ledger row of this CPU's interrupts. Interrupts are masked.
pub fn book_interrupt(slot: u32, amount: i64) {
    let cell = &shared::this_control().irq_ledger[slot as usize];
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// What all threads have entered in a slot.
pub fn booked_by_all(slot: u32) -> i64 {
    (0..THREADS.load(Ordering::Relaxed)).fold(0, |sum: i64, row| {
        let amount = shared::ledger(row).slots[slot as usize].load(Ordering::Relaxed);
        sum.wrapping_add(amount)
    })
}

/// Counts that the guest has held something against an invariant by itself.
pub fn checked(invariant: Invariant) {
    events::checked(invariant, 1);
}

/// Tells the host of a sum over all CPUs that the ledger accounts for (S1): of the copies of the per-CPU
/// variable or area at `pointer`, `kind` wide each.
pub fn announce_sum(kind: SumKind, pointer: usize, slot: u32, initial: i64) {
    events::emit(
        EventKind::SumInit,
        [kind as u64, pointer as u64, u64::from(slot), initial as u64, 0],
    );
}

/// The workloads that the host asked for, with their numbers.
fn chosen() -> impl Iterator<Item = (usize, &'static Entry)> {
    let chosen = shared::boot().workloads;
    entries().iter().enumerate().filter(move |(number, _)| chosen & 1 << number != 0)
}

/// Starts all that the host asked for.
pub(crate) fn start() {
    let boot = shared::boot();
    let header = shared::header();
    let declared = entries().len();
    assert!(declared <= MOST_WORKLOADS, "{declared} workloads, {MOST_WORKLOADS} at most");
    chosen().for_each(|(_, entry)| (entry.init)());
    let each = boot.threads.max(1);
    let threads = each * chosen().count() as u32;
    assert!(threads as usize <= LEDGER_THREADS, "{threads} threads, {LEDGER_THREADS} ledger rows");
    header.threads.store(threads, Ordering::Relaxed);
    THREADS.store(threads, Ordering::Relaxed);
    // The balance thread may be about already.
    header.busy.fetch_add(threads, Ordering::SeqCst);
    STARTED.store(true, Ordering::Release);
    // Kinds in turn, so that any few threads in the queue are of all kinds.
    for row in 0..threads {
        sched::spawn(run_worker, row as usize, row);
    }
    if let Some(fault) = Fault::from_code(boot.fault).filter(|&fault| fault != Fault::None) {
        sched::spawn(|fault| faults::misbehave(fault as u32), fault as usize, u32::MAX);
    }
}

fn run_worker(row: usize) {
    let kinds = chosen().count();
    let (workload, entry) = chosen().nth(row % kinds).expect("a thread of a chosen workload");
    let row = row as u32;
    (entry.run)(Worker {
        workload,
        row,
        index: row / kinds as u32,
        rng: Rng::new(shared::boot().seed, u64::from(row)),
        since: tsc::now(),
    });
    shared::header().busy.fetch_sub(1, Ordering::SeqCst);
    let last = shared::header().threads.fetch_sub(1, Ordering::SeqCst) == 1;
    // A host that runs CPUs one at a time does not look by itself.
    if cfg!(percpu_steps) && last {
        doorbell::ring(Doorbell::Event, 0);
    }
}
