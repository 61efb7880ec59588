//! Where a CPU stood, as a reader of the source would say it: not in the helper that was innermost, but
//! in the function that called it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::drawing::SourceLine;
use crate::diag::{SourceFrame, Symbols, source};

/// Parts of the paths of files whose functions are there for others: what a reader wants to know is
/// who called them.
const HELPERS: [&str; 13] = [
    "percpu-core/src/platform.rs",
    "percpu-core/src/steps.rs",
    "percpu-core/src/sync.rs",
    "percpu-core/src/atomic",
    "percpu-core/src/arch/",
    "percpu-core/src/var/",
    "percpu-core/src/view.rs",
    "percpu-core/src/cpu/",
    "percpu-guest/src/kernel/arch/",
    "percpu-guest/src/kernel/platform.rs",
    "percpu-guest/src/kernel/shared.rs",
    "percpu-guest/src/kernel/sched/",
    "percpu-guest/src/kernel/workload.rs",
];
/// Directories of our own code.
const OWN: [&str; 2] = ["percpu-core/", "percpu-guest/"];
/// Parts of the paths of code that is neither ours nor of who wrote the guest.
const STRANGE: [&str; 3] = ["/rustc/", "/rustlib/", "/registry/src/"];

/// A line of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The function, without modules.
    pub function: String,
    /// The file, from its crate's sources on.
    pub file: String,
    /// The file as the compiler named it.
    pub path: String,
    /// Line.
    pub line: u32,
    /// The workload that the CPU was at, if it was at one.
    pub workload: Option<String>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}:{}", self.function, self.file, self.line)
    }
}

/// Places by return addresses.
pub(super) struct Places {
    symbols: Symbols,
    frames: HashMap<u64, Vec<SourceFrame>>,
    sources: HashMap<String, Option<String>>,
}

impl Places {
    pub(super) fn new(symbols: Symbols) -> Self {
        Self { symbols, frames: HashMap::new(), sources: HashMap::new() }
    }

    /// The static variable that an address is in.
    pub(super) fn variable(&self, address: u64) -> Option<String> {
        self.symbols.variable(address)
    }

    /// The place for return addresses, the innermost first.
    pub(super) fn of(&mut self, sites: &[u64]) -> Option<Place> {
        let mut frames = Vec::new();
        for site in sites.iter().take_while(|&&site| site != 0) {
            // The call, not what comes after it.
            let site = site.wrapping_sub(1);
            let of = self.frames.entry(site).or_insert_with(|| self.symbols.frames(site));
            frames.extend_from_slice(of);
        }
        choose(&frames)
    }

    /// The lines around a place and its own, if the file is there and the line is not empty.
    pub(super) fn around(&mut self, place: &Place, lines: u32) -> Vec<SourceLine> {
        let file = self.sources.entry(place.path.clone()).or_insert_with(|| read(&place.path));
        let own = place.line;
        let Some(file) = file.as_ref().filter(|_| own > 0) else { return Vec::new() };
        let first = own.saturating_sub(lines).max(1);
        let all: Vec<_> = (1u32..)
            .zip(file.lines())
            .skip(first as usize - 1)
            .take_while(|(line, _)| *line <= own + lines)
            .map(|(line, text)| SourceLine { line, text: text.to_owned() })
            .collect();
        let is_told = all.iter().any(|line| line.line == own && !line.text.trim().is_empty());
        if is_told { all } else { Vec::new() }
    }
}

/// The innermost frame in code of ours that is no helper; if all are, the innermost in ours.
fn choose(frames: &[SourceFrame]) -> Option<Place> {
    let own = |frame: &&SourceFrame| {
        frame.line.is_some_and(|line| line > 0) && frame.file.as_deref().and_then(own).is_some()
    };
    let helps = |frame: &SourceFrame| {
        frame.file.as_deref().is_some_and(|file| HELPERS.iter().any(|part| file.contains(part)))
    };
    let mut ours = frames.iter().filter(own);
    let innermost = ours.next()?;
    let rest = || std::iter::once(innermost).chain(ours.clone());
    let frame = rest().find(|frame| !helps(frame)).unwrap_or(innermost);
    let path = frame.file.clone()?;
    let workload = rest().find_map(|frame| {
        let (_, below) = frame.file.as_deref()?.split_once("percpu-guest/src/workloads/")?;
        let name = below.split(['/', '.']).next()?;
        (name != "mod").then(|| name.to_owned())
    });
    Some(Place {
        function: frame.function.as_deref().map_or("?".into(), short),
        file: brief(self::own(&path)?),
        line: frame.line?,
        path,
        workload,
    })
}

/// The path as it is shown: `core/counter/node.rs` of `percpu-core/src/counter/node.rs`.
fn brief(path: &str) -> String {
    match path.strip_prefix("percpu-") {
        Some(own) => own.replacen("/src/", "/", 1),
        None => path.to_owned(),
    }
}

/// The path from one of our crates on; of a guest's own code, from here on if it lies below.
fn own(path: &str) -> Option<&str> {
    let ours = OWN.iter().filter_map(|root| path.rfind(root)).max().map(|at| &path[at..]);
    let strange = || STRANGE.iter().any(|part| path.contains(part)) || !path.starts_with('/');
    let below = || {
        let here = std::env::current_dir().ok()?;
        Path::new(path).strip_prefix(here).ok()?.to_str()
    };
    ours.or_else(|| (!strange()).then(|| below().unwrap_or(path)))
}

