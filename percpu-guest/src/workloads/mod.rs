//! Workloads: what the kernel does all day while CPUs come and go.
//!
//! Each workload has as many threads as the host says. A thread works in operations; what
//! it adds to a conserved object it also writes to its own ledger row, which no per-CPU code
//! touches. Between operations it stands at a *boundary*: there it counts the operation for the
//! CPU it is on, gives the CPU away after its turn, and waits as long as the host wants quiet.

mod alloc;
mod areas;
mod counter;
mod exchange;
mod mount;
mod refs;
mod statics;
mod trace;

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use percpu_core::{cpu, preempt};
use percpu_guest::abi::{
    Doorbell, EventKind, Fault, Invariant, LEDGER_SLOTS, LEDGER_THREADS, SumKind, Workload,
};

use crate::arch::{doorbell, tsc};
use crate::rng::Rng;
use crate::{arch, events, sched, shared, tests};

pub use mount::Mount;

static STARTED: AtomicBool = AtomicBool::new(false);
/// Threads of all workloads, which have the first rows of the ledger.
static THREADS: AtomicU32 = AtomicU32::new(0);

/// Ledger slots: whose is which.
mod slots {
    pub const STATICS: u32 = 0;
    pub const COUNTERS: u32 = 40;
    pub const STILL_COUNTERS: u32 = 56;
    pub const OWN_COUNTERS: u32 = 64;
    pub const MOUNTS: u32 = 80;
    pub const REFS: u32 = 96;
    pub const TREES: u32 = 104;
    pub const LAZY_COUNTERS: u32 = 112;
}
const _: () = assert!(slots::LAZY_COUNTERS + 16 <= LEDGER_SLOTS as u32);

/// A thread of a workload.
struct Worker {
    workload: Workload,
    row: u32,
    /// Which thread of its workload it is.
    index: u32,
    rng: Rng,
    /// When the thread last came back from a boundary where it gave the CPU away.
    since: u64,
}

/// Operations of a round between two boundaries, of which `usual` make sense where boundaries cost
/// something: one where each operation is to be a thing of its own.
const fn round(usual: u32) -> u32 {
    if cfg!(percpu_steps) { 1 } else { usual }
}

/// Which of `n` things to do: all of them, or, where each is to be done by itself, one.
fn parts(n: u64, random: u64) -> core::ops::Range<u64> {
    if cfg!(percpu_steps) {
        let one = random % n;
        one..one + 1
    } else {
        0..n
    }
}

/// How long a thread works before it gives its CPU away by itself: short, since that is when
/// threads migrate and waiting ones get their turn, and long against the switch.
const TURN_US: u64 = 50;

