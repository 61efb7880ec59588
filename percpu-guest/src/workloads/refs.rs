//! References by `percpu_ref`: all threads take and give back, while one kills the refs, brings them
//! back and switches their modes, and CPUs come and go.
//!
//! What each thread holds is in its ledger row: entered after it was taken, deleted before it is given
//! back. The host judges by that and by the ref's words:
//!
//! | rule | what it says |
//! |---|---|
//! | P1 | `release` is called exactly once in a life, from the kill to the revival |
//! | P2 | not while the ledger shows references |
//! | P3 | no `tryget_live` succeeds between the confirmation of a kill and the revival |
//! | P4 | at rest the shared count and the open words make up the references held, and the bias |
//! | P5 | at rest the words are closed in atomic mode; those that are open count like one CPU's |
//! | P6 | after the release there is nothing left in any of them |
//! | P7 | what a thread has looked up is not given back before it is done |
//!
//! P3 and P7 are checked here, the others by the host.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use percpu_core::cpu;
use percpu_core::refcount::{PercpuRef, RefFlags, RefGuard, Release};
use percpu_guest::abi::{EventKind, Holder, Invariant};

use super::slots;
use percpu_guest::kernel::arch::tsc;
use percpu_guest::kernel::events;
use percpu_guest::kernel::workload::{Worker, booked_by_all, checked};

mod control;
mod table;

use control::Control;

/// Refs all threads use.
const REFS: usize = 4;
/// References a thread holds at most on each.
const HELD: u32 = 6;
/// Operations of a round between two boundaries.
const ROUND: u32 = super::round(32);
/// One operation in so many is on the table.
const ON_TABLE: u64 = 3;
/// What is taken and given back at the price of one.
const MANY: u32 = 3;

/// What a thread can know of a ref without a reference to it.
struct Account {
    /// Number of its life.
    life: AtomicU64,
    /// How often it was released in this life, as far as the host has been told.
    releases: AtomicU32,
    /// Releases that are yet to be told, for want of room.
    untold: AtomicU32,
    /// What the ledger showed at the last of these.
    held: AtomicU64,
    /// Number of the kill that is confirmed; 0 while none is.
    confirmed: AtomicU64,
}

impl Account {
    const fn new() -> Self {
        Self {
            life: AtomicU64::new(0),
            releases: AtomicU32::new(0),
            untold: AtomicU32::new(0),
            held: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
        }
    }
}

static ACCOUNTS: [Account; REFS] = [const { Account::new() }; REFS];

/// What is done when ref `.0` is released.
struct Released(usize);

