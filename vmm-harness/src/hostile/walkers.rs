//! The judge, in the memory of a guest in which all was well until somebody wrote here and there.
//!
//! The bytes are a program: words and events that are written, and looks of the judge between them.
//! Addresses and values are made of those that mean something in this guest, and a little more.

use std::mem::{offset_of, size_of};

use percpu_guest::abi::{
    self, BootParams, EVENT_RING_LEN, Event, EventRing, PAGE_TABLES, PlugError, SHARED, Shared,
    SharedHeader, Trial, control_block,
};

use super::input::Input;
use super::memory::{Changes, guarded};
use crate::judge::specimen::{self, CPUS, Guest};
use crate::judge::{Judge, TrialEnd, ring_address};

/// Steps of a program: a longer one shows nothing more.
const MOST_STEPS: u32 = 256;
/// Looks of the judge in it: each takes milliseconds.
const MOST_LOOKS: u32 = 12;
/// Bytes that one step writes.
const MOST_BYTES: usize = 256;
/// Memory that looks change: the places of the rings' readers.
const RING_HEAD: usize = offset_of!(EventRing, slots);

thread_local! {
    static GUEST: Guest = Guest::within(guarded(specimen::MEMORY));
}

/// Runs a program.
pub(super) fn run(bytes: &[u8]) {
    GUEST.with(|guest| Attack::new(guest).run(&mut Input::new(bytes)));
}

/// What a step does. A program has it as its number.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Step {
    /// Writes a word.
    Poke,
    /// Writes bytes.
    Fill,
    /// Announces something, in order.
    Announce,
    /// Writes a whole event into a ring.
    Event,
    /// Follows the events.
    Drain,
    /// Looks at any instant.
    Instant,
    /// Looks at rest.
    Quiescent,
    /// Has a plug judged.
    Plug,
    /// Has a trial judged.
    Trial,
    /// Maps a page.
    Map,
    /// Flips a bit.
    Flip,
}

impl Step {
    const ALL: [Self; 11] = [
        Self::Poke,
        Self::Fill,
        Self::Announce,
        Self::Event,
        Self::Drain,
        Self::Instant,
        Self::Quiescent,
        Self::Plug,
        Self::Trial,
        Self::Map,
        Self::Flip,
    ];
}

/// Addresses that mean something, in an order that seeds know.
pub(super) fn places(guest: &Guest) -> Vec<u64> {
    let roots = SHARED + (offset_of!(Shared, header) + offset_of!(SharedHeader, roots)) as u64;
    let mut places = vec![
        0,
        SHARED,
        roots,
        PAGE_TABLES,
        guest.allocator,
        guest.areas,
        guest.offsets,
        guest.units,
        guest.slots,
        guest.masks,
        guest.batch,
        guest.counter_head,
        guest.cache_table,
        control_block(0),
        SHARED + offset_of!(Shared, ledger) as u64,
        SHARED + offset_of!(Shared, accounts) as u64,
        specimen::TEMPLATE,
        specimen::FIRST,
        abi::CHUNK_SPACE,
        u64::MAX - 0xff,
    ];
    places.extend(&guest.counters);
    places.extend(&guest.caches);
    for chunk in &guest.chunks {
        let view = &chunk.view;
        let maps = [view.alloc_map, view.bound_map, view.live_map, view.populated];
        places.extend([chunk.address, view.blocks, view.ledger].into_iter().chain(maps));
    }
    places.extend((0..CPUS).map(ring_address));
    places
}

/// A guest, the judge that looks at it, and what has to be undone.
struct Attack<'g> {
    guest: &'g Guest,
    places: Vec<u64>,
    changes: Changes,
    judge: Judge,
    seq: u64,
    looks_left: u32,
}

impl<'g> Attack<'g> {
    fn new(guest: &'g Guest) -> Self {
        let changes = Changes::of(guest.mem.clone());
        for cpu in 0..CPUS {
            changes.keep(ring_address(cpu), RING_HEAD);
        }
        // A ledger of 512 rows takes longer to read than all the rest.
        let boot = SHARED + offset_of!(SharedHeader, boot) as u64;
        changes.write(boot + offset_of!(BootParams, threads) as u64, &16u32.to_le_bytes());
        changes.write(boot + offset_of!(BootParams, workloads) as u64, &1u32.to_le_bytes());
        let (judge, seq) = (guest.judge(), guest.events());
        Self { guest, places: places(guest), changes, judge, seq, looks_left: MOST_LOOKS }
    }

    fn run(mut self, input: &mut Input<'_>) {
        for _ in 0..MOST_STEPS {
            if input.is_empty() {
                break;
            }
            self.step(input);
        }
        self.look();
    }

