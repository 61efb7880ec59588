//! What hostile guests, images and files are made of: the bodies of the fuzz targets in `fuzz/`.
//!
//! A target takes any bytes, makes something hostile out of them and has the VMM look at it. Nothing is
//! asserted but that it comes back: no panic, no hang, no memory without bound, no access outside of
//! guest memory, which lies between pages that nobody may touch.
//!
//! Beside the targets here are [`seeds`] for them, since a fuzzer that has to find out by itself what a
//! guest looks like never gets behind its first bytes. Tests feed the seeds and all that was ever found
//! (`fuzz/found`) to the targets.

mod crash;
mod elf;
mod files;
mod header;
mod image;
mod input;
mod memory;
mod rings;
mod seeds;
#[cfg(test)]
mod tests;
mod turns;
mod walkers;

use std::path::Path;

pub use input::Input;

/// Where a fuzzer begins: names and bytes.
pub type Seeds = Vec<(String, Vec<u8>)>;

/// What a fuzzer can attack.
pub struct Target {
    /// Its name, as of the file in `fuzz/targets`.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    /// Makes its seeds.
    pub seeds: fn() -> Seeds,
}

/// All targets.
pub const TARGETS: [Target; 7] = [
    Target { name: "image", run: image::run, seeds: seeds::image },
    Target { name: "header", run: header::run, seeds: seeds::header },
    Target { name: "rings", run: rings::run, seeds: seeds::rings },
    Target { name: "walkers", run: walkers::run, seeds: seeds::walkers },
    Target { name: "crash", run: crash::run, seeds: seeds::crash },
    Target { name: "turns", run: turns::run, seeds: seeds::turns },
    Target { name: "files", run: files::run, seeds: seeds::files },
];

/// The target of that name.
///
/// # Panics
/// There is none.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("a target of this name")
}

/// Writes a target's seeds into the directory that `PERCPU_SEEDS` names, if it is set: before the fuzzer
/// reads it.
///
/// # Panics
/// They cannot be written.
pub fn plant(name: &str, small_image: &[u8]) {
    seeds::give(small_image);
    let Some(directory) = std::env::var_os("PERCPU_SEEDS") else { return };
    let directory = Path::new(&directory);
    std::fs::create_dir_all(directory).expect("a directory for seeds");
    for (name, bytes) in (target(name).seeds)() {
        std::fs::write(directory.join(format!("seed-{name}")), bytes).expect("room for seeds");
    }
}
