//! Set-up runs on the boot stack of a kernel, which may be as small as 8 KiB. That includes what this
//! platform needs to map memory, to allocate and to log.
#![cfg(target_arch = "x86_64")]

use std::env;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use kernel_tests::stack;
use percpu_core::area::{self, Config, Method};

/// Pages of the stack.
const PAGES: usize = 2;
/// Tells a process which line of [`SITUATIONS`] it is to run.
const SITUATION: &str = "BOOT_STACK_SITUATION";

struct Situation {
    cpus: u32,
    config: fn() -> Config,
}

const SITUATIONS: [Situation; 8] = [
    Situation { cpus: 1, config: embed },
    Situation { cpus: 1024, config: embed },
    Situation { cpus: 1, config: page },
    Situation { cpus: 1024, config: page },
    Situation { cpus: 1024, config: embed_on_demand },
    Situation { cpus: 1024, config: page_on_demand },
    Situation { cpus: 1024, config: two_nodes },
    // Embedding fails, so that set-up falls back to pages.
    Situation { cpus: 1024, config: too_far_apart },
];

fn embed() -> Config {
    Config { method: Method::Embed, reserved_size: 8 << 10, ..Config::default() }
}

fn page() -> Config {
    Config { method: Method::Page, ..embed() }
}

fn embed_on_demand() -> Config {
    Config { units_on_demand: true, ..embed() }
}

fn page_on_demand() -> Config {
    Config { units_on_demand: true, ..page() }
}

fn two_nodes() -> Config {
    let distance = |a: u32, b: u32| if a % 2 == b % 2 { 10 } else { 20 };
    Config { distance, atom_size: 2 << 20, ..embed() }
}

fn too_far_apart() -> Config {
    Config { method: Method::Auto, mapping_space: 1 << 16, ..embed() }
}

/// What this process, a child, is to set up.
static WANTED: OnceLock<(u32, Config)> = OnceLock::new();

extern "C" fn set_up() {
    let (cpus, config) = WANTED.get().expect("it is set before");
    // SAFETY: nothing per-CPU was used, and this is the only CPU.
    unsafe { area::setup_per_cpu_areas(0..*cpus, config) }.expect("areas");
}

/// Sets up what the environment says, in a child.
fn run_situation(n: &str) {
    let Situation { cpus, config } = &SITUATIONS[n.parse::<usize>().expect("a number")];
    assert!(WANTED.set((*cpus, config())).is_ok());
    println!("{} bytes", stack::run_on(PAGES, set_up));
    assert!(kernel_tests::log().contains(&format!("{cpus} CPUs")), "{}", kernel_tests::log());
}

#[test]
fn set_up_fits_a_boot_stack_of_two_pages() {
    if let Ok(n) = env::var(SITUATION) {
        return run_situation(&n);
    }
    // A set-up needs a process.
    let children = SITUATIONS.iter().enumerate().map(|(n, _)| {
        let mut child = Command::new(env::current_exe().expect("this program has a path"));
        child.args(["--exact", "set_up_fits_a_boot_stack_of_two_pages", "--nocapture"]);
        child.env(SITUATION, n.to_string()).stderr(Stdio::inherit());
        let output = child.output().expect("this program can be started");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let used = said.lines().find(|line| line.ends_with(" bytes")).map(String::from);
        println!("situation {n}: {} ({used:?})", output.status);
        used.filter(|_| output.status.success()).ok_or(n)
    });
    let failed: Vec<usize> = children.filter_map(Result::err).collect();
    assert!(failed.is_empty(), "the situations {failed:?} need more than {PAGES} pages of stack");
}
