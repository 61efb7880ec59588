//! What tests are made of: ELF files as no compiler makes them, and coverage of source files.

use std::collections::BTreeMap;

use percpu_guest::abi;

use super::source::{FileCoverage, FunctionCoverage, Part, SourceCoverage};

/// Where such a file has 64 bytes of code.
pub const CODE: u64 = abi::IMAGE + 0x1000;
/// Where it has room for 64 flags, and its flags first of all.
pub const FLAGS_AT: u64 = abi::IMAGE + 0x2000;

const ROOM: u64 = 64;
const PROGBITS: u32 = 1;
const NOBITS: u32 = 8;
const EXECUTABLE: u64 = 4;

/// A section as its header says; `size` need not be that of `data`.
pub struct Section {
    pub name: &'static str,
    pub address: u64,
    pub size: u64,
    pub data: Vec<u8>,
    kind: u32,
    flags: u64,
}

/// A file of one segment for code, one for flags, and sections.
pub struct ElfFile {
    sections: Vec<Section>,
}

impl ElfFile {
    /// A file with edges that lead to `places`.
    pub fn with_edges(places: &[u64]) -> Self {
        let table = places.iter().flat_map(|&place| [place, 0]).flat_map(u64::to_le_bytes);
        let section = |name, address, size, data, kind, flags| Section {
            name,
            address,
            size,
            data,
            kind,
            flags,
        };
        let size = places.len() as u64;
        let table: Vec<_> = table.collect();
        Self {
            sections: vec![
                section(".text", CODE, ROOM, vec![0x90; ROOM as usize], PROGBITS, 2 | EXECUTABLE),
                section("__sancov_bools", FLAGS_AT, size, Vec::new(), NOBITS, 3),
                section("__sancov_pcs", abi::IMAGE, 16 * size, table, PROGBITS, 2),
            ],
        }
    }

    /// Leaves a section out.
    pub fn without(mut self, name: &str) -> Self {
        self.sections.retain(|section| section.name != name);
        self
    }

    /// A section, to be spoiled.
    pub fn section(&mut self, name: &str) -> &mut Section {
        let section = self.sections.iter_mut().find(|section| section.name == name);
        section.expect("the file has it")
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        const HEADER: u64 = 64;
        const SEGMENT: u64 = 56;
        let mut names = vec![0];
        let mut headers = vec![0; 64];
        let mut body = Vec::new();
        let begin = HEADER + 2 * SEGMENT;
        let strings =
            Section { name: ".shstrtab", address: 0, size: 0, data: Vec::new(), kind: 3, flags: 0 };
        for section in self.sections.iter().chain([&strings]) {
            let name = names.len() as u32;
            names.extend_from_slice(section.name.as_bytes());
            names.push(0);
            let at = begin + body.len() as u64;
            let mut size = section.size;
            // A size that was not spoiled follows the data.
            if section.kind == PROGBITS && size.abs_diff(section.data.len() as u64) < 16 {
                size = section.data.len() as u64;
            }
            body.extend_from_slice(&section.data);
            if section.kind == 3 {
                body.extend_from_slice(&names);
                size = names.len() as u64;
            }
            headers.extend(name.to_le_bytes());
            headers.extend(section.kind.to_le_bytes());
            for word in [section.flags, section.address, at, size, 0, 1, 0] {
                headers.extend(word.to_le_bytes());
            }
        }
        let count = headers.len() / 64;
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        // Executable, x86-64, version 1.
        file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        for word in [CODE, HEADER, begin + body.len() as u64] {
            file.extend(word.to_le_bytes());
        }
        file.extend([0; 4]);
        for half in [HEADER, SEGMENT, 2, 64, count as u64, count as u64 - 1] {
            file.extend((half as u16).to_le_bytes());
        }
        for (address, flags) in [(CODE, 5u32), (FLAGS_AT, 6)] {
            file.extend(1u32.to_le_bytes());
            file.extend(flags.to_le_bytes());
            for word in [0, address, address, 0, ROOM, 1] {
                file.extend(word.to_le_bytes());
            }
        }
        file.extend(body);
        file.extend(headers);
        file
    }
}

/// Coverage of two files: one with all there can be, one without its text.
pub fn source_coverage() -> SourceCoverage {
    let part = |reached, all| Part { reached, all };
    let function =
        |line, name: &str, reached| FunctionCoverage { line, name: name.into(), reached };
    let whole = FileCoverage {
        path: "percpu-core/src/a.rs".into(),
        edges: part(2, 5),
        lines: BTreeMap::from([(2, true), (3, false), (5, false)]),
        functions: vec![
            function(2, "reached", true),
            function(3, "missed", false),
            function(5, "missed", false),
        ],
        source: Some(
            "// One & two.\nfn reached() {}\nfn missed() {}\n\nfn missed() { a < b && \"</code>\" }\n"
                .into(),
        ),
    };
    let bare = FileCoverage {
        path: "percpu-core/src/b.rs".into(),
        edges: part(1, 1),
        lines: BTreeMap::from([(7, true)]),
        functions: Vec::new(),
        source: None,
    };
    SourceCoverage { files: vec![whole, bare], runs: 3 }
}
