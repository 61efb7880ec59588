//! Compiles the small image.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=image/small.rs");
    let out = env::var("OUT_DIR").expect("cargo sets it");
    let small = Path::new(&out).join("small");
    let rustc = env::var("RUSTC").expect("cargo sets it");
    let made = Command::new(rustc)
        .args(["image/small.rs", "--edition=2024", "--crate-name=small", "--crate-type=bin"])
        .args(["-Cdebuginfo=2", "-Copt-level=2", "-Cpanic=abort", "-Crelocation-model=static"])
        .args(["-Clink-args=-nostartfiles -nostdlib -static -no-pie -Wl,--image-base=0x2000000"])
        .args(["-Clink-args=-Wl,--build-id=none -Wl,-z,norelro", "-o"])
        .arg(&small)
        .status();
    if !made.is_ok_and(|status| status.success()) {
        println!("cargo::warning=the small image cannot be compiled: its seed is missing");
        std::fs::write(small, b"").expect("cargo's directory can be written to");
    }
}
