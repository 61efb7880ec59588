//! Mounts, the classic user of dynamic per-CPU memory: each holds a count of references and a count
//! of writers, one of each a CPU. Linux: `struct mnt_pcp` and `mntput` in `fs/namespace.c`.
//!
//! Threads look mounts up in the tree, hold references, and sometimes take a mount out of the tree.
//! Then the last `put` has to be seen, by summing, exactly once; who sees it mounts again.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use percpu_core::alloc::{AllocError, PerCpuBox};
use percpu_core::sync::SpinLock;
use percpu_core::{cpu, percpu, preempt};
use percpu_guest::abi::{EventKind, Holder, SumKind};

use super::slots;
use percpu_guest::kernel::events;
use percpu_guest::kernel::workload::{Worker, announce_sum, booked_by_all};

/// Mounts all threads use.
const MOUNTS: usize = 4;
/// References a thread holds at most on each.
const HELD: usize = 3;
/// Operations of a round between two boundaries.
const ROUND: u32 = super::round(32);
/// One operation in so many takes a mount out of the tree.
const UMOUNTS: u64 = 128;

percpu! {
    /// Held by whoever looks at `longterm` and acts on what he saw; each CPU has its own, and who
    /// changes `longterm` goes through all of them. Linux: `vfsmount_lock`, a `brlock`.
    #[shared_aligned]
    static LOOKING: PerCpu<SpinLock<()>> = SpinLock::new(());
}

/// A mounted file system, as far as its counts go.
pub struct Mount {
    count: PerCpuBox<i64>,
    writers: PerCpuBox<i64>,
    /// References that keep the mount in the tree; while there is one, `put` need not sum.
    longterm: AtomicU32,
    /// Held by a `put` that sums.
    summing: SpinLock<()>,
}

impl Mount {
    /// A mount that is nowhere in the tree.
    pub fn new() -> Result<Self, AllocError> {
        Ok(Self {
            count: PerCpuBox::try_new_zeroed()?,
            writers: PerCpuBox::try_new_zeroed()?,
            longterm: AtomicU32::new(0),
            summing: SpinLock::new(()),
        })
    }

    /// Puts the mount into the tree, which holds a reference from now on. Nobody else has one.
    pub fn attach(&self) {
        self.get();
        self.longterm.store(1, Ordering::Release);
    }

    /// Takes the mount out of the tree, of whose reference the caller then disposes. False if
    /// somebody else was first. Linux: `umount_tree`.
    pub fn detach(&self) -> bool {
        let taken = self.longterm.compare_exchange(1, 0, Ordering::SeqCst, Ordering::Relaxed);
        if taken.is_err() {
            return false;
        }
        // Who saw it in the tree has acted on that when its CPU's lock was free once; who comes
        // later sees that it is gone. So from here on every `put` sums. A CPU that comes up only
        // now has not looked yet.
        fence(Ordering::SeqCst);
        for cpu in cpu::booted_once().iter() {
            drop(LOOKING.remote(cpu).lock());
        }
        true
    }

    /// Takes a reference if the mount is in the tree. Linux: `lookup_mnt`.
    pub fn look_up(&self) -> bool {
        self.if_attached(|| self.get())
    }

    /// Takes a reference more; the caller has one. Linux: `mntget`.
    pub fn get(&self) {
        self.count.inc();
    }

    /// Drops a reference; says whether it was the last. Linux: `mntput`.
    pub fn put(&self) -> bool {
        if self.if_attached(|| self.count.dec()) {
            return false;
        }
        // Only references that are taken meanwhile are not seen, and who takes one has one, which
        // is: so the sum is not too small, and there is one `put` that finds nothing left.
        let _summing = self.summing.lock();
        self.count.dec();
        self.count() == 0
    }

    /// Calls `act` if the mount is in the tree, and before it leaves that.
    fn if_attached(&self, act: impl FnOnce()) -> bool {
        let pin = preempt::disable();
        LOOKING.with(&pin, |looking| {
            let _looking = looking.lock();
            let attached = self.longterm.load(Ordering::Acquire) != 0;
            if attached {
                act();
            }
            attached
        })
    }

    /// The sum of references over all CPUs. Linux: `mnt_get_count`.
    pub fn count(&self) -> i64 {
        sum(&self.count)
    }

