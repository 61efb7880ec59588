//! A table in which threads look objects up that they have no reference to, and whose owner takes them
//! out and gives them back.
//!
//! Between finding an object and having a reference to it a thread is protected by what it says about
//! itself alone: that it is reading. A `percpu_ref` does not wait for such readers, not when it is
//! killed and not when it is released (regression R1); so whoever gives an object back does, after it is
//! out of the table. P7 says that he did.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use percpu_core::refcount::{PercpuRef, RefFlags, Release};
use percpu_core::view::RefView;
use percpu_core::{cpu, percpu, preempt};
use percpu_guest::abi::{AreaContent, EventKind, Invariant};

use percpu_guest::kernel::workload::{Worker, checked};
use percpu_guest::kernel::{events, sched};

/// Places in the table.
const TABLE: usize = if cfg!(percpu_steps) { 1 } else { 2 };
/// One operation in so many replaces an object, which may interrupt every CPU.
const REPLACEMENTS: u64 = if cfg!(percpu_steps) { 4 } else { 1 << 13 };
/// How long a reader takes, at most, to make use of what it has found.
const DAWDLE: u64 = 16;
/// Places for objects: one more, for the one that comes next.
const OBJECTS: usize = TABLE + 1;

percpu! {
    /// Threads of this CPU that look something up: one at most, since none is preempted meanwhile.
    static READING: PerCpu<u32> = 0;
}

/// Says that the last reference is gone.
struct Gone(usize);

impl Release for Gone {
    fn release(&self) {
        POOL[self.0].released.store(true, Ordering::Release);
    }
}

/// A place for an object.
struct Place {
    object: UnsafeCell<Option<PercpuRef<Gone>>>,
    released: AtomicBool,
    /// There is no object here, or it is about to go.
    given_back: AtomicBool,
}

// SAFETY: the object is written by its owner, before it is in the table and after the readers are gone
// who may have found it there.
unsafe impl Sync for Place {}

static POOL: [Place; OBJECTS] = [const {
    Place {
        object: UnsafeCell::new(None),
        released: AtomicBool::new(false),
        given_back: AtomicBool::new(true),
    }
}; OBJECTS];

/// The object's number in the pool, plus one; 0 where there is none.
static FOUND: [AtomicUsize; TABLE] = [const { AtomicUsize::new(0) }; TABLE];

/// Somebody replaces an object.
static OWNED: AtomicBool = AtomicBool::new(false);

/// Looks something up, or replaces it.
pub(super) fn work(worker: &mut Worker) {
    if worker.rng.one_in(REPLACEMENTS) {
        replace(worker);
    } else {
        look_up(worker);
    }
}

/// Looks something up, takes a reference, and gives it back.
fn look_up(worker: &mut Worker) {
    let which = worker.rng.below(TABLE as u64) as usize;
    let moment = worker.rng.below(DAWDLE);
    let pin = preempt::disable();
    READING.inc();
    // Either the owner sees that somebody is reading, or the reader that the object is gone.
    fence(Ordering::SeqCst);
    let found = FOUND[which].load(Ordering::Acquire).checked_sub(1);
    let reference = found.and_then(|n| {
        for _ in 0..moment {
            core::hint::spin_loop();
        }
        check_there(n);
        // SAFETY: the object was in the table while this CPU was reading, which it still is: its owner
        // waits.
        unsafe { (*POOL[n].object.get()).as_ref() }?.tryget_live()
    });
    READING.dec();
    drop(pin);
    if let Some(reference) = reference {
        found.into_iter().for_each(check_there);
        drop(reference);
    }
}

/// P7: what a reader has found is there.
fn check_there(n: usize) {
    checked(Invariant::P7);
    if POOL[n].given_back.load(Ordering::Acquire) {
        let object = POOL[n].object.get().addr() as u64;
        events::violation(Invariant::P7, cpu::this_cpu_raw(), object, 1, 0);
    }
}

/// Puts another object into the table and gives back the one that was there, unless another thread is
/// about to do so.
fn replace(worker: &mut Worker) {
    if !OWNED.swap(true, Ordering::Acquire) {
        replace_alone(worker);
        OWNED.store(false, Ordering::Release);
    }
}

fn replace_alone(worker: &mut Worker) {
    let which = worker.rng.below(TABLE as u64) as usize;
    let Some(n) = POOL.iter().position(|place| place.given_back.load(Ordering::Relaxed)) else {
        return;
    };
    let mode = if worker.rng.one_in(2) { RefFlags::INIT_ATOMIC } else { RefFlags::NONE };
    let Ok(new) = PercpuRef::new(Gone(n), mode) else { return };
    let words = words(&new);
    let args =
        [words, size_of::<i64>() as u64, size_of::<i64>() as u64, AreaContent::Any as u64, 0];
    events::emit(EventKind::Alloc, args);
    let place = &POOL[n];
    // SAFETY: the place is empty, and in no table: nobody else looks at it.
    unsafe { *place.object.get() = Some(new) };
    place.released.store(false, Ordering::Relaxed);
    place.given_back.store(false, Ordering::Release);
    let before = FOUND[which].swap(n + 1, Ordering::AcqRel);
    if let Some(old) = before.checked_sub(1) {
        give_back(old);
    }
}

/// Gives back an object that is out of the table.
fn give_back(n: usize) {
    let place = &POOL[n];
    {
        // SAFETY: the object is there until this thread takes it away, below.
        let object = unsafe { (*place.object.get()).as_ref() }.expect("it was in the table");
        assert_eq!(object.kill(), Ok(()), "its owner alone kills it");
    }
    while !place.released.load(Ordering::Acquire) {
        sched::yield_to_others();
    }
    wait_for_readers();
    place.given_back.store(true, Ordering::Release);
    // SAFETY: nobody has a reference, and whoever found the object in the table is done with it.
    let object = unsafe { (*place.object.get()).take() };
    events::emit(EventKind::Free, [object.as_ref().map_or(0, words), 0, 0, 0, 0]);
}

/// Per-CPU pointer to an object's words, of which the host is to know whose area that is.
fn words(object: &PercpuRef<Gone>) -> u64 {
    let view = core::ptr::with_exposed_provenance::<RefView>(object.view_address());
    // SAFETY: the object's view is at that address; the field is never written again.
    unsafe { (&raw const (*view).words).read() }
}

/// Returns when everybody is done who may have found what was in the table before.
fn wait_for_readers() {
    fence(Ordering::SeqCst);
    for cpu in cpu::booted_once().iter() {
        while READING.read_on(cpu) != 0 {
            sched::yield_to_others();
        }
    }
}
