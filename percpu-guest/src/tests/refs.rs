//! `percpu_ref`.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use percpu_core::refcount::{PercpuRef, RefFlags, Release};

use super::{guest_test, run_on};
use crate::control;

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

guest_test!(
    /// A reference that was taken on a CPU which is down by now keeps the ref from its release.
    a_ref_is_killed_and_revived_across_an_unplug, cpus = 2, possible = 2, {
        make(RefFlags::ALLOW_REINIT);
        run_on(1, take);
        run_on(0, || assert_eq!(control::down(1), Ok(())));
        assert_eq!(object().kill(), Ok(()));
        assert!(object().tryget_live().is_none());
        assert_eq!(releases(), 0);
        // Not released, so it is the same life, and the reference is there still.
        assert_eq!(object().resurrect(), Ok(()));
        run_on(0, || assert_eq!(control::up(1), Ok(())));
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
);

guest_test!(
    /// A switch to atomic mode collects what each CPU has counted, down or up.
    a_ref_changes_its_mode_with_references_out, cpus = 3, possible = 3, {
        make(RefFlags::NONE);
        for _ in 0..3 {
            run_on(1, take);
        }
        run_on(2, take);
        run_on(2, give_back);
        run_on(0, || assert_eq!(control::down(2), Ok(())));
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
);
