//! A guest image out of nothing: the header, a test, names and edges, but no code to speak of.

use percpu_guest::abi::{self, ABI_VERSION, MAGIC, SharedHeader};

/// Where its parts are, in memory and, less the image's address, in the file.
const HEADER: u64 = 0x1000;
const ENTRY: u64 = 0x1100;
const NAME: u64 = 0x1140;
const PLACES: u64 = 0x1180;
const WORKLOAD: u64 = 0x11a0;
const CODE: u64 = 0x1200;
const FLAGS: u64 = 0x1300;
const END: u64 = 0x1400;

/// Kinds of sections.
const PROGBITS: u32 = 1;
const SYMTAB: u32 = 2;
const STRTAB: u32 = 3;

struct Section {
    name: &'static str,
    kind: u32,
    flags: u64,
    address: u64,
    offset: u64,
    size: u64,
    link: u32,
    entry: u64,
}

/// The file.
pub(super) fn image() -> Vec<u8> {
    let mut file = vec![0; END as usize];
    let mut put = |at: u64, words: &[u64]| {
        for (n, word) in words.iter().enumerate() {
            file[at as usize + 8 * n..][..8].copy_from_slice(&word.to_le_bytes());
        }
    };
    let at = |offset: u64| abi::IMAGE + offset;
    let version = u64::from(ABI_VERSION) | (size_of::<SharedHeader>() as u64) << 32;
    let (code, tables) = (at(CODE), at(FLAGS));
    put(HEADER, &[MAGIC, version, code, code + 8, tables, at(END), tables, 0, code + 16]);
    put(ENTRY, &[at(NAME), 9, code, 2 << 16 | 1]);
    put(PLACES, &[code, 1, code + 16, 0]);
    put(WORKLOAD, &[at(NAME) + 5, 4, code, code, code, code, 0]);
    file[NAME as usize..][..9].copy_from_slice(b"one::test");
    // A few branches, so that there are basic blocks.
    let steps =
        [0x74, 4, 0x74, 1, 0xc3, 0xc3, 0xff, 0xe0, 0x90, 0xeb, 0x10, 0x90, 0xc3, 0x0f, 0x0b];
    file[CODE as usize..][..steps.len()].copy_from_slice(&steps);

    let mut names = vec![0];
    let mut name_of = |name: &str| {
        let at = names.len() as u32;
        names.extend(name.as_bytes());
        names.push(0);
        at
    };
    let mut symbols = vec![0; 24];
    for (name, address, size, kind) in [
        (abi::IMAGE_HEADER_SYMBOL, at(HEADER), 72, 0x11u8),
        ("_ZN12percpu_guest4main17h0123456789abcdefE", code, 16, 0x12),
        ("handler", code + 16, 0, 0x10),
    ] {
        symbols.extend(name_of(name).to_le_bytes());
        // Its section is the one of code, or of the header.
        symbols.extend([kind, 0, if kind == 0x11 { 1 } else { 4 }, 0]);
        symbols.extend(address.to_le_bytes());
        symbols.extend(u64::to_le_bytes(size));
    }
    let (symbols_at, symbols_len) = (file.len() as u64, symbols.len() as u64);
    file.extend(symbols);
    let loaded = |name, offset: u64, size, flags| Section {
        name,
        kind: PROGBITS,
        flags,
        address: at(offset),
        offset,
        size,
        link: 0,
        entry: 0,
    };
    let none = || Section { flags: 0, address: 0, ..loaded("", 0, 0, 0) };
    let mut sections = [
        Section { kind: 0, ..none() },
        loaded(".data", HEADER, 72, 3),
        loaded(abi::TEST_SECTION, ENTRY, 32, 2),
        loaded("__sancov_pcs", PLACES, 32, 2),
        loaded(".text", CODE, 64, 6),
        loaded("__sancov_bools", FLAGS, 2, 3),
        loaded(abi::WORKLOAD_SECTION, WORKLOAD, 56, 2),
        Section {
            name: ".symtab",
            kind: SYMTAB,
            offset: symbols_at,
            size: symbols_len,
            link: 8,
            entry: 24,
            ..none()
        },
        Section { name: ".strtab", kind: STRTAB, ..none() },
    ];
    let name_offsets: Vec<_> = sections.iter().map(|section| name_of(section.name)).collect();
    sections[8].offset = file.len() as u64;
    sections[8].size = names.len() as u64;
    file.extend(names);
    let headers = file.len() as u64;
    for (section, name) in sections.iter().zip(name_offsets) {
        file.extend(name.to_le_bytes());
        file.extend(section.kind.to_le_bytes());
        for word in [section.flags, section.address, section.offset, section.size] {
            file.extend(word.to_le_bytes());
        }
        file.extend(section.link.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        file.extend(1u64.to_le_bytes());
        file.extend(section.entry.to_le_bytes());
    }
    head(&mut file, headers, sections.len() as u16);
    file
}

/// The file's header and that of its one segment.
fn head(file: &mut [u8], sections: u64, count: u16) {
    let mut head = b"\x7fELF\x02\x01\x01".to_vec();
    head.resize(16, 0);
    // Executable, x86-64, version 1.
    head.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [abi::IMAGE + CODE, 64, sections] {
        head.extend(word.to_le_bytes());
    }
    head.extend([0; 4]);
    for half in [64, 56, 1, 64, count, count - 1] {
        head.extend(u16::to_le_bytes(half));
    }
    head.extend(1u32.to_le_bytes());
    head.extend(7u32.to_le_bytes());
    for word in [0, abi::IMAGE, abi::IMAGE, END, END, 0x1000] {
        head.extend(u64::to_le_bytes(word));
    }
    file[..head.len()].copy_from_slice(&head);
}