    /// Announces a writer. Linux: `mnt_want_write`.
    pub fn want_write(&self) {
        self.writers.inc();
    }

    /// A writer is done. Linux: `mnt_drop_write`.
    pub fn drop_write(&self) {
        self.writers.dec();
    }

    /// The sum of writers over all CPUs. Linux: `mnt_get_writers`.
    pub fn writers(&self) -> i64 {
        sum(&self.writers)
    }
}

fn sum(counts: &PerCpuBox<i64>) -> i64 {
    cpu::booted_once().iter().map(|cpu| counts.read_on(cpu)).fold(0, i64::wrapping_add)
}

/// A mount that is made once, before any thread reads it.
struct Slot {
    mount: UnsafeCell<Option<Mount>>,
    /// How often it was mounted.
    life: AtomicU64,
}
// SAFETY: `mount` is written by `init`, which ends before the first thread of the workload starts.
unsafe impl Sync for Slot {}
static TREE: [Slot; MOUNTS] =
    [const { Slot { mount: UnsafeCell::new(None), life: AtomicU64::new(0) } }; MOUNTS];

impl Slot {
    fn mount(&self) -> &Mount {
        // SAFETY: nobody writes any more; see `Sync` above.
        unsafe { (*self.mount.get()).as_ref() }.expect("made by init")
    }
}

/// Ledger slots of mount `i`: references, the tree's included, then writers.
fn slot(i: usize) -> u32 {
    slots::MOUNTS + 2 * i as u32
}

/// Makes the mounts. The first thread mounts them.
fn init() {
    for (i, place) in TREE.iter().enumerate() {
        let mount = Mount::new().expect("memory for a mount");
        announce_sum(SumKind::Word, mount.count.ptr().raw(), slot(i), 0);
        announce_sum(SumKind::Word, mount.writers.ptr().raw(), slot(i) + 1, 0);
        // SAFETY: no thread of the workload runs yet.
        unsafe { *place.mount.get() = Some(mount) };
    }
}

#[percpu_guest::workload(name = "mount", init = init)]
fn run(mut worker: Worker) {
    if worker.index() == 0 {
        (0..MOUNTS).for_each(|i| mount(&worker, i));
    }
    let mut held = [0usize; MOUNTS];
    let mut writing = [false; MOUNTS];
    loop {
        for _ in 0..ROUND {
            let i = worker.rng.below(MOUNTS as u64) as usize;
            let mount = TREE[i].mount();
            if worker.rng.one_in(UMOUNTS) {
                umount(&worker, i);
            } else if worker.rng.one_in(3) {
                writing[i] = !writing[i];
                if writing[i] {
                    mount.want_write();
                } else {
                    mount.drop_write();
                }
                worker.book(slot(i) + 1, if writing[i] { 1 } else { -1 });
            } else if held[i] < HELD && worker.rng.one_in(2) {
                // Who has a reference may take another one wherever the mount is.
                if held[i] > 0 {
                    mount.get();
                } else if !mount.look_up() {
                    continue;
                }
                held[i] += 1;
                worker.book(slot(i), 1);
            } else if held[i] > 0 {
                held[i] -= 1;
                put(&worker, i);
            }
        }
        if !worker.boundary() {
            return;
        }
    }
}

/// Announces something about the life of mount `i`.
fn tell(kind: EventKind, i: usize, amount: u64) {
    let object = TREE[i].mount().count.ptr().raw() as u64;
    let life = TREE[i].life.load(Ordering::Relaxed);
    events::emit(kind, [Holder::Mount as u64, object, amount, life, 0]);
}

fn mount(worker: &Worker, i: usize) {
    TREE[i].life.fetch_add(1, Ordering::Relaxed);
    tell(EventKind::LifeBegun, i, slot(i).into());
    worker.book(slot(i), 1);
    TREE[i].mount().attach();
}

fn umount(worker: &Worker, i: usize) {
    if TREE[i].mount().detach() {
        tell(EventKind::LifeEnding, i, slot(i).into());
        put(worker, i);
    }
}

/// Drops a reference, of which the ledger knows no more by then: so it never shows one that is gone.
fn put(worker: &Worker, i: usize) {
    worker.book(slot(i), -1);
    if TREE[i].mount().put() {
        tell(EventKind::LifeEnded, i, booked_by_all(slot(i)) as u64);
        mount(worker, i);
    }
}
