//! Coverage in terms of source code: lines and functions instead of edges.
//!
//! Debug information says of an instruction which line it is of: of the function it is in, and of each
//! function that this one was inlined into. Code that is generic or inlined is in the image many times,
//! so a line has many instructions, and it was reached if any of them ran. What the compiler found
//! unused, or worked out itself, is not in the image at all. So figures tell of the code of the
//! instrumented build, not of lines of text.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::code::{self, Ran};
use super::file::Coverage;
use crate::diag::{SourceFrame, Symbols, source};
use crate::error::Error;
use crate::image::{self, Image};

/// Source files that are reported on have this in their path.
pub(super) const REPORTED: &str = "percpu-core/src/";

/// How much of something was reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// What was.
    pub reached: usize,
    /// What there is.
    pub all: usize,
}

/// A function of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionCoverage {
    /// Line of its first word `fn`; of its first code where the source has no such line.
    pub line: u32,
    /// Its name, without a path.
    pub name: String,
    /// Whether any of its code ran, wherever it was inlined.
    pub reached: bool,
}

/// A source file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileCoverage {
    /// Its path from the workspace's root.
    pub path: String,
    /// Edges that lead into it.
    pub edges: Part,
    /// Lines that have code, and whether any of it ran.
    pub lines: BTreeMap<u32, bool>,
    /// Functions that have code, by line.
    pub functions: Vec<FunctionCoverage>,
    /// Its text, where that was found, and fits.
    pub source: Option<String>,
}

/// What runs have reached, by source file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceCoverage {
    /// Files that have code, by path.
    pub files: Vec<FileCoverage>,
    /// Runs that reached it.
    pub runs: u64,
}

impl Part {
    fn count(&mut self, reached: bool) {
        self.all += 1;
        self.reached += usize::from(reached);
    }

    /// Per cent; nothing of nothing is all of it.
    pub fn percent(self) -> f64 {
        if self.all == 0 { 100.0 } else { 100.0 * self.reached as f64 / self.all as f64 }
    }

    /// How many of all are true.
    fn of(all: impl IntoIterator<Item = bool>) -> Self {
        all.into_iter().fold(Self::default(), |mut sum, reached| {
            sum.count(reached);
            sum
        })
    }

    fn sum(parts: impl IntoIterator<Item = Self>) -> Self {
        parts.into_iter().fold(Self::default(), |sum, part| Self {
            reached: sum.reached + part.reached,
            all: sum.all + part.all,
        })
    }
}

impl FileCoverage {
    /// Lines that have code, and those of them that were reached.
    pub fn reached_lines(&self) -> Part {
        Part::of(self.lines.values().copied())
    }

    /// Functions likewise.
    pub fn reached_functions(&self) -> Part {
        Part::of(self.functions.iter().map(|function| function.reached))
    }

    /// Functions of which no code ran.
    pub fn unreached(&self) -> impl Iterator<Item = &FunctionCoverage> {
        self.functions.iter().filter(|function| !function.reached)
    }
}

impl SourceCoverage {
    /// Finds the places of `coverage` in the source.
    ///
    /// # Errors
    /// It is no coverage of this image, or the image has no edges.
    pub fn of(image: &Image, coverage: &Coverage) -> Result<Self, Error> {
        let edges = image.edges().ok_or_else(|| Error::not_instrumented(image.path()))?;
        coverage.check(edges)?;
        let elf = object::File::parse(image.bytes()).map_err(|_| Error::not_elf(image.path()))?;
        let symbols = Symbols::load(image.bytes());
        let reached = &coverage.features().edges;
        let flags: BTreeMap<_, _> = edges
            .places()
            .iter()
            .enumerate()
            .map(|(n, &place)| (place, reached.contains(n)))
            .collect();
        let mut files = Files::default();
        for (&place, &reached) in &flags {
            files.add_edge(&symbols.frames(place), reached);
        }
        let extents: BTreeMap<_, _> = flags
            .keys()
            .filter_map(|&place| symbols.extent(place).map(|extent| (extent.start, extent.end)))
            .collect();
        for (start, end) in extents {
            let Some(content) = image::content(&elf, start..end) else { continue };
            // One instruction tells of its line, and looking lines up is what takes time here.
            let lines = symbols.line_starts(start..end);
            let line = |address| lines.partition_point(|&begin| begin <= address);
            let mut told = None;
            for Ran { address, ran } in code::ran(start, content, &flags) {
                if told.replace((line(address), ran)) != Some((line(address), ran)) {
                    files.add_code(&symbols.frames(address), ran);
                }
            }
        }
        Ok(Self { files: files.into_coverage(read_source), runs: coverage.runs() })
    }

    /// All lines.
    pub fn lines(&self) -> Part {
        Part::sum(self.files.iter().map(FileCoverage::reached_lines))
    }

    /// All functions.
    pub fn functions(&self) -> Part {
        Part::sum(self.files.iter().map(FileCoverage::reached_functions))
    }

    /// All edges.
    pub fn edges(&self) -> Part {
        Part::sum(self.files.iter().map(|file| file.edges))
    }
}

