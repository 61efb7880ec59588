//! The guest's own tests, one by one, in both rings, and as threads of this process.
//!
//! They are listed from the image's ELF file; each runs on a fresh machine. The names are
//! `ring3::direct::statics::worked_example` and the like: the ring, or `threads`, how CPUs are started,
//! the test.

use std::process::ExitCode;

use vmm_harness::Guest;
use vmm_harness::testing::Suite;

fn main() -> ExitCode {
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let guest = Guest::new(workspace, "percpu-guest", "percpu-guest").feature("kernel");
    // `cargo xtask ci` has storms and seeds of its own.
    Suite::of(guest).on_all_engines().boot_matters_to("hotplug::").storm(0).seeds(0..0).main()
}