/// A function's name without modules: `<percpu_core::counter::PercpuCounter>::add` is
/// `PercpuCounter::add`.
fn short(name: &str) -> String {
    let mut plain = String::new();
    let mut depth = 0;
    // A type in angle brackets at the beginning is what the function belongs to; later ones are
    // parameters.
    let name = match name.strip_prefix('<') {
        Some(rest) => {
            let (of, function) = rest.split_once(">::").unwrap_or((rest, ""));
            let of = of.split(" as ").next().unwrap_or(of);
            format!("{of}::{function}")
        }
        None => name.to_owned(),
    };
    for c in name.chars() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            _ if depth == 0 => plain.push(c),
            _ => {}
        }
    }
    let parts: Vec<_> = plain.split("::").filter(|part| !part.is_empty()).collect();
    let is_type = |part: &str| part.starts_with(|c: char| c.is_uppercase());
    let mut from = parts.len().saturating_sub(1);
    while from > 0 && (parts[from].starts_with('{') || is_type(parts[from - 1])) {
        from -= 1;
    }
    parts[from..].join("::").replace("{closure#0}", "{closure}")
}

/// A source file, where the compiler found it or below this directory or one above.
fn read(path: &str) -> Option<String> {
    if let Some(text) = source::read(Path::new(path)) {
        return Some(text);
    }
    let below = own(path)?;
    let here = std::env::current_dir().ok()?;
    let mut files = here.ancestors().map(|directory: &Path| -> PathBuf { directory.join(below) });
    files.find_map(|file| source::read(&file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str, file: &str, line: u32) -> SourceFrame {
        SourceFrame { function: Some(function.into()), file: Some(file.into()), line: Some(line) }
    }

    #[test]
    fn the_place_is_the_caller_of_helpers() {
        let frames = [
            frame("read_volatile", "/rustc/1/library/core/src/ptr/mod.rs", 9),
            frame("point", "/a/percpu-core/src/steps.rs", 4),
            frame("this_cpu_add", "/a/percpu-core/src/var/ops.rs", 40),
            frame(
                "<percpu_core::counter::PercpuCounter>::add",
                "/a/percpu-core/src/counter/percpu.rs",
                77,
            ),
            frame(
                "percpu_guest::workloads::counter::own::round",
                "/a/percpu-guest/src/workloads/counter/own.rs",
                5,
            ),
        ];
        let place = choose(&frames).unwrap();
        assert_eq!(place.to_string(), "PercpuCounter::add core/counter/percpu.rs:77");
        assert_eq!(place.workload.as_deref(), Some("counter"));
        assert_eq!(place.path, "/a/percpu-core/src/counter/percpu.rs");
        // Nothing but helpers: better than nothing.
        assert_eq!(choose(&frames[..3]).unwrap().function, "point");
        assert_eq!(choose(&frames[..1]), None);
    }

    #[test]
    fn a_crate_of_somebody_elses_has_places_of_its_own() {
        let frames = [
            frame("this_cpu_write", "/a/percpu-core/src/var/ops.rs", 40),
            frame("take", "/home/me/.cargo/registry/src/index/bits-1.0.0/src/lib.rs", 3),
            frame("free_list::give", "/home/me/free-list/src/lib.rs", 12),
            frame("free_list::guest::churn", "/home/me/free-list/guest/workloads.rs", 5),
            frame("run", "/a/percpu-guest/src/kernel/workload.rs", 83),
        ];
        let place = choose(&frames).unwrap();
        assert_eq!(place.to_string(), "give /home/me/free-list/src/lib.rs:12");
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs");
        assert_eq!(own(here), Some("src/lib.rs"));
    }

    #[test]
    fn names_lose_modules_and_parameters() {
        assert_eq!(short("percpu_core::hotplug::control::take_down"), "take_down");
        assert_eq!(short("<percpu_core::a::B<C>>::d"), "B::d");
        assert_eq!(short("<percpu_core::a::B as core::ops::Drop>::drop"), "B::drop");
        assert_eq!(short("percpu_guest::workloads::run::{closure#0}"), "run::{closure}");
        assert_eq!(short("percpu_core::a::f::<u64, percpu_core::b::C>"), "f");
        assert_eq!(short("bare"), "bare");
    }

    #[test]
    fn the_text_of_a_line_is_found_or_not() {
        let mut places = Places::new(Symbols::load(b""));
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/fuzz/picture/place.rs");
        let place = Place { path: path.into(), line: 2, ..Place::default() };
        let lines = places.around(&place, 1);
        let numbers: Vec<_> = lines.iter().map(|line| line.line).collect();
        assert_eq!(numbers, [1, 2, 3]);
        assert!(lines[1].text.contains("in the function that called it"), "{lines:?}");
        assert_eq!(places.around(&Place { line: 1, ..place.clone() }, 2).len(), 3);
        assert_eq!(places.around(&Place { line: 0, ..place.clone() }, 1), []);
        assert_eq!(places.around(&Place { line: 1_000_000, ..place }, 1), []);
        let nowhere = Place { path: "/nowhere.rs".into(), line: 1, ..Place::default() };
        assert_eq!(places.around(&nowhere, 1), []);
    }
}
