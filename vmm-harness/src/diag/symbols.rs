//! Names and source lines for guest addresses, from the guest's ELF file.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use addr2line::Context;
use gimli::{EndianArcSlice, LittleEndian};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};
use rustc_demangle::demangle;

use crate::plain::plain;

type Reader = EndianArcSlice<LittleEndian>;

/// The symbols of an image. Loading parses the symbol table only; lines are looked up on demand.
pub struct Symbols {
    /// Functions by address, ascending.
    functions: Vec<Function>,
    /// Static variables by address, ascending.
    variables: Vec<Function>,
    lines: Option<Context<Reader>>,
}

/// A function that an address is in, or one that was inlined there; as much of it as is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFrame {
    /// Its name, without the path to it where it was inlined.
    pub function: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line in that file: of the address in the innermost frame, of the call in the others.
    pub line: Option<u32>,
}

struct Function {
    start: u64,
    /// Bytes; 0 where the assembler did not say.
    size: u64,
    name: String,
}

impl Symbols {
    /// Reads the symbols of an ELF file. A file without symbols or lines, or no ELF file at all,
    /// gives addresses without names: a report must never fail for want of names.
    pub fn load(elf: &[u8]) -> Self {
        let Ok(file) = object::File::parse(elf) else {
            return Self { functions: Vec::new(), variables: Vec::new(), lines: None };
        };
        let mut functions: Vec<_> = file
            .symbols()
            .filter(|symbol| {
                matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Label | SymbolKind::Unknown)
            })
            .filter(|symbol| symbol.address() != 0 && is_code(&file, symbol))
            .filter_map(|symbol| {
                let name = symbol.name().ok().filter(|name| !name.is_empty())?;
                Some(Function {
                    start: symbol.address(),
                    size: symbol.size(),
                    name: plain(&format!("{:#}", demangle(name))),
                })
            })
            .collect();
        // Of several names for one address the one with a size comes last and wins.
        functions.sort_by_key(|function| (function.start, function.size));
        let mut variables: Vec<_> = file
            .symbols()
            .filter(|symbol| symbol.kind() == SymbolKind::Data && symbol.size() > 0)
            .filter_map(|symbol| {
                Some(Function {
                    start: symbol.address(),
                    size: symbol.size(),
                    name: format!("{:#}", demangle(symbol.name().ok()?)),
                })
            })
            .collect();
        variables.sort_by_key(|variable| (variable.start, variable.size));
        Self { functions, variables, lines: lines(&file) }
    }

    /// `function+0x12 (file:line)`, as much of it as is known.
    pub fn describe(&self, address: u64) -> String {
        // Without a function there is no line either; and addr2line overflows at the last address.
        let Some(function) = self.function(address) else { return format!("{address:#x}") };
        let mut text = format!("{}+{:#x}", function.name, address - function.start);
        if let Some((inlined, place)) = self.place(address) {
            // Writing to a string does not fail.
            let _ = match inlined {
                Some(name) => write!(text, " (in {name}, {place})"),
                None => write!(text, " ({place})"),
            };
        }
        text
    }

    /// The static variable that an address is in, `NAME+0x12`.
    pub fn variable(&self, address: u64) -> Option<String> {
        let after = self.variables.partition_point(|variable| variable.start <= address);
        let variable = self.variables[..after].last()?;
        match address - variable.start {
            0 => Some(variable.name.clone()),
            offset if offset < variable.size => Some(format!("{}+{offset:#x}", variable.name)),
            _ => None,
        }
    }

    /// Where the function that covers an address begins and ends, if that is known.
    pub fn extent(&self, address: u64) -> Option<Range<u64>> {
        let function = self.function(address).filter(|function| function.size != 0)?;
        Some(function.start..function.start.checked_add(function.size)?)
    }

    /// The function that covers an address.
    fn function(&self, address: u64) -> Option<&Function> {
        let after = self.functions.partition_point(|function| function.start <= address);
        let function = self.functions[..after].last()?;
        // A symbol of unknown size covers what is up to the next one, within reason.
        let size = if function.size == 0 { 0x1000 } else { function.size };
        (address - function.start < size).then_some(function)
    }

    /// The functions that an address is in, the innermost first.
    pub fn frames(&self, address: u64) -> Vec<SourceFrame> {
        // As in `describe`.
        let (Some(symbol), Some(lines)) = (self.function(address), self.lines.as_ref()) else {
            return Vec::new();
        };
        let Ok(mut frames) = lines.find_frames(address).skip_all_loads() else { return Vec::new() };
        let next = || {
            let frame = frames.next().ok().flatten()?;
            let name = frame.function.and_then(|function| {
                function.raw_name().ok().map(|name| plain(&format!("{:#}", demangle(&name))))
            });
            let location = frame.location.as_ref();
            Some(SourceFrame {
                function: name,
                file: location.and_then(|location| location.file).map(plain),
                line: location.and_then(|location| location.line),
            })
        };
        let mut frames: Vec<_> = std::iter::from_fn(next).collect();
        // What nothing was inlined in may have a name as a symbol only.
        if let Some(SourceFrame { function: function @ None, .. }) = frames.last_mut() {
            *function = Some(symbol.name.clone());
        }
        frames
    }

    /// Where code of another line begins, ascending, within a range of addresses.
    pub fn line_starts(&self, range: Range<u64>) -> Vec<u64> {
        let rows = self
            .lines
            .as_ref()
            .and_then(|lines| lines.find_location_range(range.start, range.end).ok());
        rows.into_iter().flatten().map(|(start, ..)| start).collect()
    }

    /// Source file and line of an address, and the function that was inlined there, if one was.
    fn place(&self, address: u64) -> Option<(Option<String>, String)> {
        let mut frames = self.frames(address).into_iter();
        let innermost = frames.next()?;
        let is_inlined = frames.next().is_some();
        let place = format!("{}:{}", short(&innermost.file?), innermost.line?);
        Some((innermost.function.filter(|_| is_inlined), place))
    }
}