/// Files by path, as they are collected.
#[derive(Default)]
struct Files(BTreeMap<String, Collected>);

/// What is known of a file before its functions are told apart.
#[derive(Default)]
struct Collected {
    /// The directory that its path is from.
    root: PathBuf,
    edges: Part,
    lines: BTreeMap<u32, bool>,
    /// Lines of each function.
    functions: BTreeMap<String, BTreeMap<u32, bool>>,
}

impl Files {
    fn file(&mut self, path: Option<&str>) -> Option<&mut Collected> {
        let (root, path) = reported(path?)?;
        if !self.0.contains_key(path) {
            let file = Collected { root: root.into(), ..Collected::default() };
            self.0.insert(path.to_owned(), file);
        }
        self.0.get_mut(path)
    }

    /// Adds an edge, by the frames of where it leads from the inside out: to the innermost file.
    fn add_edge(&mut self, frames: &[SourceFrame], reached: bool) {
        for frame in frames {
            if let Some(file) = self.file(frame.file.as_deref()) {
                return file.edges.count(reached);
            }
        }
    }

    /// Adds an instruction, likewise: to the line of each frame.
    fn add_code(&mut self, frames: &[SourceFrame], ran: bool) {
        for SourceFrame { function, file, line } in frames {
            let Some(line) = line.filter(|&line| line != 0) else { continue };
            let Some(file) = self.file(file.as_deref()) else { continue };
            *file.lines.entry(line).or_default() |= ran;
            if let Some(name) = function.as_deref().and_then(base_name) {
                if !file.functions.contains_key(name) {
                    file.functions.insert(name.to_owned(), BTreeMap::new());
                }
                let lines = file.functions.get_mut(name).expect("just inserted");
                *lines.entry(line).or_default() |= ran;
            }
        }
    }

    /// What was added. `source` reads a file that lies at a path below a root.
    fn into_coverage(self, source: impl Fn(&Path, &str) -> Option<String>) -> Vec<FileCoverage> {
        let file = |(path, collected): (String, Collected)| {
            let Collected { root, edges, lines, functions } = collected;
            let last = lines.keys().next_back().copied().unwrap_or(0);
            // A text that ends before the last line is another one than was compiled.
            let source = source(&root, &path).filter(|text| text.lines().count() >= last as usize);
            let functions = tell_apart(functions, source.as_deref().unwrap_or_default());
            FileCoverage { path, edges, lines, functions, source }
        };
        self.0.into_iter().map(file).collect()
    }
}

/// The workspace's root and the path below it of a file that is reported on.
fn reported(file: &str) -> Option<(&str, &str)> {
    let (root, path) = file.split_at(file.rfind(REPORTED)?);
    let plain = !path.split('/').any(|part| part == "..");
    (plain && (root.is_empty() || root.ends_with('/'))).then_some((root, path))
}

/// Reads a source file where the image was built, or else below the current directory.
fn read_source(root: &Path, path: &str) -> Option<String> {
    [root, Path::new("")].iter().find_map(|root| source::read(&root.join(path)))
}

/// The name that a function has in the source. Closures have none: they are parts of the function
/// that they stand in.
fn base_name(name: &str) -> Option<&str> {
    let last = without_arguments(name).rsplit("::").next()?;
    let is_name = last.chars().all(|c| c.is_alphanumeric() || c == '_') && !last.is_empty();
    is_name.then_some(last)
}

/// A name without the generic arguments at its end.
fn without_arguments(name: &str) -> &str {
    if !name.ends_with('>') {
        return name;
    }
    let mut depth = 0;
    for (i, c) in name.char_indices().rev() {
        match c {
            // The arrow of a function type is no bracket.
            '>' if !name[..i].ends_with('-') => depth += 1,
            '<' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &name[..i];
        }
    }
    name
}

/// Tells functions of one file and name apart by where the source has them.
fn tell_apart(
    functions: BTreeMap<String, BTreeMap<u32, bool>>,
    source: &str,
) -> Vec<FunctionCoverage> {
    let mut written: HashMap<&str, Vec<u32>> = HashMap::new();
    for (line, name) in definitions(source) {
        written.entry(name).or_default().push(line);
    }
    let mut found: BTreeMap<(u32, String), bool> = BTreeMap::new();
    for (name, lines) in functions {
        let first = lines.keys().next().copied().unwrap_or(0);
        let starts = written.get(name.as_str()).map_or(&[][..], Vec::as_slice);
        for (line, ran) in lines {
            let above = starts.iter().rev().find(|&&start| start <= line);
            *found.entry((above.copied().unwrap_or(first), name.clone())).or_default() |= ran;
        }
    }
    let function = |((line, name), reached)| FunctionCoverage { line, name, reached };
    found.into_iter().map(function).collect()
}

/// Lines of a source text that define functions, with their names.
fn definitions(source: &str) -> impl Iterator<Item = (u32, &str)> {
    (1..).zip(source.lines()).filter_map(|(n, line)| Some((n, defined(line)?)))
}

