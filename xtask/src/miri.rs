//! `cargo xtask miri`: percpu-core's tests under Miri, which sees undefined behaviour that ordinary
//! runs survive: wild pointers, aliasing references, data races.
//!
//! Miri interprets one thread at a time, so the test programs run beside each other, one a core.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xshell::cmd;

use crate::programs;
use crate::{cargo, toolchain};

/// What Miri is told, besides the user's own `MIRIFLAGS`.
///
/// - Addresses are plain numbers with exposed provenance throughout the crate (another address
///   space reads them); Miri would warn at each.
/// - Threads wait for each other by `yield`, and look at clocks and at the environment.
/// - The one allocator of a program, as a static, and CPUs that are threads are never given back.
const FLAGS: &str = "-Zmiri-permissive-provenance -Zmiri-disable-isolation -Zmiri-ignore-leaks";

/// The tests' own is of no use to an interpreter, which would say so for each of them.
const NO_OPTIMISATION: &str = "profile.dev.package.percpu-core.opt-level=0";

/// What Miri is: itself, and the standard library's source, which it compiles.
pub const COMPONENTS: &[&str] = &["miri", "rust-src"];

/// How Miri is installed.
pub const INSTALL: &str =
    "rustup toolchain install nightly --profile minimal --component miri,rust-src";

/// The examples in the documentation, among the test programs.
const DOC: &str = "doc";

/// Test programs that Miri cannot run, and why. Single tests say so themselves, by
/// `#[cfg_attr(miri, ignore = "why")]`.
const LEFT_OUT: &[(&str, &str)] = &[
    ("compile_fail", "it runs the compiler"),
    ("disassembly", "it looks at machine code"),
    ("interrupts", "its interrupts are signals, of which Miri has none"),
    ("loom_alloc", "a model: cargo xtask loom"),
    ("loom_counter", "a model: cargo xtask loom"),
    ("loom_local", "a model: cargo xtask loom"),
    ("loom_ref", "a model: cargo xtask loom"),
    ("shuttle", "a model: cargo xtask shuttle"),
    ("up", "its form of the crate is for one CPU, and not built"),
];

/// The programs that take longest: they are started first, so that all cores are busy to the end.
const LONGEST: &[&str] =
    &["counter_many", "counter_hierarchical", "hotplug", "counter_model", "areas_units"];

/// What `cargo xtask miri --quick` runs: a test program, and which of its tests, all if none is named.
/// Each module that has unsafe code is used by one of them.
const QUICK: &[(&str, &[&str])] = &[
    // `hotplug`, `host`, `cpu`, `platform`, `view`.
    ("hotplug", &["instances::a_value_is_dropped_once_whichever_way_it_goes"]),
    ("kernel", &[]),
    ("host", &["a_cpu_is_one_thread_at_a_time"]),
    // `area`.
    ("areas_units", &["the_page_method_puts_all_units_into_one_range_page_by_page"]),
    ("areas_global", &[]),
    // `alloc`.
    ("units_global", &[]),
    ("allocator_boxed", &["each_cpu_gets_the_value_made_for_it_and_each_value_is_dropped_once"]),
    ("allocator_caches", &["the_cpu_that_frees_an_area_is_the_next_to_get_it"]),
    ("allocator_balance", &["one_wholly_free_chunk_is_kept"]),
    ("allocator_accounting", &["tables_go_with_their_chunks"]),
    ("allocator_leaks", &["every_form_of_a_reference_counts"]),
    ("allocator_threads", &["one_of_two_frees_of_an_area_is_refused_whoever_is_first"]),
    // `refcount`.
    (
        "refcount",
        &[
            "a_kill_collects_what_all_cpus_have_counted",
            "kills_and_resurrections_at_once_lose_no_reference",
        ],
    ),
    ("refcount_units", &[]),
    // `counter`.
    (
        "counters",
        &[
            "a_sum_is_right_at_every_step_of_a_cpus_way_down_and_up",
            "the_list_holds_every_counter_once",
        ],
    ),
    ("counter_many", &["counters_made_together_can_be_dropped_one_by_one_in_any_order"]),
    ("counter_lazy", &["it_becomes_per_cpu_once_whoever_wants_that"]),
    ("counter_hierarchical", &["a_comparison_is_exact_near_and_far"]),
    // `local`, `sync`, `preempt`, `irq`.
    (
        "local",
        &[
            "a_cell_in_use_turns_the_second_user_away",
            "a_panic_opens_the_lock",
            "statistics_are_of_one_moment",
        ],
    ),
    // `var`, `arch`.
    (
        "statics",
        &[
            "a_forgotten_guard_can_be_adopted",
            "concurrent_cpus_do_not_disturb_each_other",
            "every_possible_cpu_starts_with_the_initial_value",
            "operations_of_the_other_strengths_do_the_same",
            "operations_on_pointers",
            "operations_on_two_words",
            "with_irq_lends_what_is_not_sync",
            "with_lends_this_cpus_copy",
        ],
    ),
];

