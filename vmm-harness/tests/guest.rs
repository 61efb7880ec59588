//! The guest's own tests, one by one, in both rings.
//!
//! They are listed from the image's ELF file; each runs on a fresh machine. The names are
//! `ring3::direct::statics::worked_example` and the like: the ring, how CPUs are started, the test.

mod common;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use percpu_guest::abi::BootMode;
use vmm_harness::host::{Host, HostInfo};
use vmm_harness::image::{GuestTest, Image};
use vmm_harness::run::boot_mode_name;
use vmm_harness::testing;

/// Tests whose subject is how CPUs are started run in both boot modes.
const BOOT_MATTERS: &str = "hotplug::";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if common::no_vm() {
        println!("guest tests are left out: PERCPU_NO_VM=1");
        return ExitCode::SUCCESS;
    }
    let image = match Image::open(&common::image()) {
        Ok(image) => Arc::new(image),
        Err(e) => return fail(&e),
    };
    let host = match Host::probe() {
        Ok(host) => Arc::new(host),
        Err(e) => return fail(&e),
    };
    let rings: &[u8] = if image.header().ring3_only != 0 { &[3] } else { &[3, 0] };
    let mut trials = Vec::new();
    for &ring in rings {
        for boot in [BootMode::Direct, BootMode::Sipi] {
            for test in image.tests() {
                if boot == BootMode::Direct || test.name.starts_with(BOOT_MATTERS) {
                    trials.push(trial(&image, test, ring, boot, &host));
                }
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(
    image: &Arc<Image>,
    test: &GuestTest,
    ring: u8,
    boot: BootMode,
    host: &Arc<HostInfo>,
) -> Trial {
    let name = format!("ring{ring}::{}::{}", boot_mode_name(boot), test.name);
    let (image, test, host) = (image.clone(), test.clone(), host.clone());
    Trial::test(name, move || match testing::run(&image, &test, ring, boot, &host) {
        Ok(result) => result.map_err(Failed::from),
        Err(e) => Err(e.into()),
    })
}

fn fail(error: &vmm_harness::error::Error) -> ExitCode {
    eprintln!("error: {error}");
    error.status().into()
}
