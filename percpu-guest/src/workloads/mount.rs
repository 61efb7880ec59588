//! Mounts, the classic user of dynamic per-CPU memory: each holds a count of references and a count
//! of writers, one of each a CPU. Linux: `struct mnt_pcp` in `fs/mount.h`.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use percpu_core::alloc::{AllocError, PerCpuBox};
use percpu_core::cpu;

use super::{Worker, announce_sum, slots};

/// Mounts all threads use.
const MOUNTS: usize = 4;
/// References a thread holds at most on each.
const HELD: usize = 6;
/// Operations of a round between two boundaries.
const ROUND: u32 = 32;

/// A mounted file system, as far as its counts go.
pub struct Mount {
    count: PerCpuBox<i64>,
    writers: PerCpuBox<i64>,
    /// References that keep the mount in the tree; while there is one, `put` need not sum.
    longterm: AtomicU32,
}

impl Mount {
    /// A mount with one long-term reference.
    pub fn new() -> Result<Self, AllocError> {
        Ok(Self {
            count: PerCpuBox::try_new_zeroed()?,
            writers: PerCpuBox::try_new_zeroed()?,
            longterm: AtomicU32::new(1),
        })
    }

    /// Takes a reference. Linux: `mntget`.
    pub fn get(&self) {
        self.count.add(1);
    }

    /// Drops a reference; says whether it was the last. Linux: `mntput`.
    pub fn put(&self) -> bool {
        if self.longterm.load(Ordering::Acquire) != 0 {
            self.count.sub(1);
            return false;
        }
        self.count.sub(1);
        self.count() == 0
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

    /// Takes the mount out of the tree: from now on a `put` can be the last.
    pub fn umount(&self) {
        self.longterm.fetch_sub(1, Ordering::AcqRel);
    }
}

fn sum(counts: &PerCpuBox<i64>) -> i64 {
    cpu::booted_once().iter().map(|cpu| counts.read_on(cpu)).fold(0, i64::wrapping_add)
}

/// A mount that is made once, before any thread reads it.
struct Slot(UnsafeCell<Option<Mount>>);
// SAFETY: written by `init`, which ends before the first thread of the workload starts.
unsafe impl Sync for Slot {}
static TREE: [Slot; MOUNTS] = [const { Slot(UnsafeCell::new(None)) }; MOUNTS];

/// Ledger slots of mount `i`: references, then writers.
fn slot(i: usize) -> u32 {
    slots::MOUNTS + 2 * i as u32
}

/// Mounts the file systems.
pub(super) fn init() {
    for (i, place) in TREE.iter().enumerate() {
        let mount = Mount::new().expect("memory for a mount");
        announce_sum(mount.count.ptr().raw(), slot(i), 0);
        announce_sum(mount.writers.ptr().raw(), slot(i) + 1, 0);
        // SAFETY: no thread of the workload runs yet.
        unsafe { *place.0.get() = Some(mount) };
    }
}

pub(super) fn run(mut worker: Worker) {
    let mut held = [0usize; MOUNTS];
    let mut writing = [false; MOUNTS];
    loop {
        for _ in 0..ROUND {
            let i = worker.rng.below(MOUNTS as u64) as usize;
            // SAFETY: nobody writes any more; see `Sync` above.
            let mount = unsafe { (*TREE[i].0.get()).as_ref() }.expect("made by init");
            if worker.rng.one_in(3) {
                writing[i] = !writing[i];
                if writing[i] {
                    mount.want_write();
                } else {
                    mount.drop_write();
                }
                worker.book(slot(i) + 1, if writing[i] { 1 } else { -1 });
            } else if held[i] < HELD && worker.rng.one_in(2) {
                mount.get();
                held[i] += 1;
                worker.book(slot(i), 1);
            } else if held[i] > 0 {
                mount.put();
                held[i] -= 1;
                worker.book(slot(i), -1);
            }
        }
        if !worker.boundary() {
            return;
        }
    }
}
