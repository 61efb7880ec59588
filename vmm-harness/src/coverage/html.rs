//! Coverage as a part of a page: totals, a table of files, then each file with its lines.

use maud::{Markup, html};

use super::source::{FileCoverage, Part, REPORTED, SourceCoverage};
use crate::report::page::{Column, Table, folded, tiles};

/// What is shown: totals, files, lines.
pub(crate) fn section(coverage: &SourceCoverage) -> Markup {
    let runs = match coverage.runs {
        1 => "one run".to_owned(),
        n => format!("{n} runs"),
    };
    html! {
        p.faint {
            "What " (runs) " of the deterministic machine reached together, the guest's boot included."
        }
        (totals(coverage))
        p {
            "The figures are of the guest that was run, the instrumented build: of the lines that have \
             code in it, and of its edges between basic blocks. Inlining and types make copies of a line, \
             some for the guest's own tests and benchmarks, which do not run here. "
            span.key.h { "+" } " any copy of the line ran. "
            span.key.m { "\u{2212}" } " none did. Lines without a mark have no code in this build."
        }
        (table(coverage))
        @for (i, file) in coverage.files.iter().enumerate() { (source_file(i, file)) }
    }
}

fn totals(coverage: &SourceCoverage) -> Markup {
    let parts = [
        ("lines", coverage.lines()),
        ("functions", coverage.functions()),
        ("edges", coverage.edges()),
    ];
    let parts = parts.map(|(what, part)| {
        (format!("{:.1}%", part.percent()), format!("{} of {} {what}", part.reached, part.all))
    });
    tiles(parts.iter().map(|(figure, what)| (figure.clone(), what.as_str())))
}

fn table(coverage: &SourceCoverage) -> Markup {
    let columns = [
        Column::text("File"),
        Column::text("Share"),
        Column::number("Lines"),
        Column::wide("reached"),
        Column::wide("Functions"),
        Column::wide("Edges"),
    ];
    let mut table = Table::new("Files of percpu-core", columns);
    for (i, file) in coverage.files.iter().enumerate() {
        let lines = file.reached_lines();
        let percent = format!("width:{:.1}%", lines.percent());
        table.row([
            html! { a href={ "#f" (i) } { (name(file)) } },
            html! { div.track { i style=(percent) {} } },
            html! { (format!("{:.0}%", lines.percent())) },
            share(lines),
            share(file.reached_functions()),
            share(file.edges),
        ]);
    }
    html! { (table) }
}

/// A file's path without what all have in common.
fn name(file: &FileCoverage) -> &str {
    file.path.strip_prefix(REPORTED).unwrap_or(&file.path)
}

fn source_file(i: usize, file: &FileCoverage) -> Markup {
    let lines = file.reached_lines();
    let unreached: Vec<_> = file.unreached().collect();
    let summary = html! {
        (name(file)) " "
        span.faint { (format!("{:.0}% of {} lines", lines.percent(), lines.all)) }
    };
    let content = html! {
        @if !unreached.is_empty() {
            p.never {
                "Never reached: "
                @for (n, function) in unreached.iter().enumerate() {
                    @if n > 0 { ", " }
                    a href={ "#f" (i) "-" (function.line) } { (function.name) }
                    " (" (function.line) ")"
                }
            }
        }
        @match &file.source {
            Some(text) => (source(i, file, text)),
            None => p.never {
                "The source that this was built from is not there: make the report in the workspace \
                 of the build."
            }
        }
    };
    html! { div.source-file id={ "f" (i) } { (folded(summary, content)) } }
}

fn source(i: usize, file: &FileCoverage, text: &str) -> Markup {
    let class = |n: &u32| file.lines.get(n).map(|&reached| if reached { "h" } else { "m" });
    // Nothing between the lines: they are blocks, and a newline would be one more.
    html! {
        pre.source { code {
            @for (n, line) in (1u32..).zip(text.lines()) {
                span class=[class(&n)] id={ "f" (i) "-" (n) } data-n=(n) { (line) }
            }
        } }
    }
}

/// `3 / 4`.
fn share(part: Part) -> Markup {
    html! { (part.reached) " / " (part.all) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::testing::source_coverage;
    use crate::report::page::{Page, assert_sound};

    fn page() -> String {
        let mut page = Page::new("coverage");
        page.section("coverage", "Code", section(&source_coverage()));
        page.render()
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
                assert_eq!(text_after(&page, &start), html! { (text) }.into_string());
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
    fn the_page_is_sound() {
        assert_sound(&page());
    }

    #[test]
    fn a_file_without_its_source_says_so() {
        assert!(page().contains("is not there"));
    }
}