    /// All there is to see, and to say of it.
    fn look(&mut self) {
        self.judge.drain();
        self.judge.check_instant();
        self.judge.check_quiescent();
        for violation in self.judge.violations() {
            assert!(!violation.to_string().is_empty());
        }
        for cpu in 0..CPUS {
            for event in self.judge.history(cpu) {
                assert!(!crate::judge::EventLine(&event).to_string().is_empty());
            }
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let step = Step::ALL[input.byte() as usize % Step::ALL.len()];
        if matches!(step, Step::Instant | Step::Quiescent | Step::Plug | Step::Trial) {
            let Some(left) = self.looks_left.checked_sub(1) else { return };
            self.looks_left = left;
        }
        match step {
            Step::Poke => {
                let at = self.physical(input);
                let value = self.value(input);
                let bytes = value.to_le_bytes();
                // Narrow fields, as those of a chunk, have neighbours.
                let len = [8, 4, 2, 1][input.byte() as usize % 4];
                self.changes.write(at, &bytes[..len]);
            }
            Step::Fill => {
                let at = self.physical(input);
                let len = usize::from(input.byte()).min(MOST_BYTES);
                self.changes.write(at, input.take(len));
            }
            Step::Announce => {
                self.seq = self.seq.wrapping_add(1);
                let (cpu, kind) = (input.byte() % CPUS as u8, input.byte());
                let args = std::array::from_fn(|_| self.value(input));
                let event = Event {
                    seq: self.seq,
                    tsc: self.seq.wrapping_mul(1000),
                    kind: kind.into(),
                    cpu: cpu.into(),
                    thread: 7,
                    args,
                };
                self.write_event(cpu.into(), &event);
            }
            Step::Event => {
                let ring = u32::from(input.byte()) % CPUS;
                let event = Event {
                    seq: self.value(input),
                    tsc: input.word(),
                    kind: input.half(),
                    cpu: input.half(),
                    thread: input.half().into(),
                    args: std::array::from_fn(|_| self.value(input)),
                };
                self.write_event(ring, &event);
            }
            Step::Drain => drop(self.judge.drain()),
            Step::Instant => self.judge.check_instant(),
            Step::Quiescent => drop(self.judge.check_quiescent()),
            Step::Plug => self.plug(input),
            Step::Trial => self.trial(input),
            Step::Map => {
                let (virt, phys) = (self.value(input), self.value(input));
                self.map(virt, phys, input.byte());
            }
            Step::Flip => {
                let at = self.physical(input);
                let bit = input.byte();
                if let Ok(word) = self.guest.mem.load_u64(at & !7) {
                    self.changes.write(at & !7, &(word ^ 1 << (bit % 64)).to_le_bytes());
                }
            }
        }
    }

    /// An address out of those that mean something.
    fn address(&self, input: &mut Input<'_>) -> u64 {
        let place = self.places[input.byte() as usize % self.places.len()];
        place.wrapping_add(input.half().into())
    }

    /// Where that is in memory.
    fn physical(&self, input: &mut Input<'_>) -> u64 {
        let address = self.address(input);
        self.guest.mem.translate(address).unwrap_or(address)
    }

    fn value(&self, input: &mut Input<'_>) -> u64 {
        match input.byte() % 6 {
            0 => input.byte().into(),
            1 => input.word(),
            2 => self.address(input),
            3 => u64::MAX - u64::from(input.byte()),
            // A per-CPU pointer of the first chunk's.
            4 => specimen::TEMPLATE.wrapping_add(input.half().into()),
            _ => 1u64.rotate_left(input.byte().into()).wrapping_sub(input.byte().into()),
        }
    }

    fn write_event(&mut self, ring: u32, event: &Event) {
        let base = ring_address(ring);
        let Ok(head) = self.guest.mem.load_u64(base) else { return };
        let slot = base
            + offset_of!(EventRing, slots) as u64
            + head % EVENT_RING_LEN as u64 * size_of::<Event>() as u64;
        let mut bytes = Vec::with_capacity(size_of::<Event>());
        bytes.extend(event.seq.to_le_bytes());
        bytes.extend(event.tsc.to_le_bytes());
        bytes.extend(event.kind.to_le_bytes());
        bytes.extend(event.cpu.to_le_bytes());
        bytes.extend(event.thread.to_le_bytes());
        event.args.iter().for_each(|arg| bytes.extend(arg.to_le_bytes()));
        self.changes.write(slot, &bytes);
        self.changes.write(base, &head.wrapping_add(1).to_le_bytes());
    }

    fn plug(&mut self, input: &mut Input<'_>) {
        let (what, cpu) = (input.byte(), input.byte().into());
        let result = match PlugError::from_code((what >> 4).into()) {
            Some(error) => Err(error),
            None => Ok(()),
        };
        match what % 4 {
            0 => self.judge.before_plug(),
            1 => self.judge.during_unplug(),
            2 => self.judge.after_plug(cpu, result),
            _ => self.judge.after_unplug(cpu, result),
        }
    }

    fn trial(&mut self, input: &mut Input<'_>) {
        let (what, tried) = (input.byte(), input.byte());
        let Some(trial) = Trial::from_code((what >> 1).into()) else { return };
        if what & 1 == 0 {
            self.judge.before_trial(trial);
        } else {
            let as_meant = tried.wrapping_sub(input.byte() % 4).into();
            let end = TrialEnd { trial, tried: tried.into(), as_meant, command: 1 };
            self.judge.after_trial(&end);
        }
    }

    /// Follows the tables as far as they go, and writes the entry where they end, or above.
    fn map(&mut self, virt: u64, phys: u64, depth: u8) {
        let mut table = PAGE_TABLES;
        for level in (0..4u32).rev() {
            let entry = table + (virt >> (12 + 9 * level) & 511) * 8;
            let Ok(next) = self.guest.mem.load_u64(entry) else { return };
            if level == u32::from(depth) % 4 || next & 1 == 0 || next & 0x80 != 0 {
                return self.changes.write(entry, &phys.to_le_bytes());
            }
            table = next & 0x000f_ffff_ffff_f000;
        }
    }
}
