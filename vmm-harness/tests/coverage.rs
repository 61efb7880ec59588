//! Coverage from outside: what runs of the guest reach, and what the next run does not inherit.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use vmm_harness::coverage::{Coverage, Covered, Features, FileCoverage, SourceCoverage};
use vmm_harness::diag::Symbols;
use vmm_harness::fuzz::Machines;
use vmm_harness::host::{EngineChoice, Host, RingChoice};
use vmm_harness::image::Image;
use vmm_harness::machine::{Ending, Random, Scenario};

fn machine_for(test: impl FnOnce(&Image, Machines<'_>)) {
    let image = Image::open(&common::steps_image()).expect("a guest image");
    let choice = if common::no_vm() { EngineChoice::Threads } else { EngineChoice::Kvm };
    let host = Host::find(choice).expect("a host that runs guests");
    let (ring, _) = host.choose_ring(RingChoice::Auto);
    test(&image, Machines::new(&image, host.engine, ring));
}

/// A scenario of one workload without plugs.
fn only(workload: &str) -> Scenario {
    let mut scenario = Scenario::from_seed(1, &[workload]);
    scenario.plugs.clear();
    scenario
}

/// Whether any of these edges leads into a function of that file and name, be it one that was inlined.
fn reaches(image: &Image, edges: &Covered, file: &str, function: &str) -> bool {
    let symbols = Symbols::load(image.bytes());
    let places = image.edges().expect("an instrumented image").places();
    edges.iter().flat_map(|edge| symbols.frames(places[edge])).any(|frame| {
        frame.file.is_some_and(|path| path.ends_with(file))
            && frame.function.is_some_and(|name| name.contains(function))
    })
}

#[test]
fn a_run_reaches_what_its_workload_does_and_nothing_of_the_run_before() {
    machine_for(|image, mut machines| {
        let mut edges = |workload| machines.run(&only(workload)).expect("a run").features.edges;
        let (statics, alloc) = (edges("statics"), edges("alloc"));
        assert!(statics == edges("statics"), "what is reached depends on the run before");
        // Pages are put behind areas that are allocated, and boot allocates none.
        let populates =
            |edges| reaches(image, edges, "percpu-core/src/alloc/memory.rs", "populate");
        assert!(populates(&alloc), "allocations populate no page");
        assert!(!populates(&statics), "static variables populate a page");
        // What boot reached is part of either.
        let sets_up = |edges| reaches(image, edges, "percpu-core/src/area/first_chunk.rs", "");
        assert!(sets_up(&alloc) && sets_up(&statics), "boot is missing");
    });
}

#[test]
fn a_report_has_the_functions_that_runs_reached_and_those_that_none_did() {
    machine_for(|image, mut machines| {
        let mut coverage = Coverage::of(image.edges().expect("an instrumented image"));
        coverage.add(&machines.run(&only("statics")).expect("a run").features);
        let populate = |source: &SourceCoverage| {
            let of = |file: &FileCoverage| file.path == "percpu-core/src/alloc/memory.rs";
            let file = source.files.iter().find(|file| of(file)).expect("the file is in the image");
            let function = file.functions.iter().find(|function| function.name == "populate");
            let function = function.expect("the function is in the image");
            let text = file.source.as_ref().expect("the source is here");
            let first = text.lines().nth(function.line as usize - 1).expect("its first line");
            assert!(first.contains("fn populate"), "{first}");
            (function.reached, file.lines[&function.line])
        };
        let source = SourceCoverage::of(image, &coverage).expect("coverage of the image");
        assert_eq!(populate(&source), (false, false));
        coverage.add(&machines.run(&only("alloc")).expect("a run").features);
        let source = SourceCoverage::of(image, &coverage).expect("coverage of the image");
        assert_eq!(populate(&source), (true, true));

        assert!(source.files.len() > 20, "{} files", source.files.len());
        let (lines, edges) = (source.lines(), source.edges());
        // Both kinds are there in number.
        for part in [lines, edges, source.functions()] {
            assert!(part.reached > 50 && part.reached < part.all, "{part:?}");
        }
    });
}

#[test]
fn changed_scenarios_run_and_hold() {
    machine_for(|image, mut machines| {
        let workloads = image.workloads().for_seeds();
        let mut random = Random::new(1, 0);
        let mut known = Features::new();
        let mut kept: Vec<_> = (0..4).map(|seed| Scenario::from_seed(seed, &workloads)).collect();
        let mut additions = 0;
        for i in 0..60 {
            let mut scenario = kept[i % kept.len()].clone();
            if i % 5 == 4 {
                scenario = scenario.splice(&kept[0], &mut random);
            }
            scenario.mutate(&mut random, &workloads);
            let outcome = machines.run(&scenario).expect("a run");
            assert!(matches!(outcome.ending, Ending::Held), "{scenario}: {:?}", outcome.ending);
            if known.add(&outcome.features).any() {
                additions += 1;
                kept.push(scenario);
            }
        }
        assert!(additions > 5, "{additions} of 60 runs reached something new");
    });
}

fn harness(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmm-harness"))
        .env("PERCPU_ENGINE", common::engines()[0])
        .args(args)
        .env_remove("PERCPU_GUEST_IMAGE")
        .output()
        .expect("vmm-harness can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_campaign_and_the_sum_of_its_shards_write_the_same_lines() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("coverage");
    std::fs::create_dir_all(&directory).expect("a directory");
    let path = |name: &str| directory.join(name).to_str().expect("UTF-8").to_owned();
    let read = |name: &str| std::fs::read_to_string(path(name)).expect("a report");
    let image = common::steps_image();
    let image = image.to_str().expect("UTF-8");
    let fuzz = |seeds: &str, more: &[&str]| {
        let output = harness(&[&["fuzz", "--image", image, "--seeds", seeds][..], more].concat());
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    };
    fuzz("0..6", &["--lcov", &path("all.info"), "--html", &path("all.html")]);
    fuzz("0..3", &["--json", &path("a.json")]);
    fuzz("3..6", &["--json", &path("b.json")]);
    let merge = |more: &[&str]| {
        harness(&[&["fuzz-merge", &path("a.json"), &path("b.json")][..], more].concat())
    };
    let output = merge(&["--image", image, "--lcov", &path("sum.info")]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let all = read("all.info");
    assert!(all.contains("SF:percpu-core/src/hotplug/control.rs"), "{all}");
    assert!(all.lines().any(|line| line.starts_with("DA:") && line.ends_with(",1")), "{all}");
    assert!(read("sum.info") == all, "the shards' lines are not those of the campaign");
    let page = read("all.html");
    assert!(page.contains("hotplug/control.rs") && page.ends_with("</html>\n"));

    let output = merge(&["--lcov", &path("none.info")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("give it by --image"), "{}", text(&output.stderr));
    // Without the guest a page has no source, and all the rest.
    let output = merge(&["--html", &path("sum.html")]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let page = read("sum.html");
    assert!(page.contains("seeds 0..6") && !page.contains("hotplug/control.rs"), "{page}");
    let nowhere = path("none/such/all.html");
    let output = harness(&["fuzz", "--image", image, "--seeds", "0..6", "--html", &nowhere]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains(&nowhere), "{}", text(&output.stderr));
}
