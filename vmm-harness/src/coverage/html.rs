//! Coverage as one HTML page, which needs nothing beside itself.

use std::io::{self, Write};

use super::source::{FileCoverage, Part, REPORTED, SourceCoverage};

const STYLE: &str = include_str!("page.css");

/// A link to a line in a file that is folded up opens the file. Browsers that do so themselves do not
/// mind.
const SCRIPT: &str = "\
function open_target() {
  const target = document.getElementById(location.hash.slice(1));
  const file = target && target.closest('details');
  if (file) { file.open = true; target.scrollIntoView(); }
}
addEventListener('hashchange', open_target);
open_target();
";

/// Writes the page: totals, a table of files, then each file with its lines.
pub fn write_html(out: &mut impl Write, coverage: &SourceCoverage) -> io::Result<()> {
    let runs = match coverage.runs {
        1 => "one run".to_owned(),
        n => format!("{n} runs"),
    };
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>percpu-core: code that guest runs reached</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<h1>percpu-core: code that guest runs reached</h1>\n\
         <p class=\"faint\">What {runs} of the deterministic machine reached together, the guest's \
         boot included.</p>"
    )?;
    write_totals(out, coverage)?;
    writeln!(
        out,
        "<p>The figures are of the guest that was run, the instrumented build: of the lines that have \
         code in it, and of its edges between basic blocks. Inlining and types make copies of a line, \
         some for the guest's own tests and benchmarks, which do not run here. \
         <span class=\"key h\">+</span> any copy of the line ran. \
         <span class=\"key m\">&minus;</span> none did. Lines without a mark have no code in this \
         build.</p>"
    )?;
    write_table(out, coverage)?;
    for (i, file) in coverage.files.iter().enumerate() {
        write_file(out, i, file)?;
    }
    writeln!(out, "<script>\n{SCRIPT}</script>\n</body>\n</html>")
}

fn write_totals(out: &mut impl Write, coverage: &SourceCoverage) -> io::Result<()> {
    writeln!(out, "<ul class=\"totals\">")?;
    let parts = [
        ("lines", coverage.lines()),
        ("functions", coverage.functions()),
        ("edges", coverage.edges()),
    ];
    for (what, part) in parts {
        let Part { reached, all } = part;
        writeln!(out, "<li><b>{:.1}%</b>{reached} of {all} {what}</li>", part.percent())?;
    }
    writeln!(out, "</ul>")
}

fn write_table(out: &mut impl Write, coverage: &SourceCoverage) -> io::Result<()> {
    writeln!(
        out,
        "<table>\n<thead><tr><th>File</th><th class=\"bar\"></th><th>Lines</th>\
         <th class=\"wide\"></th><th class=\"wide\">Functions</th><th class=\"wide\">Edges</th></tr>\
         </thead>\n<tbody>"
    )?;
    for (i, file) in coverage.files.iter().enumerate() {
        let (lines, functions) = (file.reached_lines(), file.reached_functions());
        writeln!(
            out,
            "<tr><td><a href=\"#f{i}\">{}</a></td>\
             <td class=\"bar\"><div class=\"track\"><i style=\"width:{:.1}%\"></i></div></td>\
             <td>{:.0}%</td><td class=\"wide\">{}</td><td class=\"wide\">{}</td>\
             <td class=\"wide\">{}</td></tr>",
            Text(name(file)),
            lines.percent(),
            lines.percent(),
            Share(lines),
            Share(functions),
            Share(file.edges),
        )?;
    }
    writeln!(out, "</tbody>\n</table>")
}

/// A file's path without what all have in common.
fn name(file: &FileCoverage) -> &str {
    file.path.strip_prefix(REPORTED).unwrap_or(&file.path)
}