/// Whether a symbol lies in executable code.
fn is_code<'d>(file: &object::File<'d>, symbol: &object::Symbol<'d, '_>) -> bool {
    symbol
        .section_index()
        .and_then(|index| file.section_by_index(index).ok())
        .is_some_and(|section| section.kind() == object::SectionKind::Text)
}

/// The last components of a path, which are those that tell.
fn short(path: &str) -> &str {
    for root in ["percpu-guest/", "percpu-core/", "library/"] {
        let is_whole = |at: usize| at == 0 || path[..at].ends_with('/');
        if let Some((at, _)) = path.rmatch_indices(root).find(|(at, _)| is_whole(*at)) {
            return &path[at..];
        }
    }
    path
}

/// The debug sections, owned, so that they outlive the file.
fn lines(file: &object::File<'_>) -> Option<Context<Reader>> {
    let mut cache: HashMap<&'static str, Arc<[u8]>> = HashMap::new();
    let dwarf = gimli::Dwarf::load(|id| {
        let data = cache.entry(id.name()).or_insert_with(|| {
            let section = file.section_by_name(id.name());
            section.and_then(|s| s.uncompressed_data().ok()).unwrap_or_default().into()
        });
        Ok::<_, gimli::Error>(EndianArcSlice::new(data.clone(), LittleEndian))
    });
    Context::from_dwarf(dwarf.ok()?).ok()
}

impl std::fmt::Debug for Symbols {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Symbols").field("functions", &self.functions.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn somewhere(n: u64) -> u64 {
        n ^ 0x5a5a
    }

    /// This program is an ELF file with symbols and lines.
    fn own_image() -> Vec<u8> {
        std::fs::read("/proc/self/exe").expect("a program can read itself")
    }

    #[test]
    fn function_and_line_of_an_address_are_found() {
        let symbols = Symbols::load(&own_image());
        let start = symbols
            .functions
            .iter()
            .find(|f| f.name.ends_with("symbols::tests::somewhere"))
            .map(|f| f.start)
            .expect("the test program has a symbol of this function");
        let text = symbols.describe(start + 1);
        assert!(text.contains("tests::somewhere+0x1"), "{text}");
        assert!(text.contains("symbols.rs:"), "{text}");
        assert_eq!(somewhere(std::hint::black_box(2)), 0x5a58);
    }

    #[test]
    fn frames_are_named_from_the_inside_out() {
        #[inline(always)]
        fn inner(n: u64) -> u64 {
            std::hint::black_box(n) + 7
        }
        #[inline(never)]
        fn outer(n: u64) -> u64 {
            inner(n) * 3
        }
        assert_eq!(outer(1), 24);
        let symbols = Symbols::load(&own_image());
        let outer =
            symbols.functions.iter().find(|f| f.name.ends_with("from_the_inside_out::outer"));
        let outer = outer.expect("a symbol");
        let named =
            |frame: &SourceFrame, name| frame.function.as_ref().is_some_and(|f| f.contains(name));
        let frames = (outer.start..outer.start + outer.size).map(|at| symbols.frames(at));
        let inlined = frames
            .filter(|frames| frames.len() > 1)
            .find(|frames| named(&frames[frames.len() - 2], "inner"))
            .expect("some instruction of the inlined function");
        assert!(named(&inlined[inlined.len() - 1], "outer"), "{inlined:?}");
        for frame in &inlined[inlined.len() - 2..] {
            assert!(frame.file.as_ref().is_some_and(|f| f.ends_with("symbols.rs")), "{inlined:?}");
            assert!(frame.line.is_some_and(|line| line > 100), "{inlined:?}");
        }
        assert_eq!(symbols.frames(u64::MAX), []);
    }

    #[test]
    fn a_static_variable_is_known_by_any_address_in_it() {
        static TABLE: [std::sync::atomic::AtomicU64; 8] =
            [const { std::sync::atomic::AtomicU64::new(7) }; 8];
        std::hint::black_box(&TABLE);
        let symbols = Symbols::load(&own_image());
        let table = symbols.variables.iter().find(|v| v.name.ends_with("any_address_in_it::TABLE"));
        let table = table.expect("the test program has a symbol of this variable");
        let name = |offset| symbols.variable(table.start + offset);
        assert_eq!(name(0).as_deref(), Some(table.name.as_str()));
        assert!(name(0x3f).unwrap().ends_with("::TABLE+0x3f"));
        assert!(name(0x40).is_none_or(|other| !other.contains("any_address_in_it")));
        assert_eq!(symbols.variable(0), None);
    }

    #[test]
    fn what_is_no_elf_file_gives_bare_addresses() {
        assert_eq!(Symbols::load(b"not an ELF file").describe(0x1234), "0x1234");
    }

    #[test]
    fn an_address_outside_all_functions_stays_bare() {
        let symbols = Symbols::load(&own_image());
        assert_eq!(symbols.describe(u64::MAX), format!("{:#x}", u64::MAX));
    }
}
