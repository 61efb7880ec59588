//! Campaigns of the deterministic machine from outside: scenarios and failures in files, the corpus,
//! shards and their sum, and what becomes of all that when something goes wrong.

mod common;
#[path = "common/process.rs"]
mod process;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use object::{Object, ObjectSection, ObjectSymbol};
use process::{Running, alone, ended, harness, json, scratch, vm};
use quick_junit::Report;
use serde_json::Value;

const FOREVER: &str = "1000000";

/// Work, CPUs and plugs; a file of its own, as one writes it by hand.
const SCENARIO: &str = r#"
version = 1

[scenario]
seed = 5
workloads = ["counter", "mount"]
threads = 2
operations = 60
tick_us = 200
topology = { possible = 3, boot_cpus = 2 }

[[scenario.plugs]]
after = 5000
cpu = 2

[scenario.strategy.walk]
turn = 3000
unit = "steps"
"#;

fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(common::steps_image)
}

/// The same guest with a bug: the workload `mount` begins with an instruction that nobody knows.
fn broken_image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut bytes = std::fs::read(image()).expect("the image is readable");
        let elf = object::File::parse(&*bytes).expect("it is an ELF file");
        // A thread's whole life, in which the function `run` of the workload is inlined.
        const LIFE: &str = "percpu_guest::workloads::mount::_::__life";
        let is_run = |name: &str| format!("{:#}", rustc_demangle::demangle(name)) == LIFE;
        let symbol = elf.symbols().find(|symbol| symbol.name().is_ok_and(is_run));
        let address = symbol.expect("the workload is a function").address();
        let place = elf.sections().find_map(|section| {
            let (start, _) = section.file_range()?;
            let offset = address.checked_sub(section.address())?;
            (offset < section.size()).then_some(start + offset)
        });
        let place = place.expect("the function is in the file") as usize;
        bytes[place..place + 2].copy_from_slice(&[0x0f, 0x0b]);
        let path = scratch("broken-guest");
        std::fs::write(&path, bytes).expect("scratch space");
        path
    })
}

fn command(name: &str, image: &Path) -> Command {
    let mut command = harness();
    command
        .arg(name)
        .env("PERCPU_GUEST_IMAGE", image)
        .env("PERCPU_FUZZ_DIR", scratch("kept"))
        .env_remove("RUST_BACKTRACE");
    command
}

fn fuzz() -> Command {
    command("fuzz", image())
}

