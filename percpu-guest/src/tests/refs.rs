//! `percpu_ref`, and the calls to other CPUs by which it closes their words.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use percpu_core::cpu::this_cpu_raw;
use percpu_core::hotplug;
use percpu_core::platform::Platform;
use percpu_core::refcount::{PercpuRef, RefFlags, Release};

use percpu_guest::kernel::Kernel;
use percpu_guest::kernel::arch::{irq, tsc};
use percpu_guest::kernel::testing::run_on;
use percpu_guest::kernel::{cpus, sched};

/// How often the ref was released.
static RELEASES: AtomicU32 = AtomicU32::new(0);

struct Counted;

impl Release for Counted {
    fn release(&self) {
        RELEASES.fetch_add(1, Ordering::Relaxed);
    }
}

struct Shared(UnsafeCell<Option<PercpuRef<Counted>>>);
// SAFETY: each machine runs one test, which writes it before other CPUs look.
unsafe impl Sync for Shared {}
static REF: Shared = Shared(UnsafeCell::new(None));

fn object() -> &'static PercpuRef<Counted> {
    // SAFETY: nobody writes once `make` has returned.
    unsafe { (*REF.0.get()).as_ref() }.expect("made first")
}

fn make(flags: RefFlags) {
    // SAFETY: called once, before other CPUs look.
    unsafe { *REF.0.get() = Some(PercpuRef::new(Counted, flags).expect("memory")) };
}

fn take() {
    object().tryget_live().expect("the ref is alive").into_raw();
}

fn give_back() {
    // SAFETY: the test has taken as many by `take` as it gives back.
    unsafe { object().put() };
}

fn releases() -> u32 {
    RELEASES.load(Ordering::Relaxed)
}

/// A reference that was taken on a CPU which is down by now keeps the ref from its release.
#[percpu_guest::test(cpus = 2, possible = 2)]
fn a_ref_is_killed_and_revived_across_an_unplug() {
    make(RefFlags::ALLOW_REINIT);
    run_on(1, take);
    run_on(0, || assert_eq!(cpus::down(1), Ok(())));
    assert_eq!(object().kill(), Ok(()));
    assert!(object().tryget_live().is_none());
    assert_eq!(releases(), 0);
    // Not released, so it is the same life, and the reference is there still.
    assert_eq!(object().resurrect(), Ok(()));
    run_on(0, || assert_eq!(cpus::up(1), Ok(())));
    run_on(1, take);
    assert_eq!(object().kill(), Ok(()));
    run_on(1, give_back);
    assert_eq!(releases(), 0);
    run_on(0, give_back);
    assert_eq!(releases(), 1);
    assert_eq!(object().reinit(), Ok(()));
    run_on(1, || {
        take();
        give_back();
    });
    assert_eq!(object().kill(), Ok(()));
    assert_eq!(releases(), 2);
}

/// A switch to atomic mode collects what each CPU has counted, down or up.
#[percpu_guest::test(cpus = 3, possible = 3)]
fn a_ref_changes_its_mode_with_references_out() {
    make(RefFlags::NONE);
    for _ in 0..3 {
        run_on(1, take);
    }
    run_on(2, take);
    run_on(2, give_back);
    run_on(0, || assert_eq!(cpus::down(2), Ok(())));
    object().switch_to_atomic();
    assert!(!object().is_percpu());
    run_on(0, give_back);
    object().switch_to_percpu();
    assert!(object().is_percpu());
    run_on(0, give_back);
    assert_eq!(object().kill(), Ok(()));
    assert_eq!(releases(), 0);
    run_on(1, give_back);
    assert_eq!(releases(), 1);
}

/// Starts a thread on each of CPU 1 and 2 that does `job` and counts in [`ENDED`].
fn start_on_both(job: fn(usize)) {
    static JOB: AtomicUsize = AtomicUsize::new(0);
    JOB.store((job as *const ()).expose_provenance(), Ordering::Release);
    for cpu in [1, 2] {
        sched::spawn_bound(
            |cpu| {
                let job = core::ptr::with_exposed_provenance::<()>(JOB.load(Ordering::Acquire));
                // SAFETY: stored before as a function of this type.
                let job: fn(usize) = unsafe { core::mem::transmute(job) };
                job(cpu);
                ENDED.fetch_add(1, Ordering::Release);
            },
            cpu,
        );
        percpu_guest::kernel::ipi::send(cpu);
    }
}

/// Threads of [`start_on_both`] that are done.
static ENDED: AtomicU32 = AtomicU32::new(0);

fn wait_for_both() {
    while ENDED.load(Ordering::Acquire) < 2 {
        sched::yield_now();
    }
}

/// A word is closed by the CPU whose it is: of what that counts in the meantime, without a bus
/// lock, nothing is lost.
#[percpu_guest::test(cpus = 3, possible = 3)]
fn words_are_closed_under_operations() {
    static OVER: AtomicBool = AtomicBool::new(false);
    make(RefFlags::NONE);
    start_on_both(|_| {
        while !OVER.load(Ordering::Relaxed) {
            for _ in 0..100 {
                take();
                give_back();
            }
        }
    });
    let until = tsc::now_ns() + 1_000_000_000;
    let mut switches = 0;
    while tsc::now_ns() < until || switches < 100 {
        object().switch_to_atomic();
        object().switch_to_percpu();
        switches += 1;
        sched::yield_now();
    }
    OVER.store(true, Ordering::Relaxed);
    wait_for_both();
    assert_eq!(releases(), 0);
    assert_eq!(object().kill(), Ok(()));
    assert_eq!(releases(), 1, "counts were lost in {switches} switches");
}

/// Two CPUs that have each other call a function, at once and for ever again.
#[percpu_guest::test(cpus = 3, possible = 3)]
fn cpus_that_call_each_other_answer_each_other() {
    const CALLS_EACH: u32 = 100;
    static CALLS: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];
    start_on_both(|cpu| {
        let other = 3 - cpu as u32;
        for calls in 1..=CALLS_EACH {
            let guard = hotplug::cpus_read_lock();
            Kernel::run_on_cpu(
                other,
                |called| {
                    assert!(irq::masked() && this_cpu_raw() as usize == called);
                    CALLS[called].fetch_add(1, Ordering::Relaxed);
                },
                other as usize,
            );
            drop(guard);
            assert_eq!(CALLS[other as usize].load(Ordering::Relaxed), calls);
        }
    });
    wait_for_both();
}
