//! Mounted file systems, the classic user of per-CPU counts: references and writers are counted
//! where they are taken and given back, and nobody sums but who asks whether the last one is gone.
//! Linux: `struct mnt_pcp`, `mntget` and `mntput`.
//!
//! `cargo run -p percpu-core --example mount`, and for one CPU with `--features up`

use std::sync::atomic::{AtomicBool, Ordering, fence};

use percpu_core::alloc::AllocError;
use percpu_core::sync::SpinLock;
use percpu_core::{cpu, host, percpu, preempt};

/// With many CPUs: two numbers on each, changed by single instructions.
#[cfg(not(feature = "up"))]
mod counts {
    use percpu_core::alloc::{AllocError, PerCpuBox};
    use percpu_core::cpu;

    pub struct Counts {
        references: PerCpuBox<i64>,
        writers: PerCpuBox<i64>,
    }

    impl Counts {
        pub fn new() -> Result<Self, AllocError> {
            let (references, writers) =
                (PerCpuBox::try_new_zeroed()?, PerCpuBox::try_new_zeroed()?);
            Ok(Self { references, writers })
        }

        /// Linux: `mnt_add_count`.
        pub fn add_count(&self, n: i64) {
            self.references.add(n); // this_cpu_add: one instruction, no guard
        }

        /// Linux: `mnt_get_count`.
        pub fn get_count(&self) -> i64 {
            sum(&self.references)
        }

        /// Linux: `mnt_inc_writers`, `mnt_dec_writers`.
        pub fn add_writers(&self, n: i64) {
            self.writers.add(n);
        }

        /// Linux: `mnt_get_writers`.
        pub fn get_writers(&self) -> i64 {
            sum(&self.writers)
        }
    }

    /// A count may be negative on one CPU: what is given back there was taken elsewhere. CPUs that
    /// are down count as well.
    fn sum(counts: &PerCpuBox<i64>) -> i64 {
        cpu::booted_once().iter().map(|cpu| counts.read_on(cpu)).sum()
    }
}

/// With one CPU: two numbers, and nobody else runs while one of them is changed.
#[cfg(feature = "up")]
mod counts {
    use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

    use percpu_core::alloc::AllocError;
    use percpu_core::preempt;

    pub struct Counts {
        references: AtomicI64,
        writers: AtomicI64,
    }

    impl Counts {
        pub fn new() -> Result<Self, AllocError> {
            Ok(Self { references: AtomicI64::new(0), writers: AtomicI64::new(0) })
        }

        pub fn add_count(&self, n: i64) {
            add(&self.references, n);
        }

        pub fn get_count(&self) -> i64 {
            self.references.load(Relaxed)
        }

        pub fn add_writers(&self, n: i64) {
            add(&self.writers, n);
        }

        pub fn get_writers(&self) -> i64 {
            self.writers.load(Relaxed)
        }
    }

    /// A load and a store; the guard keeps other threads from coming in between.
    fn add(count: &AtomicI64, n: i64) {
        let _pin = preempt::disable();
        count.store(count.load(Relaxed) + n, Relaxed);
    }
}

percpu! {
    /// Held by whoever looks at `attached` and acts on what he saw; who changes that goes through
    /// all of them. Linux: `vfsmount_lock`, a `brlock`.
    #[shared_aligned]
    static LOOKING: PerCpu<SpinLock<()>> = SpinLock::new(());
}

struct Mount {
    counts: counts::Counts,
    /// The tree holds a long-term reference: while it does, nobody need sum.
    attached: AtomicBool,
    /// Held by a `put` that sums.
    summing: SpinLock<()>,
}

impl Mount {
    fn new() -> Result<Self, AllocError> {
        let counts = counts::Counts::new()?;
        counts.add_count(1);
        Ok(Self { counts, attached: AtomicBool::new(true), summing: SpinLock::new(()) })
    }

    /// Takes a reference more. Linux: `mntget`.
    fn get(&self) {
        self.counts.add_count(1);
    }

    /// Gives a reference back; whether it was the last. Linux: `mntput`.
    fn put(&self) -> bool {
        if self.if_attached(|| self.counts.add_count(-1)) {
            return false; // the tree still has one: nothing to sum
        }
        let _summing = self.summing.lock();
        self.counts.add_count(-1);
        self.counts.get_count() == 0
    }

    /// Takes the mount out of the tree and gives the tree's reference back; whether that was the
    /// last. Linux: `umount_tree`.
    fn umount(&self) -> bool {
        self.attached.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        for cpu in cpu::booted_once().iter() {
            drop(LOOKING.remote(cpu).lock()); // who saw it attached there has acted on that
        }
        self.put()
    }

    fn if_attached(&self, act: impl FnOnce()) -> bool {
        let pin = preempt::disable();
        LOOKING.with(&pin, |looking| {
            let _looking = looking.lock();
            let attached = self.attached.load(Ordering::Acquire);
            if attached {
                act();
            }
            attached
        })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cpus = if cfg!(feature = "up") { 1 } else { 4 };
    host::boot(cpus)?;
    let thread = host::enter_any()?;
    let mount = Mount::new()?;
    drop(thread);

    // Every CPU opens 1000 files, one of them for writing.
    host::on_each_cpu(|_| {
        (0..1000).for_each(|_| mount.get());
        mount.counts.add_writers(1);
    });
    println!("{} references, {} writers", mount.counts.get_count(), mount.counts.get_writers());
    assert_eq!(mount.counts.get_count(), 1 + 1000 * cpus as i64);

    // They close them while the mount is in the tree: no sums.
    host::on_each_cpu(|_| {
        mount.counts.add_writers(-1);
        (0..999).for_each(|_| assert!(!mount.put()));
    });

    let _thread = host::enter_any()?;
    let busy = !mount.umount();
    println!("out of the tree, {} files still open", mount.counts.get_count());
    let last = (0..cpus).filter(|_| mount.put()).count();
    println!("{last} of {cpus} saw the last reference go; {} writers", mount.counts.get_writers());
    assert!(busy && last == 1 && mount.counts.get_count() == 0);
    Ok(())
}
