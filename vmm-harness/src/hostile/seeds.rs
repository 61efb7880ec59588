//! Where fuzzers begin: what is well-formed, and what breaks each invariant once.

use std::mem::offset_of;
use std::sync::OnceLock;

use object::{Object, ObjectSymbol};
use percpu_guest::abi::{
    self, ABI_VERSION, EventKind, Holder, ImageHeader, Invariant, MAGIC, SharedHeader, Trial,
};

use super::Seeds;
use super::files::WORKLOADS;
use super::walkers::Step;
use crate::fuzz::Case;
use crate::machine::Scenario;

/// A small image, once somebody has given one.
static SMALL: OnceLock<Vec<u8>> = OnceLock::new();

/// An image of this ABI: the one that seeds were made of, else one without names.
pub(super) fn any_image() -> Vec<u8> {
    SMALL.get().cloned().unwrap_or_else(super::elf::image)
}

/// Makes an image one of this ABI.
fn fit(mut image: Vec<u8>) -> Vec<u8> {
    let Some(at) = header_in(&image) else { return image };
    let mut put = |offset: usize, bytes: &[u8]| {
        if let Some(place) = image.get_mut(at + offset..at + offset + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(offset_of!(ImageHeader, magic), &MAGIC.to_le_bytes());
    put(offset_of!(ImageHeader, version), &ABI_VERSION.to_le_bytes());
    let size = size_of::<SharedHeader>() as u32;
    put(offset_of!(ImageHeader, header_size), &size.to_le_bytes());
    image
}

/// Where in the file the image's header is.
fn header_in(image: &[u8]) -> Option<usize> {
    use object::ObjectSegment;
    let elf = object::File::parse(image).ok()?;
    let symbol = elf.symbols().find(|s| s.name() == Ok(abi::IMAGE_HEADER_SYMBOL))?;
    elf.segments().find_map(|segment| {
        let (start, size) = segment.file_range();
        let offset = symbol.address().checked_sub(segment.address())?;
        (offset < size).then(|| (start + offset) as usize)
    })
}

/// Remembers the small image for targets that need one.
pub(super) fn give(small_image: &[u8]) {
    if !small_image.is_empty() {
        SMALL.get_or_init(|| fit(small_image.to_vec()));
    }
}

pub(super) fn image() -> Seeds {
    vec![("made".into(), super::elf::image()), ("small".into(), any_image())]
}

pub(super) fn header() -> Seeds {
    let mut header = vec![0; size_of::<ImageHeader>()];
    header[..8].copy_from_slice(&MAGIC.to_le_bytes());
    header[offset_of!(ImageHeader, tables)..][..8].copy_from_slice(&abi::IMAGE.to_le_bytes());
    let mut seeds = vec![("bare".to_owned(), header.clone())];
    for which in 0..6u8 {
        let mut seed = header.clone();
        seed.extend([which, 0, 0, 16]);
        seed.extend([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
        // Rows of results, all of them said to be there.
        seed.extend([2, 0, 0, 8, 4, 0, 0, 0, 4, 0, 0, 0]);
        seeds.push((format!("part-{which}"), seed));
    }
    seeds
}

/// An event as it lies in memory.
fn event(seq: u64, kind: u16, cpu: u16, args: [u64; 5]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(seq.to_le_bytes());
    bytes.extend((1000 * seq).to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(cpu.to_le_bytes());
    bytes.extend(7u32.to_le_bytes());
    args.iter().for_each(|arg| bytes.extend(arg.to_le_bytes()));
    bytes
}

pub(super) fn rings() -> Seeds {
    let mut seeds = Seeds::new();
    for &kind in EventKind::ALL {
        let mut seed = vec![1];
        for round in 0..3u64 {
            seed.extend([0, 0x81]);
            seed.extend(event(round + 1, kind as u16, 0, [1, 1, 1, round, 1]));
        }
        seeds.push((format!("{kind:?}").to_lowercase(), seed));
    }
    let mut lost = vec![0, 1, 0x61];
    lost.extend(event(9, 1, 1, [0; 5]));
    lost.extend([0xff; 24]);
    seeds.push(("lost".into(), lost));
    seeds
}

/// A program for the walkers.
#[derive(Default)]
struct Program(Vec<u8>);

impl Program {
    fn step(mut self, step: Step) -> Self {
        self.0.push(step as u8);
        self
    }

    /// An address, as an index into the walkers' places and an offset.
    fn at(mut self, place: u8, offset: u16) -> Self {
        self.0.push(place);
        self.0.extend(offset.to_le_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// A value that is written out.
    fn word(self, word: u64) -> Self {
        self.bytes(&[1]).bytes(&word.to_le_bytes())
    }

    /// Writes a word somewhere.
    fn poke(self, place: u8, offset: u16, word: u64, width: u8) -> Self {
        self.step(Step::Poke).at(place, offset).word(word).bytes(&[width])
    }

    fn announce(self, kind: EventKind, args: [u64; 5]) -> Self {
        let program = self.step(Step::Announce).bytes(&[0, kind as u8]);
        args.into_iter().fold(program, Self::word)
    }

    fn looks(self) -> Self {
        self.step(Step::Drain).step(Step::Instant).step(Step::Quiescent)
    }
}

pub(super) fn walkers() -> Seeds {
    let mut seeds = Seeds::new();
    let mut add = |name: String, program: Program| seeds.push((name, program.0));
    add("sound".into(), Program::default().looks());
    // Each word of each structure that is there, spoiled: these are the places in their order.
    for place in 0..49 {
        for word in 0..20 {
            let program = Program::default().looks().poke(place, 8 * word, 0x21, 0).looks();
            add(format!("place-{place}-{word}"), program);
        }
    }
    for &invariant in Invariant::ALL {
        let program =
            Program::default().announce(EventKind::Violation, [invariant as u64, 1, 0x1000, 5, 6]);
        add(format!("guest-{invariant:?}").to_lowercase(), program.looks());
    }
    for &kind in EventKind::ALL {
        for first in 0..3 {
            let program = Program::default().looks();
            let program = program.announce(kind, [first, 64, 8, 1, 0]).looks();
            add(format!("event-{kind:?}-{first}").to_lowercase(), program);
        }
    }
    // Lives of references, whose words lie in memory that nothing else uses.
    for holder in [Holder::Mount, Holder::Ref].map(|holder| holder as u64) {
        let object = abi::IMAGE + 0xf0_0000;
        let mut program = Program::default().looks();
        for kind in [
            EventKind::LifeBegun,
            EventKind::LifeEnding,
            EventKind::LifeResumed,
            EventKind::LifeEnding,
        ] {
            program = program.announce(kind, [holder, object, 100, 1, 0]).looks();
        }
        program = program.announce(EventKind::LifeEnded, [holder, object, 0, 1, 0]).looks();
        add(format!("life-{holder}"), program);
    }
    // Sums of each kind, in the static part.
    for kind in 0..6 {
        let program = Program::default();
        let program = program.announce(EventKind::SumInit, [kind, 0x200_1010, 90, 0, 0]);
        add(format!("sum-{kind}"), program.looks());
    }
    // Counters that a plug is judged by.
    let still = |cpu: u8| {
        let program = Program::default();
        let program = program.announce(EventKind::CounterInit, [0x2f0_0000, 0, 3, u64::MAX, 1]);
        let program = program.looks().step(Step::Plug).bytes(&[0, cpu]);
        program.step(Step::Plug).bytes(&[1, cpu])
    };
    for cpu in 0..4 {
        add(format!("plug-{cpu}"), still(cpu).step(Step::Plug).bytes(&[2, cpu]).looks());
        add(format!("unplug-{cpu}"), still(cpu).step(Step::Plug).bytes(&[3, cpu]).looks());
    }
    for &trial in Trial::ALL {
        let code = (trial as u8) << 1;
        let program = Program::default().looks().step(Step::Trial).bytes(&[code, 20]);
        let program = program.poke(4, 32, 5, 1);
        let program = program.step(Step::Trial).bytes(&[code | 1, 20, 0]);
        add(format!("trial-{trial:?}").to_lowercase(), program.looks());
    }
    for depth in 0..4 {
        let program = Program::default().step(Step::Map).word(abi::CHUNK_SPACE).word(7);
        add(format!("map-{depth}"), program.bytes(&[depth]).looks());
    }
    seeds
}

pub(super) fn crash() -> Seeds {
    // A record in unused memory; CPU 0 stands in code, with a stack of two frames.
    (0..9u8)
        .map(|what| {
            let mut seed = vec![what, 0, 1, 0, 0];
            for _ in 0..2 {
                // Code; frame pointer, stack pointer; GS base; fault.
                seed.extend([0xc1, 2, 8, 0, 1, 0x40, 0, 1, 0x20, 0, 1, 0, 1, 0, 0x10, 0]);
            }
            seed.extend([0, 0]);
            let mut stack = Vec::new();
            for word in
                [0x2f0_0080u64, abi::IMAGE + 0x1010, 0, 0, 0, 0, 0, 0, 0, abi::IMAGE + 0x1020]
            {
                stack.extend(word.to_le_bytes());
            }
            seed.extend([1, 0x40, 0, stack.len() as u8]);
            seed.extend(stack);
            let mut record = Vec::new();
            record.extend(0x2f0_0040u64.to_le_bytes());
            record.extend(20u64.to_le_bytes());
            record.extend(b"a panic at line 20: \x1b[2J");
            seed.extend([1, 0, 0, record.len() as u8]);
            seed.extend(record);
            (format!("what-{what}"), seed)
        })
        .collect()
}

pub(super) fn turns() -> Seeds {
    let mut seeds = Seeds::new();
    for how in [0u8, 5, 70, 135, 200, 255] {
        for part in 1..11u8 {
            let mut seed = vec![3, 0, how];
            let write = |seed: &mut Vec<u8>| {
                seed.extend([part, 0, 0, 64]);
                seed.extend((0..8u64).flat_map(|n| (0x10_0007 + n * 4096).to_le_bytes()));
                seed.push(0);
            };
            write(&mut seed);
            seed.extend([1; 15].repeat(usize::from(how) % 32));
            // So many stays, and something in them.
            seed.extend([1, 48, 0, 8, 9, 0, 0, 0, 0, 0, 0, 0]);
            seed.extend([10, 0, 0, 64]);
            seed.extend([5; 64]);
            write(&mut seed);
            seeds.push((format!("how-{how}-part-{part}"), seed));
        }
    }
    seeds
}

pub(super) fn files() -> Seeds {
    let mut seeds = Seeds::new();
    for seed in 0..12 {
        let case = Case { failure: None, scenario: Scenario::from_seed(seed, &WORKLOADS) };
        seeds.push((
            format!("scenario-{seed}"),
            [b"\0".as_slice(), case.text().as_bytes()].concat(),
        ));
    }
    let given = include_bytes!("seeds/given.toml");
    seeds.push(("given".into(), [b"\0".as_slice(), given].concat()));
    let report = include_bytes!("seeds/report.json");
    seeds.push(("report".into(), [b"\x01".as_slice(), report].concat()));
    seeds
}
