//! Tests of guests: [`main`] is a whole test program for one; [`run`] is one guest test, alone on a fresh
//! machine and judged like a run.

mod suite;

use std::fmt::Write;
use std::time::{Duration, Instant};

use percpu_guest::abi::{BootMode, BootParams};

use crate::crash::{self, Scene};
use crate::error::Error;
use crate::host::HostInfo;
use crate::image::{GuestTest, Image};
use crate::judge::{Judge, Signal};
use crate::memory::GuestMem;
use crate::report;
use crate::run::{boot_params, patience};
use crate::vm::{Vm, VmConfig, VmEventKind};

pub use suite::{Suite, main};

/// How long a test may take, boot included, where ring 0 is not emulated.
const LIMIT: Duration = Duration::from_secs(20);
/// Longest wait between two looks at the event rings.
const POLL: Duration = Duration::from_millis(5);
/// Every test runs with the same seed: it is a test, not a search.
const SEED: u64 = 1;

/// Runs one test of `image`. `Ok(Err(..))` is a test that failed, with the text to show.
pub fn run(
    image: &Image,
    test: &GuestTest,
    ring: u8,
    boot: BootMode,
    host: &HostInfo,
) -> Result<Result<(), String>, Error> {
    let boot = BootParams {
        seed: SEED,
        test: test.function,
        possible: test.possible,
        boot_cpus: test.cpus,
        boot_mode: boot as u32,
        ..boot_params(ring, host)
    };
    let vm = Vm::new(image, VmConfig::new(host.engine, boot, VmConfig::memory_for(test.possible)))?;
    let mem = GuestMem::new(vm.memory().clone());
    let mut judge = Judge::new(mem.clone(), test.possible)?.with_checks_of(image);
    vm.start()?;

    let deadline = Instant::now() + LIMIT * patience(ring, host);
    loop {
        let event = vm.next_event(Instant::now() + POLL);
        let done = judge.drain().into_iter().find_map(|signal| match signal {
            Signal::TestDone { passed } => Some(passed),
            _ => None,
        });
        let scene =
            Scene { vm: &vm, mem: &mem, image, judge: Some(&judge), possible: test.possible };
        match event.map(|event| (event.cpu, event.kind)) {
            Some((cpu, VmEventKind::Crashed(crash))) => {
                return Ok(Err(text(&crash::report(&scene, cpu, &crash)?)));
            }
            Some((_, VmEventKind::Exit)) => {
                return Ok(Err(text(&crash::hang(&scene, "the guest stopped by itself", &[]))));
            }
            _ => {}
        }
        if let Some(passed) = done {
            judge.check_instant();
            let mut broken = String::new();
            for violation in judge.violations() {
                let _ = writeln!(broken, "{violation}");
            }
            return Ok(match (passed, broken.is_empty()) {
                (true, true) => Ok(()),
                (true, false) => Err(broken),
                (false, _) => Err(format!("the test says that it failed\n{broken}")),
            });
        }
        if Instant::now() > deadline {
            let late = format!("the test is not over after {:?}", LIMIT * patience(ring, host));
            return Ok(Err(text(&crash::hang(&scene, &late, &[]))));
        }
    }
}

fn text(crash: &report::Crash) -> String {
    crash.to_string()
}
