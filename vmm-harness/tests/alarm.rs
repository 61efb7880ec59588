//! A guest that loops where it counts no steps and is not interrupted: the host ends the run and says
//! where the guest stands.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use object::{Object, ObjectSection, ObjectSymbol};

/// Called, through a pointer, on the control CPU for each CPU that goes down.
const FUNCTION: &str = "percpu_core::counter::hotplug::dead";
/// `1: jmp 1b`, of which the instrumentation knows nothing.
const LOOP: [u8; 2] = [0xeb, 0xfe];

/// A copy of the image in which [`FUNCTION`] never returns.
fn image_that_hangs() -> PathBuf {
    let mut bytes = std::fs::read(common::steps_image()).expect("the image can be read");
    let file = object::File::parse(&*bytes).expect("an ELF image");
    let symbol = file
        .symbols()
        .find(|symbol| {
            symbol
                .name()
                .is_ok_and(|name| format!("{:#}", rustc_demangle::demangle(name)) == FUNCTION)
        })
        .expect("the function is in the image");
    let section = symbol.section_index().and_then(|index| file.section_by_index(index).ok());
    let section = section.expect("a function lies in a section");
    let (start, _) = section.file_range().expect("code is in the file");
    let at = (start + symbol.address() - section.address()) as usize;
    bytes[at..at + LOOP.len()].copy_from_slice(&LOOP);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hangs");
    std::fs::write(&path, bytes).expect("a directory for temporary files");
    path
}

#[test]
fn a_guest_that_loops_without_steps_is_ended_and_its_stack_shown() {
    let image = image_that_hangs();
    for engine in common::engines() {
        let began = Instant::now();
        // Takes CPU 1 up and down.
        let output = Command::new(env!("CARGO_BIN_EXE_vmm-harness"))
            .args(["replay", "0", "--engine", engine])
            .env("PERCPU_GUEST_IMAGE", &image)
            .output()
            .expect("vmm-harness can be started");
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(5), "{engine}: {text}");
        assert!(text.contains("HUNG") && text.contains("without a step"), "{text}");
        assert!(text.contains("rip") && text.contains(FUNCTION), "{text}");
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    }
}
