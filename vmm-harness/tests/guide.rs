//! The guide for guest tests shows files as they are: each block that has a file's name above it is that
//! file of `examples/free-list`, or, where it says so, a part of it.

use std::fs;
use std::path::Path;

/// Where the guide's reader has the checkout, and where the example has it.
const CHECKOUT: [&str; 2] = ["\"../percpu/", "\"../../"];

/// The blocks of a page: the line above, the language, the text.
fn blocks(page: &str) -> Vec<(&str, &str, &str)> {
    let mut blocks = Vec::new();
    let mut rest = page;
    while let Some((before, after)) = rest.split_once("\n```") {
        let (block, after) = after.split_once("\n```\n").expect("every block ends");
        let (language, text) = block.split_once('\n').expect("every block has lines");
        let above = before.trim_end().lines().last().unwrap_or_default();
        blocks.push((above, language, text));
        rest = after;
    }
    blocks
}

/// What the line above a block says of it: a file, and whether it is the whole.
fn file(above: &str) -> Option<(&str, bool)> {
    let (name, rest) = above.strip_prefix('`')?.split_once('`')?;
    match rest {
        ":" => Some((name, true)),
        ", in part:" => Some((name, false)),
        _ => None,
    }
}

#[test]
fn the_guide_shows_the_example_as_it_is() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let example = root.join("examples/free-list");
    let page = fs::read_to_string(root.join("docs/guest-tests.md")).expect("the guide");
    let mut shown = Vec::new();
    for (above, language, text) in blocks(&page) {
        if language == "sh" {
            for command in text.lines().filter(|line| line.starts_with("cp ")) {
                let from = command.split(' ').nth(1).expect("a file to copy");
                let from =
                    from.replace("../percpu", &root.to_string_lossy()).replace("*.rs", "lib.rs");
                assert!(Path::new(&from).is_file(), "`{command}` copies nothing: {from}");
            }
        }
        let Some((name, whole)) = file(above) else { continue };
        let there = fs::read_to_string(example.join(name)).expect(name);
        let text = text.replace(CHECKOUT[0], CHECKOUT[1]);
        match whole {
            true => assert_eq!(there.trim_end(), text, "{name} is another one in the guide"),
            false => assert!(there.contains(&text), "{name} has no such part:\n{text}"),
        }
        shown.push(name.to_owned());
    }
    shown.sort();
    let expected = [
        "Cargo.toml",
        "examples/vm.rs",
        "guest/main.rs",
        "guest/tests.rs",
        "guest/workloads.rs",
        "scenarios/last-but-one.toml",
        "src/lib.rs",
        "tests/guest/judged/mod.rs",
        "tests/guest/main.rs",
    ];
    assert_eq!(shown, expected);
}

#[test]
fn the_bug_of_the_guide_is_one_in_the_function_it_shows() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let page = fs::read_to_string(root.join("docs/guest-tests.md")).expect("the guide");
    let versions: Vec<_> = blocks(&page)
        .into_iter()
        .filter_map(|(_, _, text)| text.split_once("pub fn give(object: Object) {").map(|(_, f)| f))
        .collect();
    let [right, wrong] = versions.as_slice() else { panic!("{} versions", versions.len()) };
    assert!(right.contains("HEAD.cmpxchg(") && !wrong.contains("HEAD.cmpxchg("));
    assert!(wrong.contains("HEAD.write(next.word())"));
}
