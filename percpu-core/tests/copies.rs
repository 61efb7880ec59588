//! Programs of several objects: a program and a plugin that each have a copy of the crate, and a
//! program whose crate is in a Rust dylib. They are built here, from `tests/fixtures/copies`.

#![cfg(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu"))]
#![cfg(not(any(miri, loom, shuttle)))]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A package made of one file of the fixtures.
struct Package {
    name: &'static str,
    /// The target: `[[bin]]`, or `[lib]` with what kind of library it is.
    target: &'static str,
    dependencies: &'static str,
}

/// Builds a workspace of `packages` with `flags` for the compiler. Returns the directory of what was
/// built.
fn build(name: &str, packages: &[Package], flags: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let core = Path::new(env!("CARGO_MANIFEST_DIR"));
    let write = |path: &Path, text: String| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Unchanged files are not built again.
        if !fs::read_to_string(path).is_ok_and(|before| before == text) {
            fs::write(path, text).unwrap();
        }
    };
    let members: Vec<_> = packages.iter().map(|package| package.name).collect();
    // The dependencies of the project, which have been downloaded.
    fs::create_dir_all(&workspace).unwrap();
    fs::copy(core.join("../Cargo.lock"), workspace.join("Cargo.lock")).unwrap();
    let root = format!(
        "[workspace]\nmembers = {members:?}\nresolver = \"3\"\n\n[workspace.dependencies]\n\
         percpu-core = {{ path = {core:?} }}\nlibc = \"0.2\"\n\n[profile.dev]\ndebug = false\n"
    );
    write(&workspace.join("Cargo.toml"), root);
    for Package { name, target, dependencies } in packages {
        let source = core.join("tests/fixtures/copies").join(name).with_extension("rs");
        let manifest = format!(
            "[package]\nname = {name:?}\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
             {target}\nname = {name:?}\npath = {source:?}\n\n[dependencies]\n{dependencies}"
        );
        write(&workspace.join(name).join("Cargo.toml"), manifest);
    }
    let target = workspace.join("target");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--quiet", "--manifest-path"])
        .arg(workspace.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", flags)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    target.join("debug")
}

/// Runs a program and returns what it prints.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (said, errors) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{said}{errors}", output.status);
    said
}

const CORE: &str = "percpu-core.workspace = true\n";

#[test]
fn copies_of_the_crate_do_not_disturb_each_other() {
    let packages = [
        Package { name: "plugin", target: "[lib]\ncrate-type = [\"cdylib\"]", dependencies: CORE },
        Package {
            name: "program",
            target: "[[bin]]",
            dependencies: "percpu-core.workspace = true\nlibc.workspace = true\n",
        },
    ];
    // With and without a program that exports all it has.
    for (name, flags) in [("copies", ""), ("copies-exported", "-C link-arg=-rdynamic")] {
        let built = build(name, &packages, flags);
        let said = run(Command::new(built.join("program")).arg(built.join("libplugin.so")));
        let right = "a CPU of the program is none of the plugin\n\
                     a thread of its own may be\n\
                     this thread is a CPU of another copy of percpu-core in this process: let it \
                     leave that CPU first, or use another thread\n\
                     each copy calls its own CPUs\n";
        assert_eq!(said, right, "{name}");
    }
}

#[test]
fn a_crate_in_a_rust_dylib_is_not_set_up() {
    let packages = [
        Package { name: "library", target: "[lib]\ncrate-type = [\"dylib\"]", dependencies: CORE },
        Package {
            name: "user",
            target: "[[bin]]",
            dependencies: "library = { path = \"../library\" }\n",
        },
    ];
    let built = build("dylib", &packages, "-C prefer-dynamic");
    let std = run(Command::new("rustc").args(["--print", "target-libdir"]));
    let path = std::env::join_paths([Path::new(std.trim()), &built, &built.join("deps")]).unwrap();
    let said = run(Command::new(built.join("user")).env("LD_LIBRARY_PATH", path));
    let right = "the per-CPU areas cannot be set up: percpu-core is part of a Rust dylib, and cannot \
                 reach the per-CPU statics of the program: link it statically (without `-C \
                 prefer-dynamic`, from an rlib), or make the library a cdylib\n";
    assert_eq!(said, right);
}
