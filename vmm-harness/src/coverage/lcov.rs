//! Coverage as lcov's trace file, which genhtml, editors and code-review services read.

use std::io::{self, Write};

use super::source::{FileCoverage, SourceCoverage};

/// Writes the trace file. Paths are those below the workspace's root, so it is to be read there.
///
/// Flags say whether, not how often: a count is 1 where something was reached.
pub fn write_lcov(out: &mut impl Write, coverage: &SourceCoverage) -> io::Result<()> {
    for file in &coverage.files {
        write_file(out, file)?;
    }
    Ok(())
}

fn write_file(out: &mut impl Write, file: &FileCoverage) -> io::Result<()> {
    writeln!(out, "TN:guest\nSF:{}", file.path)?;
    // The form has one function of a name in a file.
    let name = |i: usize| {
        let function = &file.functions[i];
        match file.functions.iter().filter(|other| other.name == function.name).count() {
            1 => function.name.clone(),
            _ => format!("{}:{}", function.name, function.line),
        }
    };
    for (i, function) in file.functions.iter().enumerate() {
        writeln!(out, "FN:{},{}", function.line, name(i))?;
    }
    for (i, function) in file.functions.iter().enumerate() {
        writeln!(out, "FNDA:{},{}", u32::from(function.reached), name(i))?;
    }
    let functions = file.reached_functions();
    writeln!(out, "FNF:{}\nFNH:{}", functions.all, functions.reached)?;
    for (line, &reached) in &file.lines {
        writeln!(out, "DA:{line},{}", u32::from(reached))?;
    }
    let lines = file.reached_lines();
    writeln!(out, "LF:{}\nLH:{}\nend_of_record", lines.all, lines.reached)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use super::*;
    use crate::coverage::testing::source_coverage;

    /// What lcov reads: lines and functions of each file, with their counts.
    #[derive(Default)]
    struct Parsed {
        lines: BTreeMap<u32, u32>,
        functions: BTreeMap<String, (u32, u32)>,
        totals: HashMap<String, usize>,
    }

    fn parse(text: &str) -> BTreeMap<String, Parsed> {
        let mut files = BTreeMap::new();
        let mut now: Option<(String, Parsed)> = None;
        for line in text.lines() {
            let (key, value) = line.split_once(':').unwrap_or((line, ""));
            let number = |text: &str| text.parse::<u32>().expect("a number");
            let pair = || value.split_once(',').expect("two values");
            match (key, &mut now) {
                ("TN", None) => {}
                ("SF", now @ None) => *now = Some((value.into(), Parsed::default())),
                ("FN", Some((_, file))) => {
                    let (line, name) = pair();
                    let again = file.functions.insert(name.into(), (number(line), 0));
                    assert_eq!(again, None, "{name} twice");
                }
                ("FNDA", Some((_, file))) => {
                    let (count, name) = pair();
                    file.functions.get_mut(name).expect("after its FN").1 = number(count);
                }
                ("DA", Some((_, file))) => {
                    let (line, count) = pair();
                    assert_eq!(file.lines.insert(number(line), number(count)), None);
                }
                ("FNF" | "FNH" | "LF" | "LH", Some((_, file))) => {
                    file.totals.insert(key.into(), value.parse().expect("a number"));
                }
                ("end_of_record", now @ Some(_)) => {
                    let (path, file) = now.take().expect("just matched");
                    files.insert(path, file);
                }
                _ => panic!("{line} where it has no place"),
            }
        }
        assert!(now.is_none(), "the last record has no end");
        files
    }

    #[test]
    fn what_is_written_is_what_a_reader_finds() {
        let coverage = source_coverage();
        let mut text = Vec::new();
        write_lcov(&mut text, &coverage).unwrap();
        let files = parse(std::str::from_utf8(&text).unwrap());
        assert_eq!(files.len(), coverage.files.len());
        for file in &coverage.files {
            let read = &files[&file.path];
            let lines: BTreeMap<_, _> =
                file.lines.iter().map(|(&line, &reached)| (line, u32::from(reached))).collect();
            assert_eq!(read.lines, lines, "{}", file.path);
            assert_eq!(read.functions.len(), file.functions.len(), "{}", file.path);
            for function in &file.functions {
                let reached = u32::from(function.reached);
                let found = read.functions.iter().find(|(name, (line, _))| {
                    *line == function.line && name.split(':').next() == Some(&function.name)
                });
                assert_eq!(found.expect("the function").1.1, reached, "{}", function.name);
            }
            let count = |of: &dyn Fn(&Parsed) -> usize| of(read);
            assert_eq!(read.totals["LF"], count(&|read| read.lines.len()));
            assert_eq!(read.totals["LH"], count(&|r| r.lines.values().filter(|&&n| n > 0).count()));
            assert_eq!(read.totals["FNF"], count(&|read| read.functions.len()));
            let hit = |r: &Parsed| r.functions.values().filter(|(_, n)| *n > 0).count();
            assert_eq!(read.totals["FNH"], count(&hit));
        }
    }
}