/// An empty directory for one test.
fn directory(name: &str) -> PathBuf {
    let path = scratch(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("scratch space");
    path
}

/// The names of a directory's files.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<_> =
        entries.map(|entry| name(entry).into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

fn scenario(name: &str, text: &str) -> PathBuf {
    let path = scratch(name);
    std::fs::write(&path, text).expect("scratch space");
    path
}

#[track_caller]
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn files_that_are_no_scenarios_are_refused_with_file_and_line() {
    let refused = |name: &str, text: &str, line: &str, what: &str| {
        let path = scenario(name, text);
        let place = format!("{}, line {line}: ", path.display());
        for command in [
            command("replay", image()).arg(&path),
            command("minimise", image()).arg(&path),
            fuzz().arg("--scenario").arg(&path),
        ] {
            let end = ended(command);
            assert!(end.stderr.contains(what), "{what} is not in: {}", end.stderr);
            end.refused(&place);
        }
    };
    let exchanged = |from: &str, to: &str| {
        assert!(SCENARIO.contains(from));
        SCENARIO.replacen(from, to, 1)
    };
    refused("empty.toml", "", "1", "version");
    refused("cut.toml", &SCENARIO[..SCENARIO.len() / 2], "10", "unclosed");
    refused("binary.toml", "version = 1\n\u{0}\u{1}", "2", "");
    refused("workload.toml", &exchanged("\"mount\"", "\"moutn\""), "6", "no workload \"moutn\"");
    refused("cpu.toml", &exchanged("cpu = 2", "cpu = 3"), "14", "CPU 3 cannot be");
    refused("boot-cpu.toml", &exchanged("cpu = 2", "cpu = 0"), "14", "CPU 0");
    refused("operations.toml", &exchanged("= 60", "= 0"), "8", "give 1 to 10000");
    refused("much.toml", &exchanged("= 60", "= 999999999"), "8", "give 1 to 10000");
    refused("threads.toml", &exchanged("threads = 2", "threads = 400"), "7", "give 1 to 16");
    refused("version.toml", &exchanged("version = 1", "version = 9"), "2", "version 1");
    refused("key.toml", &exchanged("tick_us", "tick_ms"), "9", "unknown field `tick_ms`");

    ended(command("replay", image()).arg("/nonexistent/a.toml")).refused("/nonexistent/a.toml");
    ended(command("replay", image()).arg(env!("CARGO_TARGET_TMPDIR"))).refused("cannot be read");
    ended(command("replay", image()).arg(image())).refused("this is no text");
}

#[test]
fn parts_that_are_no_parts_are_refused() {
    for shard in ["4/4", "1", "0/0", "x/y"] {
        ended(fuzz().args(["--shard", shard])).refused("shard I of N");
    }
    ended(fuzz().args(["--jobs", "0"])).refused("--jobs");
    ended(fuzz().arg("--minimise=-1")).refused("--minimise");
    ended(fuzz().args(["--seeds", "5..5"])).refused("must be larger");
}

#[test]
fn a_given_scenario_runs_with_the_turns_of_many_seeds() {
    let _alone = alone();
    let (file, path) = (scenario("given.toml", SCENARIO), scratch("given.json"));
    let run = |seeds: &str| {
        let mut command = fuzz();
        command.arg("--scenario").arg(&file).args(["--seeds", seeds, "--verify", "--json"]);
        ended(command.arg(&path)).with_status(0);
        json(&path)
    };
    let report = run("10..22");
    assert_eq!((number(&report["runs"]), number(&report["verified"])), (12, 12));
    assert_eq!(report["seeds"], serde_json::json!([[10, 22]]));
    // One plug each, carried out or rolled back.
    assert_eq!(number(&report["plugs"]) + number(&report["failed_plugs"]), 12, "{report:#}");
    let (one, other) = (run("10..11"), run("11..12"));
    assert_ne!(one["steps"], other["steps"]);
    assert_eq!(one["steps"], run("10..11")["steps"]);
    assert!(report["runs_per_second"].as_f64() > Some(1.0), "{report:#}");

    // Little work and a plug long after it is done is no hang.
    let late = SCENARIO.replace("= 60", "= 1").replace("= 5000", "= 90000000");
    let late = scenario("late.toml", &late);
    let end = ended(command("replay", image()).arg(&late)).with_status(0);
    assert!(end.stdout.contains(" 1 plugs (0 failed)"), "{}", end.stdout);

    // Nor are events lost where nothing else calls the host for long.
    let (before, after) = SCENARIO.split_once("[[scenario.plugs]]").expect("there is a plug");
    let strategy = after.split_once("[scenario.strategy").expect("there is a strategy").1;
    let long = format!("{before}[scenario.strategy{strategy}")
        .replace("= 60", "= 10000")
        .replace("mount", "alloc");
    let long = scenario("long.toml", &long);
    let end = ended(command("replay", image()).arg(&long)).with_status(0);
    assert!(end.stdout.contains("10000 operations, 0 plugs"), "{}", end.stdout);

    let replay = ended(command("replay", image()).arg(&file)).with_status(0);
    assert!(replay.stdout.contains("counter and mount of 2 threads each"), "{}", replay.stdout);
}

#[test]
fn a_failure_is_a_file_that_replays_and_is_made_small() {
    let _alone = alone();
    let (kept, path) = (directory("failure"), scratch("failure.json"));
    let fuzz = || {
        let mut command = self::command("fuzz", broken_image());
        command.args(["--seeds", "0..20", "--jobs", "2"]).arg("--keep").arg(&kept);
        command
    };
    let (junit, html) = (scratch("failure.xml"), scratch("failure.html"));
    let mut with_reports = fuzz();
    with_reports.arg("--json").arg(&path).arg("--junit").arg(&junit).arg("--html").arg(&html);
    let end = ended(&mut with_reports).with_status(4);
    let report = json(&path);
    let failure = &report["failures"][0];
    assert_eq!(failure["what"], "crash");
    let text = |path: &Path| std::fs::read_to_string(path).expect("a report was written");
    let junit = Report::deserialize_from_str(&text(&junit)).expect("JUnit's XML");
    assert_eq!((junit.tests, junit.errors, junit.failures), (2, 1, 0));
    // What is wrong, what is left of it, where the CPU stood, and the coverage.
    let page = text(&html);
    for what in ["invalid opcode", "What it fails without", "last\"><th", "mount.rs", "id=\"f0\""] {
        assert!(page.contains(what), "{what} is not on the page");
    }
    assert!(number(&failure["found_after_runs"]) <= number(&report["runs"]), "{report:#}");
    assert!(failure["found_after_seconds"].as_f64() > Some(0.0), "{report:#}");
    // Nothing but the workload matters.
    let minimal = &failure["minimal"];
    assert_eq!(minimal["workloads"], serde_json::json!(["mount"]), "{failure:#}");
    assert_eq!(minimal["switches"], 0, "{failure:#}");
    assert_eq!(minimal["plugs"], 0, "{failure:#}");
    assert!(failure["key"].as_str().is_some_and(|key| key == "crash with mount"), "{failure:#}");

    // Both files go as they say, and another guest does not.
    let file = failure["file"].as_str().expect("a file");
    let minimal = minimal["file"].as_str().expect("a file");
    for file in [file, minimal] {
        assert!(Path::new(file).starts_with(kept.join("failures")), "{file}");
        assert!(names(&kept.join("failures")).iter().any(|name| file.ends_with(name)), "{file}");
        let end = ended(command("replay", broken_image()).arg(file)).with_status(4);
        assert!(end.stdout.contains("\nas in the file: crash"), "{}", end.stdout);
        let end = ended(command("replay", image()).arg(file)).with_status(0);
        assert!(end.stdout.contains("NOT as in the file: held"), "{}", end.stdout);
        assert!(end.stdout.contains("another guest image"), "{}", end.stdout);
    }
    for command in ["replay", "minimise"] {
        assert!(end.stdout.contains(&format!("cargo xtask {command} {file}\n")), "{}", end.stdout);
    }

    // The same guest has to go the same way.
    let text = std::fs::read_to_string(file).expect("readable");
    let hash = failure["hash"].as_str().expect("a hash");
    assert!(text.contains(hash), "{text}");
    let other = scenario("other-hash.toml", &text.replace(hash, "0x0000000000000001"));
    let end = ended(command("replay", broken_image()).arg(&other)).with_status(4);
    assert!(end.stdout.contains("NOT as in the file"), "{}", end.stdout);
    assert!(end.stdout.contains("not deterministic"), "{}", end.stdout);

    // Made small once more, beside the file or where one says.
    let small = kept.join("small.toml");
    ended(command("minimise", broken_image()).arg(file).arg("--out").arg(&small)).with_status(4);
    ended(command("replay", broken_image()).arg(&small)).with_status(4);
    std::fs::remove_file(minimal).expect("it is there");
    ended(command("minimise", broken_image()).arg(file)).with_status(4);
    ended(command("replay", broken_image()).arg(minimal)).with_status(4);
    let held = ended(command("minimise", image()).arg(file)).with_status(0);
    assert!(held.stdout.contains("nothing to minimise"), "{}", held.stdout);

    // Not made small if that is not wanted.
    ended(fuzz().args(["--minimise", "0", "--json"]).arg(&path)).with_status(4);
    assert_eq!(json(&path)["failures"][0]["minimal"], Value::Null);
}

#[test]
fn scenarios_that_reach_something_new_are_kept_and_changed() {
    let _alone = alone();
    let (corpus, path) = (directory("corpus"), scratch("corpus.json"));
    let run = |arguments: &[&str]| {
        let mut command = fuzz();
        command.args(arguments).arg("--corpus").arg(&corpus).arg("--json").arg(&path);
        (ended(&mut command).with_status(0), json(&path))
    };
    let (_, first) = run(&["--seeds", "0..30"]);
    assert_eq!((number(&first["runs"]), number(&first["runs_changed"])), (30, 0));
    let files = names(&corpus);
    assert_eq!(files.len() as u64, number(&first["corpus"]), "{files:?}");
    assert!(files.len() > 1 && files.iter().all(|name| name.ends_with(".toml")), "{files:?}");
    assert!(number(&first["edges"]) > 1000, "{first:#}");

    // What is no scenario is named, left where it is, and changes nothing.
    for (name, text) in [("0-broken.toml", "version = 1\n[scenari"), ("1-empty.toml", "")] {
        std::fs::write(corpus.join(name), text).expect("scratch space");
    }
    let (end, second) = run(&["--seeds", "0..30"]);
    assert!(end.stderr.contains("0-broken.toml, line 2: "), "{}", end.stderr);
    assert!(end.stderr.contains("1-empty.toml, line 1: "), "{}", end.stderr);
    assert_eq!(number(&second["corpus_wrong"]), 2);
    // The same seeds reach nothing new.
    assert_eq!(number(&second["runs_of_corpus"]), files.len() as u64);
    assert_eq!(number(&second["runs"]), 30 + files.len() as u64);
    assert_eq!(second["edges"], first["edges"]);
    assert_eq!(names(&corpus).len(), files.len() + 2);
    assert_eq!(std::fs::read_to_string(corpus.join("1-empty.toml")).expect("left"), "");

    // Without seeds, what is kept is changed.
    let (_, third) = run(&["--time", "6"]);
    assert!(number(&third["runs_changed"]) > 0, "{third:#}");
    assert!(number(&third["edges"]) >= number(&first["edges"]), "{third:#}");
}

#[test]
fn a_corpus_that_cannot_be_written_is_refused_before_the_first_run() {
    let _alone = alone();
    let file = scenario("corpus-is-a-file", "");
    for path in [file.as_path(), Path::new("/proc/corpus")] {
        let mut command = fuzz();
        ended(command.args(["--time", FOREVER, "--corpus"]).arg(path))
            .refused(path.to_str().expect("UTF-8"));
    }
}

/// No file gets longer than a few bytes, as if the disk were full.
fn leave_no_room(command: &mut Command) {
    let limit = libc::rlimit { rlim_cur: 100, rlim_max: 100 };
    // SAFETY: both calls are safe between fork and exec, and touch nothing of this process's memory
    // but the closure's own copy of the limit.
    unsafe {
        command.pre_exec(move || {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

#[test]
fn a_full_disk_ends_the_campaign_with_its_report_and_leaves_whole_files() {
    // The disk is full by a limit on files, of which the memory of a guest without KVM is one.
    let name = "a_full_disk_ends_the_campaign_with_its_report_and_leaves_whole_files";
    let Some(_vm) = vm(name) else { return };
    let corpus = directory("full");
    ended(fuzz().args(["--seeds", "0..3", "--corpus"]).arg(&corpus)).with_status(0);
    let read = |directory: &Path| -> Vec<_> {
        let text = |name: &String| std::fs::read_to_string(directory.join(name));
        names(directory).iter().map(|name| (name.clone(), text(name).expect("readable"))).collect()
    };
    let before = read(&corpus);
    let mut command = fuzz();
    command.args(["--seeds", "3..1000000", "--corpus"]).arg(&corpus);
    leave_no_room(&mut command);
    let end = ended(&mut command).with_status(2);
    let corpus_name = corpus.to_str().expect("UTF-8");
    assert!(end.stderr.contains(corpus_name), "{}", end.stderr);
    assert!(end.stderr.contains("cannot be written") && end.stderr.contains("free space"));
    assert!(end.stdout.contains("\nHELD"), "{}", end.stdout);
    assert_eq!(read(&corpus), before);

    // A failure is reported though its file cannot be written; one that is there stays whole.
    let keep = directory("full-failures");
    let failing = || {
        let mut command = self::command("fuzz", broken_image());
        command.args(["--seeds", "0..20", "--keep"]).arg(&keep);
        command
    };
    ended(&mut failing()).with_status(4);
    let before = read(&keep.join("failures"));
    assert_eq!(before.len(), 2);
    let mut command = failing();
    leave_no_room(&mut command);
    let end = ended(&mut command).with_status(4);
    assert!(end.stdout.contains("FAILED crash"), "{}", end.stdout);
    assert!(end.stdout.contains("cargo xtask replay "), "{}", end.stdout);
    assert!(end.stderr.contains("cannot be written"), "{}", end.stderr);
    assert_eq!(read(&keep.join("failures")), before);
}

#[test]
fn an_interrupt_ends_a_campaign_with_the_report_so_far_and_a_whole_corpus() {
    let _alone = alone();
    let (corpus, path) = (directory("interrupted"), scratch("interrupted.json"));
    let mut command = fuzz();
    command.args(["--time", FOREVER, "--jobs", "2", "--corpus"]).arg(&corpus);
    let mut running = Running::start(command.arg("--json").arg(&path));
    while !running.line().expect("the campaign goes on").contains("a second") {}
    running.interrupt();
    let end = running.end().with_status(0);
    assert!(end.stdout.contains("interrupted") && end.stdout.contains("HELD"), "{}", end.stdout);
    let report = json(&path);
    assert_eq!(report["interrupted"], true);
    // Guests that are threads run one at a time.
    assert_eq!(report["jobs"], if common::no_vm() { 1 } else { 2 });
    assert!(number(&report["runs"]) > 0, "{report:#}");
    assert!(report["seconds"].as_f64() > Some(1.0), "{report:#}");
    let files = names(&corpus);
    assert_eq!(files.len() as u64, number(&report["corpus"]), "{files:?}");
    assert!(files.iter().all(|name| name.ends_with(".toml")), "{files:?}");
    let mut again = fuzz();
    let end = ended(again.args(["--seeds", "0..1", "--corpus"]).arg(&corpus)).with_status(0);
    assert!(!end.stderr.contains("left out"), "{}", end.stderr);
}

#[test]
fn shards_are_together_what_one_campaign_is() {
    let _alone = alone();
    let run = |name: &str, arguments: &[&str]| {
        let path = scratch(name);
        ended(fuzz().args(["--seeds", "0..31"]).args(arguments).arg("--json").arg(&path))
            .with_status(0);
        path
    };
    let whole = json(&run("whole.json", &[]));
    let shards: Vec<_> = ["0/3", "1/3", "2/3"]
        .iter()
        .zip(["shard0.json", "shard1.json", "shard2.json"])
        .map(|(shard, name)| run(name, &["--shard", shard, "--jobs", "2"]))
        .collect();
    let path = scratch("sum.json");
    let merge = || {
        let mut command = harness();
        command.arg("fuzz-merge");
        command
    };
    let end = ended(merge().args(shards.iter().rev()).arg("--json").arg(&path)).with_status(0);
    assert!(end.stdout.contains("seeds 0..31, ") && end.stdout.contains("HELD"), "{}", end.stdout);
    let sum = json(&path);
    for field in ["seeds", "runs", "steps", "exits", "plugs", "failed_plugs", "checks", "edges"] {
        assert_eq!(sum[field], whole[field], "{field}");
    }
    assert_eq!(sum["coverage"], whole["coverage"]);
    assert_eq!(sum["shard"], Value::Null);
    // What was merged can be merged.
    ended(merge().arg(&path).arg(&shards[0])).with_status(0);

    // What is no report of the same guest is refused.
    let text = std::fs::read_to_string(&shards[1]).expect("readable");
    let refused = |name: &str, text: String, what: &str| {
        let path = scenario(name, &text);
        let end = ended(merge().arg(&shards[0]).arg(&path));
        assert!(end.stderr.contains(name), "{}", end.stderr);
        end.refused(what);
    };
    let image = whole["image"].as_str().expect("a name");
    refused("other-image.json", text.replace(image, "0x01"), "another guest image");
    refused("other-schema.json", text.replace("\"schema\": 2", "\"schema\": 1"), "version 1");
    refused("cut.json", text[..text.len() / 2].to_owned(), "no report");
    refused("hello.json", "hello".into(), "line 1: ");
    ended(merge().arg("/nonexistent.json")).refused("/nonexistent.json");
    ended(&mut merge()).with_status(2);
}

#[test]
fn one_bug_that_several_shards_find_is_one_in_their_sum() {
    let _alone = alone();
    let keep = directory("merged");
    let shards = ["0/2", "1/2"].map(|shard| {
        let path = scratch(&format!("bug{}.json", &shard[..1]));
        let mut command = self::command("fuzz", broken_image());
        command.args(["--seeds", "0..40", "--shard", shard, "--keep"]).arg(&keep);
        ended(command.arg("--json").arg(&path)).with_status(4);
        path
    });
    let path = scratch("bugs.json");
    let mut merge = harness();
    let end = ended(merge.arg("fuzz-merge").args(&shards).arg("--json").arg(&path)).with_status(4);
    assert_eq!(end.stdout.matches("FAILED crash").count(), 1, "{}", end.stdout);
    assert!(end.stdout.contains("2 FAILED, 1 of them different"), "{}", end.stdout);
    let failures = json(&path)["failures"].clone();
    assert_eq!(failures.as_array().map(Vec::len), Some(2), "{failures:#}");
    assert_eq!(failures[0]["key"], failures[1]["key"]);
    assert_ne!(failures[0]["seed"], failures[1]["seed"]);
}
