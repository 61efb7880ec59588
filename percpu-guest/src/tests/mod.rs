//! Guest tests: each runs alone on a fresh machine, on a thread of its own, and passes unless it
//! panics. The host lists them from the image's section `guest_tests` without booting it.

mod allocator;
mod balance;
mod counters;
pub mod faults;
mod hotplug;
mod interrupts;
mod local;
mod mounts;
mod refs;
mod statics;
mod threads;

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use percpu_guest::abi::EventKind;

use crate::{events, sched};

/// Declares a guest test: `guest_test!(name, cpus = N, possible = M, { body })`. It starts with N of M
/// possible CPUs online.
macro_rules! guest_test {
    ($(#[$doc:meta])* $name:ident, cpus = $cpus:literal, possible = $possible:literal, $body:block) => {
        $(#[$doc])*
        fn $name() $body

        const _: () = {
            const NAME: &str = $crate::tests::name(concat!(module_path!(), "::", stringify!($name)));

            #[used]
            // SAFETY: the section holds entries of this type only, which only this macro makes.
            #[unsafe(link_section = "guest_tests")]
            static ENTRY: $crate::tests::Entry = $crate::tests::Entry {
                name: NAME.as_ptr(),
                name_len: NAME.len(),
                function: $name,
                cpus: $cpus | $possible << 16,
            };
        };
    };
}
pub(crate) use guest_test;

/// A [`TestEntry`](percpu_guest::abi::TestEntry) with pointers, which the linker fills in.
#[repr(C)]
pub struct Entry {
    /// The name's bytes.
    pub name: *const u8,
    /// How many.
    pub name_len: usize,
    /// The test.
    pub function: fn(),
    /// CPUs online, and possible CPUs << 16.
    pub cpus: u64,
}
// SAFETY: never written; for the host to read.
unsafe impl Sync for Entry {}

const _: () = assert!(size_of::<Entry>() == size_of::<percpu_guest::abi::TestEntry>());

/// A test's path without the crate and this module.
pub const fn name(path: &'static str) -> &'static str {
    let (_, name) = path.split_at("percpu_guest::tests::".len());
    name
}

/// Starts the test whose function lies at `address`.
pub fn start(address: usize) {
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

/// Runs `job` on `cpu` and waits until it is done.
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
    crate::ipi::send(cpu);
    while !DONE.load(Ordering::Acquire) {
        sched::yield_now();
    }
}
