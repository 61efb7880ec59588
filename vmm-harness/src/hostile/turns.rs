//! What a guest whose CPUs run one at a time leaves behind: its clock, who runs, what CPUs did, page
//! tables, how far its rings and frames reach; and the picture that is drawn of it.

use std::mem::offset_of;

use percpu_guest::abi::{
    BootParams, CHUNK_SPACE, Event, EventRing, LogRing, PAGE_TABLES, SHARED, Shared, SharedHeader,
    Turns,
};

use super::files::WORKLOADS;
use super::input::Input;
use super::memory::{Changes, guarded};
use crate::diag::Symbols;
use crate::fuzz::{Picture, Style};
use crate::judge::{Violation, kind};
use crate::machine::{Ending, Scenario, looks};
use crate::memory::GuestMem;
use crate::report;

const MEMORY: usize = 24 << 20;
/// Parts that are written before the machine has booted, and after a run, at most.
const MOST_PARTS: u32 = 48;
/// Events of a trace.
const MOST_EVENTS: u32 = 32;
/// Where frames begin, in a guest in which all is well.
const FRAMES: u64 = 20 << 20;

thread_local! {
    static MEM: GuestMem = guarded(MEMORY);
}

/// The scenario's seed and how it ended, parts of memory, events, and parts of memory once more.
pub(super) fn run(bytes: &[u8]) {
    MEM.with(|mem| attack(Changes::of(mem.clone()), &mut Input::new(bytes)));
}

fn attack(changes: Changes, input: &mut Input<'_>) {
    let mem = changes.mem();
    let scenario = Scenario::from_seed(input.half().into(), &WORKLOADS);
    let how = input.byte();
    // What the host writes; all else that it puts back is what it was.
    changes.keep(SHARED + offset_of!(Shared, turns) as u64, offset_of!(Turns, stays));
    let word = |at: u64, value: u64| changes.write(at, &value.to_le_bytes());
    let boot = SHARED + offset_of!(SharedHeader, boot) as u64;
    word(boot + offset_of!(BootParams, memory_start) as u64, FRAMES);
    word(SHARED + offset_of!(SharedHeader, frames_end) as u64, FRAMES + 0x4000);
    parts(&changes, input);
    let writable = FRAMES + u64::from(how)..FRAMES + 0x1000;
    let booted = looks::Booted::look(mem, std::slice::from_ref(&writable), MEMORY as u64);
    let events = (0..u32::from(how) % MOST_EVENTS).map(|_| event(input)).collect();
    parts(&changes, input);
    if let Ok((outcome, strikes)) = looks::after_run(mem, &scenario, events, ending(how)) {
        let style = Style { width: (how & 1 != 0).then_some(how.into()), colours: how & 2 != 0 };
        let mut picture = Picture::new(Symbols::load(b""), style);
        let mut text = Vec::new();
        let drawing = picture.drawing((&scenario, &outcome), &strikes, how & 4 != 0);
        let drawn = picture.draw(&mut text, &drawing);
        drawn.expect("a vector takes all");
        for entry in outcome.trace.entries() {
            assert!(!entry.to_string().is_empty());
        }
    }
    if let Ok(booted) = booted {
        let _ = booted.put_back();
    }
}

fn ending(how: u8) -> Ending {
    match how >> 6 {
        0 => Ending::Held,
        1 => Ending::Broken(vec![Violation::new(kind::MEMORY, "it", "it is broken")]),
        2 => Ending::Crashed(report::Crash { text: "it crashed".into(), cpus: Vec::new() }),
        _ => Ending::Hung(report::Crash { text: "it hangs".into(), cpus: Vec::new() }),
    }
}

fn event(input: &mut Input<'_>) -> Event {
    Event {
        seq: input.half().into(),
        tsc: input.half().into(),
        kind: input.byte().into(),
        cpu: input.byte().into(),
        thread: input.byte().into(),
        args: std::array::from_fn(|_| input.half().into()),
    }
}

/// Parts of memory: which, where in it, how long, and bytes.
fn parts(changes: &Changes, input: &mut Input<'_>) {
    for _ in 0..MOST_PARTS {
        let which = input.byte();
        let n = u64::from(which >> 4);
        let of_ring = |rings: usize, each: usize| rings as u64 + n % 4 * each as u64;
        let at = match which % 11 {
            0 => return,
            1 => SHARED + offset_of!(Shared, turns) as u64,
            2 => SHARED + offset_of!(SharedHeader, steps) as u64,
            3 => SHARED + offset_of!(SharedHeader, frames_end) as u64,
            4 => SHARED + offset_of!(SharedHeader, boot) as u64,
            5 => PAGE_TABLES + 8 * (CHUNK_SPACE >> 39 & 511),
            6 => PAGE_TABLES + 4096 * n,
            7 => FRAMES + 4096 * n,
            8 => SHARED + of_ring(offset_of!(Shared, events), size_of::<EventRing>()),
            9 => SHARED + of_ring(offset_of!(Shared, logs), size_of::<LogRing>()),
            _ => {
                let stays = offset_of!(Shared, turns) + offset_of!(Turns, stays);
                SHARED + stays as u64 + 64 * n
            }
        };
        let (offset, len) = (u64::from(input.half()), input.byte());
        changes.write(at + offset, input.take(len.into()));
    }
}