/// The function that a line of source defines.
fn defined(line: &str) -> Option<&str> {
    let code = line.split("//").next()?;
    let at = code.find("fn ")?;
    let begins_a_word = code[..at].chars().next_back().is_none_or(|c| c == ' ' || c == '(');
    let rest = &code[at + 3..];
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    (begins_a_word && end > 0).then(|| &rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str, file: &str, line: u32) -> SourceFrame {
        SourceFrame { function: Some(function.into()), file: Some(file.into()), line: Some(line) }
    }

    const HERE: &str = "/w/percpu-core/src/a.rs";
    const SOURCE: &str = "\
// fn not_this() {}
impl A {
    pub fn new() -> Self {
        twice()
    }
}
impl B {
    fn new() -> Self {
        if x { y }
    }
}
fn twice() {}
";

    fn collect(code: &[(&[SourceFrame], bool)]) -> Vec<FileCoverage> {
        let mut files = Files::default();
        code.iter().for_each(|(frames, ran)| files.add_code(frames, *ran));
        coverage(files)
    }

    fn coverage(files: Files) -> Vec<FileCoverage> {
        files.into_coverage(|root, path| {
            assert_eq!((root, path), (Path::new("/w/"), "percpu-core/src/a.rs"));
            Some(SOURCE.into())
        })
    }

    fn only(mut files: Vec<FileCoverage>) -> FileCoverage {
        assert_eq!(files.len(), 1);
        files.remove(0)
    }

    #[test]
    fn a_line_was_reached_if_any_code_of_it_ran() {
        let file = only(collect(&[
            (&[frame("new", HERE, 3)], false),
            (&[frame("new", HERE, 3)], true),
            (&[frame("new", HERE, 3)], false),
            (&[frame("new", HERE, 9)], false),
        ]));
        assert_eq!(file.path, "percpu-core/src/a.rs");
        assert_eq!(file.lines, BTreeMap::from([(3, true), (9, false)]));
        assert_eq!(file.reached_lines(), Part { reached: 1, all: 2 });
        assert_eq!(file.source.as_deref(), Some(SOURCE));
    }

    #[test]
    fn functions_of_one_name_are_told_apart_by_where_they_stand() {
        let file = only(collect(&[
            (&[frame("percpu_core::a::A::new", HERE, 4)], false),
            (&[frame("new<percpu_core::platform::Global>", HERE, 9)], true),
        ]));
        let function = |line, reached| FunctionCoverage { line, name: "new".into(), reached };
        assert_eq!(file.functions, [function(3, false), function(8, true)]);
        assert_eq!(file.unreached().collect::<Vec<_>>(), [&function(3, false)]);
        assert_eq!(file.reached_functions(), Part { reached: 1, all: 2 });
    }

    #[test]
    fn code_counts_for_each_function_it_was_inlined_into_and_an_edge_once() {
        let library = frame("next<u32>", "/rustc/library/core/src/iter.rs", 700);
        let frames = [library, frame("twice", HERE, 12), frame("new", HERE, 4)];
        let mut files = Files::default();
        files.add_code(&frames, true);
        files.add_edge(&frames, false);
        let file = only(coverage(files));
        assert_eq!(file.lines, BTreeMap::from([(4, true), (12, true)]));
        let names: Vec<_> = file.functions.iter().map(|f| (f.line, f.name.as_str())).collect();
        assert_eq!(names, [(3, "new"), (12, "twice")]);
        assert_eq!(file.edges, Part { reached: 0, all: 1 });
    }

    #[test]
    fn other_files_and_code_without_lines_are_left_out() {
        let nothing = collect(&[
            (&[frame("main", "/w/percpu-guest/src/main.rs", 1)], true),
            (&[frame("f", "/w/percpu-core/src/../../secret", 1)], true),
            (&[frame("f", "/w/notpercpu-core/src/a.rs", 1)], true),
            (&[frame("twice", HERE, 0)], true),
            (&[SourceFrame::default()], true),
            (&[], true),
        ]);
        assert_eq!(nothing, []);
    }

    #[test]
    fn a_text_that_is_too_short_is_not_what_was_compiled() {
        let file = only(collect(&[(&[frame("twice", HERE, 13)], true)]));
        assert_eq!(file.source, None);
        // Then a function begins at its first code.
        assert_eq!(file.functions[0].line, 13);
    }

    #[test]
    fn names_are_those_of_the_source() {
        for (name, base) in [
            (
                "percpu_core::alloc::grow::<impl percpu_core::alloc::Allocator<P>>::populate",
                "populate",
            ),
            ("<percpu_core::alloc::Table<T,P> as core::ops::Deref>::deref", "deref"),
            ("try_lock<percpu_core::alloc::State<percpu_core::Global>, X>", "try_lock"),
            ("call<fn(u32) -> core::option::Option<u32>>", "call"),
            ("find", "find"),
        ] {
            assert_eq!(base_name(name), Some(base), "{name}");
        }
        for name in ["{closure#0}<u32>", "percpu_core::x::f::{closure#1}", "", "<"] {
            assert_eq!(base_name(name), None, "{name}");
        }
    }
}