#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose name contains this
    filter: Option<OsString>,
    /// Only the tests that `cargo xtask ci` runs
    #[arg(long, conflicts_with = "filter")]
    quick: bool,
    /// Test programs that run at the same time; as many as there are cores if it is not given
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    jobs: Option<u64>,
}

/// Runs the tests, and tells how long each program took.
pub fn miri(args: &Args) -> Result<ExitCode> {
    let filter = args.filter.iter().cloned().collect();
    let programs = if args.quick { quick_programs() } else { all_programs(filter)? };
    let jobs = match args.jobs {
        Some(jobs) => jobs as usize,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    if !args.quick {
        LEFT_OUT.iter().for_each(|(name, reason)| println!("left out: {name}: {reason}"));
    }
    run(programs, jobs)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the tests that a change must pass.
pub fn quick() -> Result<()> {
    run(quick_programs(), std::thread::available_parallelism().map_or(1, usize::from))
}

/// A test program, and what it is told.
struct Program {
    name: String,
    args: Vec<OsString>,
}

/// What became of it.
struct Ended {
    name: String,
    succeeded: bool,
    time: Duration,
}

/// All that Miri can run, the longest first, and the examples in the documentation.
fn all_programs(filter: Vec<OsString>) -> Result<Vec<Program>> {
    let mut names = programs::without(LEFT_OUT)?;
    names.push(DOC.to_owned());
    let rank = |name: &String| LONGEST.iter().position(|long| long == name).unwrap_or(usize::MAX);
    names.sort_by_key(rank);
    Ok(names.into_iter().map(|name| Program { name, args: filter.clone() }).collect())
}

fn quick_programs() -> Vec<Program> {
    let program = |&(name, tests): &(&str, &[&str])| Program {
        name: name.to_owned(),
        // No name at all is no limit, `--exact` or not.
        args: ["--exact"].iter().chain(tests).map(OsString::from).collect(),
    };
    QUICK.iter().map(program).collect()
}

/// Runs the programs, `jobs` at the same time.
fn run(programs: Vec<Program>, jobs: usize) -> Result<()> {
    let began = Instant::now();
    let toolchain = toolchain::nightly_with(&cargo::shell()?, COMPONENTS, INSTALL)?;
    build(&toolchain, &programs)?;
    println!("built: {}", text(began.elapsed()));

    let all = programs.len();
    let waiting = Mutex::new(VecDeque::from(programs));
    let ended = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let worker = || -> Result<()> {
            loop {
                // Not held while the program runs.
                let Some(program) = waiting.lock().expect("no worker panics").pop_front() else {
                    return Ok(());
                };
                println!("started: {}", program.name);
                let began = Instant::now();
                let output = command(&toolchain, &program)?.output();
                let output = output.context("cargo miri does not start")?;
                let time = began.elapsed();
                let mut ended = ended.lock().expect("no worker panics");
                let succeeded = output.status.success();
                let name = program.name;
                let word = if succeeded { "passed" } else { "FAILED" };
                println!("{word}: {name}, {}, {} of {all} done", text(time), ended.len() + 1);
                if !succeeded {
                    println!("{}", String::from_utf8_lossy(&output.stdout));
                    println!("{}", String::from_utf8_lossy(&output.stderr));
                }
                ended.push(Ended { name, succeeded, time });
            }
        };
        let workers: Vec<_> = (0..jobs.min(all)).map(|_| scope.spawn(worker)).collect();
        let results = workers.into_iter().map(|worker| worker.join().expect("no worker panics"));
        results.collect::<Vec<_>>().into_iter().collect::<Result<()>>()
    })?;

    let mut ended = ended.into_inner()?;
    print!("\n{}", table(&mut ended));
    println!("Miri took {}", text(began.elapsed()));
    let failed: Vec<_> = ended.iter().filter(|it| !it.succeeded).map(|it| &*it.name).collect();
    ensure!(failed.is_empty(), "tests failed under Miri: {}", failed.join(", "));
    Ok(())
}

