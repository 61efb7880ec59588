//! The mount example.

use core::cell::UnsafeCell;

use crate::workloads::Mount;
use percpu_guest::kernel::testing::run_on;

struct Shared(UnsafeCell<Option<Mount>>);
// SAFETY: each machine runs one test, which writes it before other CPUs look.
unsafe impl Sync for Shared {}
static MOUNT: Shared = Shared(UnsafeCell::new(None));

fn mount() -> &'static Mount {
    // SAFETY: nobody writes once the test has made it.
    unsafe { (*MOUNT.0.get()).as_ref() }.expect("made first")
}

fn make() {
    // SAFETY: no other CPU looks yet.
    unsafe { *MOUNT.0.get() = Some(Mount::new().expect("memory")) };
    mount().attach();
}

/// References taken on one CPU and dropped on another cancel out in the sum, and the last `put`
/// is told only when the mount is out of the tree.
#[percpu_guest::test(cpus = 2, possible = 2)]
fn references_are_counted_over_all_cpus() {
    make();
    run_on(0, || {
        assert!(mount().look_up());
        mount().get();
        mount().want_write();
    });
    run_on(1, || {
        assert!(!mount().put());
        mount().want_write();
        mount().drop_write();
    });
    assert_eq!(mount().count(), 2, "the tree's and one more");
    assert_eq!(mount().writers(), 1);
    assert!(mount().detach());
    assert!(!mount().detach());
    assert!(!mount().put(), "the tree's reference is not the last");
    assert!(!mount().look_up());
    run_on(1, || assert!(mount().put()));
    assert_eq!(mount().count(), 0);
}

/// A reference that was taken on a CPU which is down by now is counted by the put that sums.
#[percpu_guest::test(cpus = 2, possible = 2)]
fn a_put_sums_cpus_that_are_down() {
    make();
    run_on(1, || assert!(mount().look_up()));
    run_on(0, || assert_eq!(percpu_guest::kernel::cpus::down(1), Ok(())));
    assert!(mount().detach());
    assert!(!mount().put());
    assert!(mount().put());
}