impl Release for Released {
    /// In any context.
    fn release(&self) {
        let account = &ACCOUNTS[self.0];
        let held = booked_by_all(slot(self.0)) as u64;
        if events::emit_now(EventKind::LifeEnded, announcement(self.0, held)) {
            account.releases.fetch_add(1, Ordering::Release);
        } else {
            account.held.store(held, Ordering::Relaxed);
            account.untold.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A ref that is made once, before any thread reads it.
struct Slot(UnsafeCell<Option<PercpuRef<Released>>>);
// SAFETY: written by `init`, which ends before the first thread of the workload starts.
unsafe impl Sync for Slot {}
static OBJECTS: [Slot; REFS] = [const { Slot(UnsafeCell::new(None)) }; REFS];

fn object(i: usize) -> &'static PercpuRef<Released> {
    // SAFETY: nobody writes any more; see `Sync` above.
    unsafe { (*OBJECTS[i].0.get()).as_ref() }.expect("made by init")
}

/// The ledger slot of ref `i`.
fn slot(i: usize) -> u32 {
    slots::REFS + i as u32
}

/// An event's arguments about the life of ref `i`.
fn announcement(i: usize, amount: u64) -> [u64; 5] {
    let life = ACCOUNTS[i].life.load(Ordering::Relaxed);
    [Holder::Ref as u64, object(i).view_address() as u64, amount, life, 0]
}

fn tell(kind: EventKind, i: usize) {
    events::emit(kind, announcement(i, slot(i).into()));
}

/// A life begins.
fn begin(i: usize) {
    ACCOUNTS[i].life.fetch_add(1, Ordering::Relaxed);
    tell(EventKind::LifeBegun, i);
}

/// Makes the refs, in either mode.
fn init() {
    for (i, place) in OBJECTS.iter().enumerate() {
        let mode = if i == 0 { RefFlags::INIT_ATOMIC } else { RefFlags::NONE };
        let made = PercpuRef::new(Released(i), mode | RefFlags::ALLOW_REINIT);
        // SAFETY: no thread of the workload runs yet.
        unsafe { *place.0.get() = Some(made.expect("memory for a ref")) };
        begin(i);
    }
}

#[percpu_guest::workload(name = "refs", init = init, interrupt = on_interrupt)]
fn run(mut worker: Worker) {
    let mut control = (worker.index() == 0).then(Control::new);
    let mut held = [0u32; REFS];
    loop {
        for _ in 0..ROUND {
            if worker.rng.one_in(ON_TABLE) {
                table::work(&mut worker);
                continue;
            }
            let i = worker.rng.below(REFS as u64) as usize;
            // Of one that is dying mostly less: it is to be released some day.
            let take = worker.rng.one_in(if object(i).is_dying() { 16 } else { 2 });
            if !take {
                check_confirmed(i);
            }
            if take && held[i] + MANY <= HELD {
                let taken = take_some(&mut worker, i, held[i]);
                held[i] += taken;
                worker.book(slot(i), taken.into());
            } else if held[i] > 0 {
                let given = if worker.rng.one_in(4) { held[i] } else { 1 };
                held[i] -= given;
                give_back(&worker, i, given);
            }
        }
        if let Some(control) = &mut control {
            control.work(&mut worker);
        }
        if !worker.boundary() {
            break;
        }
    }
    for (i, held) in held.into_iter().enumerate().filter(|(_, held)| *held > 0) {
        give_back(&worker, i, held);
    }
}

/// Takes references to ref `i`, of which the thread has some; how many.
fn take_some(worker: &mut Worker, i: usize, held: u32) -> u32 {
    let object = object(i);
    match worker.rng.below(4) {
        0 => object.tryget().map_or(0, |reference| kept(reference, 1)),
        1 => object.tryget_live().map_or(0, |reference| kept(reference, 1)),
        2 if object.tryget_many(MANY) => MANY,
        // Whoever has one may have more.
        _ if held > 0 => kept(object.get(), 1),
        _ => 0,
    }
}

/// Keeps a reference, to be given back by [`give_back`].
fn kept(reference: RefGuard<'_, Released>, amount: u32) -> u32 {
    reference.into_raw();
    amount
}

/// Gives references back, of which the ledger knows no more by then: so it never shows one that is
/// gone.
fn give_back(worker: &Worker, i: usize, amount: u32) {
    worker.book(slot(i), -i64::from(amount));
    // SAFETY: the thread has as many; refs are never dropped.
    unsafe {
        match amount {
            1 => object(i).put(),
            _ => object(i).put_many(amount),
        }
    }
    tell_untold(i);
}

/// Tells the host of releases for which there was no room. Whoever may have given the last reference
/// back comes here: a thread, which can wait.
fn tell_untold(i: usize) {
    let account = &ACCOUNTS[i];
    if account.untold.load(Ordering::Relaxed) != 0 {
        for _ in 0..account.untold.swap(0, Ordering::Relaxed) {
            let held = account.held.load(Ordering::Relaxed);
            events::emit(EventKind::LifeEnded, announcement(i, held));
            account.releases.fetch_add(1, Ordering::Release);
        }
    }
}

/// P3: as long as a kill stands confirmed no `tryget_live` succeeds.
fn check_confirmed(i: usize) {
    let confirmed = &ACCOUNTS[i].confirmed;
    let before = confirmed.load(Ordering::SeqCst);
    let taken = object(i).tryget_live().is_some();
    tell_untold(i);
    // Taken back before the ref is revived, so a kill that still stands stood all the while.
    if before != 0 && confirmed.load(Ordering::SeqCst) == before {
        checked(Invariant::P3);
        if taken {
            let address = object(i).view_address() as u64;
            events::violation(Invariant::P3, cpu::this_cpu_raw(), address, 1, 0);
        }
    }
}

/// The timer interrupt's share: a reference that is given back at once, perhaps as the last one.
fn on_interrupt() {
    let i = tsc::now() as usize % REFS;
    // It may have to tell of a release, and cannot wait.
    if events::has_room() {
        drop(object(i).tryget());
    }
}
