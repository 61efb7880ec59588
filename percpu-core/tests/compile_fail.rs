//! What must not compile: each program in `tests/ui` is a hole that a crate like this could have.
//! Where the compiler has to complain, the line says so: `//~` and the error's code, or `error` for
//! one that has none; what follows must be in the message.
//!
//! Lines and codes are compared, and not all of the compiler's words, which are others in the next
//! release: trybuild compiles copies of the programs and writes the words beside them.

#![cfg(not(any(miri, loom, shuttle)))]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Says where the programs are, to the run of this program that compiles them.
const COMPILE: &str = "PERCPU_UI_COMPILE";

/// The errors of a program: by line and code, the message.
type Errors = BTreeMap<(usize, String), String>;

#[test]
fn holes_are_closed() {
    if let Some(directory) = std::env::var_os(COMPILE) {
        let programs = Path::new(&directory).join("*.rs");
        return trybuild::TestCases::new().compile_fail(programs);
    }
    let copies = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("ui");
    let _ = fs::remove_dir_all(&copies);
    fs::create_dir_all(&copies).unwrap();
    let programs: Vec<PathBuf> =
        fs::read_dir("tests/ui").unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!programs.is_empty());
    for program in &programs {
        fs::copy(program, copies.join(program.file_name().unwrap())).unwrap();
    }
    let compiled = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holes_are_closed", "--nocapture"])
        .env(COMPILE, &copies)
        .env("TRYBUILD", "overwrite")
        .status();
    assert!(compiled.unwrap().success(), "a program compiles, or cannot be compiled at all");
    for program in &programs {
        let expected = expected(&fs::read_to_string(program).unwrap());
        assert!(!expected.is_empty(), "{} does not say what is wrong", program.display());
        let name = program.with_extension("stderr");
        let said = fs::read_to_string(copies.join(name.file_name().unwrap())).unwrap();
        compare(&expected, &errors(&said), &format!("{}\n\n{said}", program.display()));
    }
}

fn compare(expected: &Errors, errors: &Errors, context: &str) {
    assert!(errors.keys().eq(expected.keys()), "{expected:?} was expected in {context}");
    for (place, text) in expected {
        assert!(errors[place].contains(text), "{text:?} was expected in {context}");
    }
}

/// What a program's comments say.
fn expected(program: &str) -> Errors {
    let lines = program.lines().enumerate();
    let comments = lines.filter_map(|(n, line)| Some((n + 1, line.split_once("//~")?.1.trim())));
    let entry = |(line, comment): (usize, &str)| {
        let (code, text) = comment.split_once(' ').unwrap_or((comment, ""));
        ((line, code.to_owned()), text.to_owned())
    };
    comments.map(entry).collect()
}

/// What the compiler said: `error[E0277]: message`, and in the next line ` --> file:line:column`.
fn errors(stderr: &str) -> Errors {
    let lines: Vec<&str> = stderr.lines().collect();
    let entry = |pair: &[&str]| {
        let (head, message) = pair[0].split_once(": ").filter(|_| pair[0].starts_with("error"))?;
        let code = head.strip_prefix("error[").map_or("error", |code| code.trim_end_matches(']'));
        let mut place = pair[1].trim().strip_prefix("--> ")?.rsplit(':').skip(1);
        Some(((place.next()?.parse().ok()?, code.to_owned()), message.to_owned()))
    };
    lines.windows(2).filter_map(entry).collect()
}

#[test]
fn a_wrong_line_code_or_message_is_seen() {
    let said = "error[E0277]: a per-CPU `u64` cannot be lent\n --> tests/ui/x.rs:2:9\n  |\n\n\
                error: too short\n  --> tests/ui/x.rs:3:1\n";
    let agrees = |program: &str| {
        let (expected, errors) = (expected(program), errors(said));
        std::panic::catch_unwind(|| compare(&expected, &errors, "")).is_ok()
    };
    assert!(agrees("//\nf(); //~ E0277\ng(); //~ error\n"));
    assert!(agrees("//\nf(); //~ E0277 cannot be lent\ng(); //~ error\n"));
    assert!(!agrees("//\nf(); //~ E0277 can be lent\ng(); //~ error\n"));
    assert!(!agrees("//\nf(); //~ E0278\ng(); //~ error\n"));
    assert!(!agrees("//\n\nf(); //~ E0277\ng(); //~ error\n"));
    assert!(!agrees("//\nf(); //~ E0277\ng();\n"));
}