fn write_file(out: &mut impl Write, i: usize, file: &FileCoverage) -> io::Result<()> {
    let lines = file.reached_lines();
    writeln!(
        out,
        "<details id=\"f{i}\">\n<summary>{} <span class=\"faint\">{:.0}% of {} lines</span></summary>",
        Text(name(file)),
        lines.percent(),
        lines.all,
    )?;
    let unreached: Vec<_> = file
        .unreached()
        .map(|function| {
            let (line, name) = (function.line, Text(&function.name));
            format!("<a href=\"#f{i}-{line}\">{name}</a> ({line})")
        })
        .collect();
    if !unreached.is_empty() {
        writeln!(out, "<p class=\"never\">Never reached: {}</p>", unreached.join(", "))?;
    }
    match &file.source {
        Some(source) => write_source(out, i, file, source)?,
        None => writeln!(
            out,
            "<p class=\"never\">The source that this was built from is not there: make the report in \
             the workspace of the build.</p>"
        )?,
    }
    writeln!(out, "</details>")
}

fn write_source(
    out: &mut impl Write,
    i: usize,
    file: &FileCoverage,
    source: &str,
) -> io::Result<()> {
    // The first line follows at once: a newline would be a part of it.
    write!(out, "<pre class=\"source\"><code>")?;
    for (n, text) in (1..).zip(source.lines()) {
        let line = format_args!("id=\"f{i}-{n}\" data-n=\"{n}\"");
        let text = Text(text);
        match file.lines.get(&n) {
            None => write!(out, "<span {line}>{text}</span>")?,
            Some(&reached) => {
                let class = if reached { "h" } else { "m" };
                write!(out, "<span class=\"{class}\" {line}>{text}</span>")?;
            }
        }
    }
    writeln!(out, "</code></pre>")
}

/// Text in HTML.
struct Text<'a>(&'a str);

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                // Those that HTML has no place for.
                c if c.is_control() && c != '\t' => f.write_str("\u{fffd}")?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

/// `3 / 4`.
struct Share(Part);

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} / {}", self.0.reached, self.0.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::testing::source_coverage;

    fn page() -> String {
        let mut page = Vec::new();
        write_html(&mut page, &source_coverage()).unwrap();
        String::from_utf8(page).unwrap()
    }

    /// The text of the element that begins with `start`, without the tags in it.
    fn text_after<'a>(page: &'a str, start: &str) -> &'a str {
        let at = page.find(start).unwrap_or_else(|| panic!("no {start}"));
        let inner = &page[at..][page[at..].find('>').unwrap() + 1..];
        &inner[..inner.find('<').unwrap()]
    }

    #[test]
    fn each_line_is_there_with_its_colour() {
        let (page, coverage) = (page(), source_coverage());
        for (i, file) in coverage.files.iter().enumerate() {
            for (n, text) in (1..).zip(file.source.as_deref().unwrap_or_default().lines()) {
                let class = match file.lines.get(&n) {
                    Some(true) => " class=\"h\"",
                    Some(false) => " class=\"m\"",
                    None => "",
                };
                let start = format!("<span{class} id=\"f{i}-{n}\"");
                assert_eq!(text_after(&page, &start), Text(text).to_string());
            }
        }
    }

    #[test]
    fn functions_that_were_never_reached_are_named_with_a_link() {
        let page = page();
        assert!(page.contains("Never reached: <a href=\"#f0-3\">missed</a> (3)"), "{page}");
        assert!(!page.contains(">reached</a> ("), "{page}");
    }

    #[test]
    fn source_text_cannot_become_markup() {
        let page = page();
        assert!(page.contains("a &lt; b &amp;&amp; &quot;&lt;/code&gt;&quot;"), "{page}");
        assert_eq!(page.matches("</code>").count(), 1);
    }

    #[test]
    fn the_page_asks_for_nothing_beside_itself() {
        let page = page();
        for word in ["http:", "https:", "src=", "@import", "url(", "<link"] {
            assert!(!page.contains(word), "{word}");
        }
        for tag in ["details", "table", "tbody", "pre", "ul", "p", "summary", "script", "style"] {
            let begins = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(begins, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn a_file_without_its_source_says_so() {
        assert!(page().contains("is not there"));
    }
}
