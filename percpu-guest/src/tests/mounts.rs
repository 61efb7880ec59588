//! The mount example.

use core::cell::UnsafeCell;

use super::{guest_test, run_on};
use crate::workloads::Mount;

struct Shared(UnsafeCell<Option<Mount>>);
// SAFETY: each machine runs one test, which writes it before other CPUs look.
unsafe impl Sync for Shared {}
static MOUNT: Shared = Shared(UnsafeCell::new(None));

fn mount() -> &'static Mount {
    // SAFETY: nobody writes once the test has made it.
    unsafe { (*MOUNT.0.get()).as_ref() }.expect("made first")
}

guest_test!(
    /// References taken on one CPU and dropped on another cancel out in the sum, and the last `put`
    /// is told only when no long-term reference is left.
    references_are_counted_over_all_cpus, cpus = 2, possible = 2, {
        // SAFETY: no other CPU looks yet.
        unsafe { *MOUNT.0.get() = Some(Mount::new().expect("memory")) };
        run_on(0, || {
            mount().get();
            mount().get();
            mount().want_write();
        });
        run_on(1, || {
            assert!(!mount().put());
            mount().want_write();
            mount().drop_write();
        });
        assert_eq!(mount().count(), 1);
        assert_eq!(mount().writers(), 1);
        mount().umount();
        run_on(1, || assert!(mount().put()));
        assert_eq!(mount().count(), 0);
    }
);