impl Worker {
    /// Enters an amount in the thread's ledger row.
    fn book(&self, slot: u32, amount: i64) {
        let cell = &shared::ledger(self.row).slots[slot as usize];
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// What the thread's row says.
    fn booked(&self, slot: u32) -> i64 {
        shared::ledger(self.row).slots[slot as usize].load(Ordering::Relaxed)
    }

    /// Enters an amount in an account of the thread's.
    fn book_account(&self, account: u32, amount: i64) {
        let cell = shared::account(account);
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// What an account says.
    fn account(&self, account: u32) -> i64 {
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

    /// Ends an operation; false if the thread is to end.
    fn boundary(&mut self) -> bool {
        self.check_no_guard();
        let header = shared::header();
        shared::this_control().ops[self.workload as usize].fetch_add(1, Ordering::Relaxed);
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
pub fn on_cpu_up() {
    counter::on_cpu_up();
}

/// Work in interrupt context, each time the timer fires.
pub fn on_interrupt() {
    let header = shared::header();
    if !STARTED.load(Ordering::Acquire) {
        return;
    }
    header.busy.fetch_add(1, Ordering::SeqCst);
    if header.quiesce.load(Ordering::SeqCst) == 0 {
        for workload in chosen() {
            match workload {
                Workload::Statics => statics::on_interrupt(),
                Workload::Counter => counter::on_interrupt(),
                Workload::Alloc => alloc::on_interrupt(),
                Workload::Refs => refs::on_interrupt(),
                Workload::Mount | Workload::Trace => {}
            }
        }
    }
    header.busy.fetch_sub(1, Ordering::SeqCst);
}

/// Enters an amount in the ledger row of this CPU's interrupts.
fn book_interrupt(slot: u32, amount: i64) {
    let cell = &shared::this_control().irq_ledger[slot as usize];
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// What all threads have entered in a slot.
fn booked_by_all(slot: u32) -> i64 {
    (0..THREADS.load(Ordering::Relaxed)).fold(0, |sum: i64, row| {
        let amount = shared::ledger(row).slots[slot as usize].load(Ordering::Relaxed);
        sum.wrapping_add(amount)
    })
}

/// Counts that the guest has held something against an invariant by itself.
fn checked(invariant: Invariant) {
    events::checked(invariant, 1);
}

/// The workloads that the host asked for.
fn chosen() -> impl Iterator<Item = Workload> {
    let chosen = shared::boot().workloads;
    Workload::ALL.iter().copied().filter(move |workload| chosen & workload.bit() != 0)
}

/// Starts all that the host asked for.
pub fn start() {
    let boot = shared::boot();
    let header = shared::header();
    for workload in chosen() {
        match workload {
            Workload::Statics => statics::init(),
            Workload::Counter => counter::init(),
            Workload::Alloc => {}
            Workload::Trace => trace::init(),
            Workload::Mount => mount::init(),
            Workload::Refs => refs::init(),
        }
    }
    let each = boot.threads.max(1);
    let mut row = 0;
    let threads = each * chosen().count() as u32;
    assert!(threads as usize <= LEDGER_THREADS, "{threads} threads, {LEDGER_THREADS} ledger rows");
    header.threads.store(threads, Ordering::Relaxed);
    THREADS.store(threads, Ordering::Relaxed);
    // The balance thread may be about already.
    header.busy.fetch_add(threads, Ordering::SeqCst);
    STARTED.store(true, Ordering::Release);
    // Kinds in turn, so that any few threads in the queue are of all kinds.
    for _ in 0..each {
        for workload in chosen() {
            let run = match workload {
                Workload::Statics => run_worker::<{ Workload::Statics as u32 }>,
                Workload::Counter => run_worker::<{ Workload::Counter as u32 }>,
                Workload::Alloc => run_worker::<{ Workload::Alloc as u32 }>,
                Workload::Mount => run_worker::<{ Workload::Mount as u32 }>,
                Workload::Trace => run_worker::<{ Workload::Trace as u32 }>,
                Workload::Refs => run_worker::<{ Workload::Refs as u32 }>,
            };
            sched::spawn(run, row as usize, row);
            row += 1;
        }
    }
    if let Some(fault) = Fault::from_code(boot.fault).filter(|&fault| fault != Fault::None) {
        sched::spawn(|fault| tests::faults::misbehave(fault as u32), fault as usize, u32::MAX);
    }
}

fn run_worker<const WORKLOAD: u32>(row: usize) {
    let row = row as u32;
    let worker = Worker {
        workload: const { Workload::from_code(WORKLOAD).expect("a workload") },
        row,
        index: row / chosen().count() as u32,
        rng: Rng::new(shared::boot().seed, u64::from(row)),
        since: tsc::now(),
    };
    match worker.workload {
        Workload::Statics => statics::run(worker),
        Workload::Counter => counter::run(worker),
        Workload::Alloc => alloc::run(worker),
        Workload::Mount => mount::run(worker),
        Workload::Trace => trace::run(worker),
        Workload::Refs => refs::run(worker),
    }
    shared::header().busy.fetch_sub(1, Ordering::SeqCst);
    let last = shared::header().threads.fetch_sub(1, Ordering::SeqCst) == 1;
    // A host that runs CPUs one at a time does not look by itself.
    if cfg!(percpu_steps) && last {
        doorbell::ring(Doorbell::Event, 0);
    }
}

/// Tells the host of a sum over all CPUs that the ledger accounts for.
fn announce_sum(kind: SumKind, pointer: usize, slot: u32, initial: i64) {
    events::emit(
        EventKind::SumInit,
        [kind as u64, pointer as u64, u64::from(slot), initial as u64, 0],
    );
}
