//! A guest that crashed or hangs, and left anything where the report looks: records, stacks, registers.

use std::path::Path;
use std::time::Duration;

use kvm_bindings::kvm_regs;

use super::input::Input;
use super::memory::{Changes, guarded};
use crate::crash::{self, Scene};
use crate::image::Image;
use crate::judge::specimen::{self, CPUS, Guest};
use crate::report;
use crate::vm::{Crash, Machine, Registers};

/// Parts of memory that are written, at most.
const MOST_PARTS: u32 = 64;

thread_local! {
    static GUEST: Guest = Guest::within(guarded(specimen::MEMORY));
    static IMAGE: Image = small_image();
}

/// An image with names and lines.
fn small_image() -> Image {
    let bytes = super::seeds::any_image();
    Image::from_bytes(Path::new("image"), bytes).expect("it is a guest")
}

/// What crashed and how, registers of the CPUs, then parts of memory.
pub(super) fn run(bytes: &[u8]) {
    let input = &mut Input::new(bytes);
    GUEST.with(|guest| IMAGE.with(|image| attack(guest, image, input)));
}

fn attack(guest: &Guest, image: &Image, input: &mut Input<'_>) {
    let changes = Changes::of(guest.mem.clone());
    let ring = crate::judge::ring_address(0);
    changes.keep(ring, 128);
    let (what, cpu) = (input.byte(), u32::from(input.byte()) % (CPUS + 1));
    let argument = address(guest, input);
    let registers = (0..CPUS).map(|_| registers(guest, input)).collect();
    let machine = Stopped { registers };
    for _ in 0..MOST_PARTS {
        if input.is_empty() {
            break;
        }
        let at = address(guest, input);
        let at = guest.mem.translate(at).unwrap_or(at);
        let len = input.byte();
        changes.write(at, input.take(len.into()));
    }
    let mut judge = guest.judge();
    judge.drain();
    let scene =
        Scene { vm: &machine, mem: &guest.mem, image, judge: Some(&judge), possible: CPUS + 1 };
    let crash = match what % 9 {
        0 => Crash::Panic(argument),
        1 => Crash::Exception(argument),
        2 => Crash::TripleFault,
        3 => Crash::KvmInternal(argument as u32),
        4 => Crash::StrayAccess { addr: argument, write: what & 0x80 != 0 },
        5 => Crash::BadDoorbell(argument),
        6 => Crash::Stuck(Duration::from_secs(argument >> 32)),
        7 => Crash::Host("it".into()),
        _ => return show(&crash::hang(&scene, "nothing moves", &[cpu])),
    };
    if let Ok(report) = crash::report(&scene, cpu, &crash) {
        show(&report);
    }
}

fn show(report: &report::Crash) {
    let text = report.to_string();
    assert!(!text.is_empty());
    let obeyed = |c: char| c.is_control() && c != '\n';
    assert!(!text.contains(obeyed), "what a terminal would obey: {text:?}");
    assert!(serde_json::to_string(report).is_ok());
}

/// A machine whose CPUs stand somewhere.
struct Stopped {
    registers: Vec<Option<Registers>>,
}

impl Machine for Stopped {
    fn stop(&self) {}

    fn registers(&self) -> Vec<(u32, Option<Registers>)> {
        (0..).zip(&self.registers).map(|(cpu, registers)| (cpu, *registers)).collect()
    }
}

fn registers(guest: &Guest, input: &mut Input<'_>) -> Option<Registers> {
    let present = input.byte();
    if present & 1 == 0 {
        return None;
    }
    let mut at = || address(guest, input);
    let (rip, rbp, rsp, gs_base, cr2) = (at(), at(), at(), at(), at());
    let regs = kvm_regs { rip, rbp, rsp, rax: gs_base, ..Default::default() };
    Some(Registers { regs, cr2, gs_base, cpl: present >> 6 })
}

/// Where a stack, code or a record may be.
fn address(guest: &Guest, input: &mut Input<'_>) -> u64 {
    let (what, offset) = (input.byte(), u64::from(input.half()));
    match what % 7 {
        0 => input.word(),
        1 => 0x2f0_0000 + offset,
        2 => percpu_guest::abi::IMAGE + 0x1000 + offset,
        3 => guest.allocator.wrapping_add(offset),
        4 => percpu_guest::abi::SHARED + 4 * offset,
        5 => percpu_guest::abi::CHUNK_SPACE + offset,
        _ => 0u64.wrapping_sub(offset),
    }
}
