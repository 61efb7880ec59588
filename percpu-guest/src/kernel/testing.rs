//! Guest tests: each runs alone on a fresh machine, on a thread of its own, and passes unless it
//! panics. An image declares them by [`#[test]`](crate::test); the host lists them from the section
//! `guest_tests` without booting it, and names one in the boot parameters.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::abi::{EventKind, TestEntry};
use crate::kernel::{events, ipi, sched, section};

/// A [`TestEntry`] with pointers, which the linker fills in.
#[doc(hidden)]
#[repr(C)]
pub struct Entry {
    /// The name's bytes.
    pub name: *const u8,
    /// How many.
    pub name_len: usize,
    /// The test.
    pub function: fn(),
    /// As [`TestEntry::cpus`].
    pub cpus: u64,
}
// SAFETY: never written; for the host to read.
unsafe impl Sync for Entry {}

const _: () = assert!(size_of::<Entry>() == size_of::<TestEntry>());

/// A test's path without the crate and a module `tests` at its root.
#[doc(hidden)]
pub const fn name(path: &'static str) -> &'static str {
    let bytes = path.as_bytes();
    let mut at = 0;
    while bytes[at] != b':' {
        at += 1;
    }
    let (_, path) = path.split_at(at + 2);
    match path.as_bytes() {
        [b't', b'e', b's', b't', b's', b':', b':', ..] => path.split_at("tests::".len()).1,
        _ => path,
    }
}

/// Starts the test whose function lies at `address`.
pub(crate) fn start(address: usize) {
    sched::spawn(
        |address| {
            let test = core::ptr::with_exposed_provenance::<()>(address);
            // SAFETY: the host took the address from this image's table of tests.
            let test: fn() = unsafe { core::mem::transmute(test) };
            test();
            events::emit_and_ring(EventKind::TestDone, [1, 0, 0, 0, 0]);
        },
        address,
        0,
    );
}

section::table! {
    /// What the image measures: a function that starts it, if there is one.
    fn benchmarks() -> &'static [fn()] = "guest_bench", __start_guest_bench, __stop_guest_bench, guest_bench_anchor
}

/// Starts the image's benchmark.
pub(crate) fn start_benchmark() {
    let start = benchmarks().first().expect("this image has no benchmark");
    start();
}

/// Runs `job` on `cpu`, which is online, and waits until it is done.
pub fn run_on(cpu: u32, job: fn()) {
    static JOB: AtomicUsize = AtomicUsize::new(0);
    static DONE: AtomicBool = AtomicBool::new(false);
    DONE.store(false, Ordering::Relaxed);
    JOB.store((job as *const ()).expose_provenance(), Ordering::Release);
    sched::spawn_bound(
        |_| {
            let job = core::ptr::with_exposed_provenance::<()>(JOB.load(Ordering::Acquire));
            // SAFETY: stored just before as a function of this type.
            let job: fn() = unsafe { core::mem::transmute(job) };
            job();
            DONE.store(true, Ordering::Release);
        },
        cpu,
    );
    ipi::send(cpu);
    while !DONE.load(Ordering::Acquire) {
        sched::yield_now();
    }
}
