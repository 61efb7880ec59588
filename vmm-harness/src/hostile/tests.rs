//! Every target survives its seeds and what was once found.

use super::TARGETS;
use super::walkers::places;
use crate::judge::specimen::Guest;

/// Seeds of a target that a test runs.
const MOST_SEEDS: usize = 60;

#[test]
fn seeds_are_survived() {
    for target in &TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{}", target.name);
        // Debug builds take long.
        let step = seeds.len().div_ceil(MOST_SEEDS);
        for (_, bytes) in seeds.iter().step_by(step) {
            (target.run)(bytes);
        }
        (target.run)(&[]);
    }
}

#[test]
fn what_was_found_is_survived() {
    let found = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/found");
    for directory in std::fs::read_dir(found).expect("a directory").flatten() {
        let name = directory.file_name();
        let target = super::target(name.to_str().expect("the name of a target"));
        for file in std::fs::read_dir(directory.path()).expect("a directory").flatten() {
            println!("{}", file.path().display());
            (target.run)(&std::fs::read(file.path()).expect("a file"));
        }
    }
}

#[test]
fn the_image_of_no_compiler_is_a_guest() {
    let bytes = super::elf::image();
    let image = crate::image::Image::from_bytes("x".as_ref(), bytes).expect("a guest");
    assert_eq!(image.tests().len(), 1);
    assert_eq!(image.tests()[0].name, "one::test");
    assert_eq!(image.edges().map(|edges| edges.len()), Some(2));
    let symbols = crate::diag::Symbols::load(image.bytes());
    assert_eq!(symbols.describe(image.header().entry + 1), "percpu_guest::main+0x1");
}

#[test]
fn attacks_leave_no_trace() {
    let run = super::target("walkers").run;
    run(&[0, 4, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0]);
    // A judge of a guest that was not put back would see it.
    run(&[]);
    assert_eq!(places(&Guest::new()).len(), 49);
}

#[test]
fn seeds_are_no_rubbish() {
    let workloads = crate::image::Workloads::named(&super::files::WORKLOADS);
    let files = (super::target("files").seeds)();
    for (name, bytes) in files {
        let (path, bytes) = (name.as_ref(), &bytes[1..]);
        let read = match name.as_str() {
            "report" => crate::fuzz::report_from_bytes(path, bytes).map(drop),
            _ => crate::fuzz::Case::from_bytes(path, bytes, &workloads).map(drop),
        };
        read.expect("well-formed");
    }
}