/// Compiles the programs, so that they do not wait for each other's compiler.
fn build(toolchain: &str, programs: &[Program]) -> Result<()> {
    let names = programs.iter().map(|program| &*program.name).filter(|&name| name != DOC);
    let mut build = cargo_miri(toolchain)?;
    build.args(names.flat_map(programs::target)).arg("--no-run");
    ensure!(cargo::succeeds(build)?, "the tests cannot be built for Miri");
    Ok(())
}

fn command(toolchain: &str, program: &Program) -> Result<Command> {
    let mut command = cargo_miri(toolchain)?;
    match &*program.name {
        DOC => command.arg("--doc"),
        name => command.args(programs::target(name)),
    };
    command.arg("--").args(&program.args).stdin(Stdio::null());
    Ok(command)
}

fn cargo_miri(toolchain: &str) -> Result<Command> {
    let sh = cargo::shell()?;
    let flags = match std::env::var("MIRIFLAGS") {
        Ok(flags) => format!("{FLAGS} {flags}"),
        Err(_) => FLAGS.to_owned(),
    };
    let test = cmd!(
        sh,
        "rustup run {toolchain} cargo miri test --config {NO_OPTIMISATION} --package percpu-core"
    );
    // Tests that panic on purpose would take seconds to look their stack up.
    Ok(test.env("MIRIFLAGS", flags).env("RUST_BACKTRACE", "0").into())
}

fn text(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds / 60 {
        0 => format!("{seconds} s"),
        minutes => format!("{minutes} min {} s", seconds % 60),
    }
}

/// What each program took, the longest first.
fn table(ended: &mut [Ended]) -> String {
    ended.sort_by_key(|it| std::cmp::Reverse(it.time));
    let mut table = String::new();
    for Ended { name, succeeded, time } in ended {
        let word = if *succeeded { "passed" } else { "FAILED" };
        table += &format!("{name:<24}{word}  {:>12}\n", text(*time));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::LIB;

    #[test]
    fn programs_that_are_named_exist() {
        let all = programs::all().unwrap();
        let named = LEFT_OUT.iter().map(|it| it.0).chain(LONGEST.iter().copied());
        for name in named.chain(QUICK.iter().map(|it| it.0)) {
            assert!(name == DOC || all.iter().any(|it| it == name), "{name}");
        }
        assert!(all.iter().any(|name| name == LIB) && all.iter().any(|name| name == "hotplug"));
    }

    /// Names that no test has would be left out without a word.
    #[test]
    fn tests_of_the_quick_part_exist() {
        let root = cargo::root().join("percpu-core");
        for (program, tests) in QUICK {
            for test in *tests {
                let (module, function) = test.rsplit_once("::").unwrap_or(("", test));
                let file = match (*program, module.strip_suffix("::tests")) {
                    (LIB, module) => format!("src/{}.rs", module.unwrap().replace("::", "/")),
                    ("hotplug", _) => format!("tests/hotplug/{module}.rs"),
                    (program, _) => format!("tests/{program}.rs"),
                };
                let source = std::fs::read_to_string(root.join(&file)).unwrap();
                assert!(source.contains(&format!("fn {function}(")), "{test} is not in {file}");
            }
        }
    }
}
