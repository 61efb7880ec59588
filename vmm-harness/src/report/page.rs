//! The skeleton of every page that is written for a browser: reports of runs, of campaigns, of
//! benchmarks, and coverage.
//!
//! A page is one file that asks for nothing beside itself: styles and a small script are in it, and
//! it says all it has to say without the script. It follows the reader's preference for dark or
//! light, and fits a phone. Text goes through [`maud`], which escapes it; what a guest wrote is
//! text like any other, and characters that could disturb the text around them are replaced.

use std::path::Path;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::file;
use crate::error::Error;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// A page under construction.
pub struct Page {
    title: String,
    body: Vec<Markup>,
    /// Of the sections, for the list of contents: identifier and heading.
    sections: Vec<(String, String)>,
    style: &'static str,
}

impl Page {
    /// An empty page.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), body: Vec::new(), sections: Vec::new(), style: "" }
    }

    /// Adds styles of this kind of page to those that all have.
    pub fn style(mut self, style: &'static str) -> Self {
        self.style = style;
        self
    }

    /// Adds what has no heading.
    pub fn add(&mut self, content: Markup) {
        self.body.push(content);
    }

    /// Adds a section; the heading is in the list of contents. `id` is what links name.
    pub fn section(&mut self, id: &str, heading: &str, content: Markup) {
        self.sections.push((id.to_owned(), heading.to_owned()));
        self.body.push(html! {
            section id=(id) { h2 { (heading) } (content) }
        });
    }

    /// The page as text.
    pub fn render(&self) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (self.title) }
                    style { (PreEscaped(STYLE)) (PreEscaped(self.style)) }
                }
                body {
                    header {
                        h1 { (self.title) }
                        @if self.sections.len() > 2 {
                            nav aria-label="Contents" {
                                ul { @for (id, heading) in &self.sections {
                                    li { a href={ "#" (id) } { (heading) } }
                                } }
                            }
                        }
                    }
                    main { @for part in &self.body { (part) } }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        };
        let sound = |c: char| if is_disturbing(c) { '\u{fffd}' } else { c };
        page.into_string().chars().map(sound).chain(['\n']).collect()
    }

    /// Writes the page to a file, all of it or nothing.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        file::write(path, &self.render())
    }
}

/// Control characters, which HTML has no place for, and those that turn the direction of text.
fn is_disturbing(c: char) -> bool {
    let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || c.is_control() && c != '\n' && c != '\t'
}

/// How a figure or a word looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// As it must not be.
    Bad,
    /// Neither.
    Plain,
}

impl Tone {
    /// Its class.
    pub fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Plain => "plain",
        }
    }
}

/// What a reader is to see first: how it went, in a word and a sentence.
pub fn verdict(tone: Tone, word: &str, text: Markup) -> Markup {
    html! { div class={ "verdict " (tone.class()) } role="status" { strong { (word) } p { (text) } } }
}

/// A few figures that stand out: each with what it counts.
pub fn tiles<'a>(tiles: impl IntoIterator<Item = (String, &'a str)>) -> Markup {
    html! { ul.tiles { @for (figure, what) in tiles { li { b { (figure) } (what) } } } }
}

/// Names and what is behind them.
pub fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, Markup)>) -> Markup {
    html! { dl.facts { @for (name, what) in facts { div { dt { (name) } dd { (what) } } } } }
}

/// A line for a shell.
pub fn command(line: &str) -> Markup {
    html! { pre.command { code { (line) } } }
}

/// What is folded away until somebody wants it.
pub fn folded(summary: Markup, content: Markup) -> Markup {
    html! { details { summary { (summary) } div.inside { (content) } } }
}

/// A column of a [`Table`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    name: String,
    class: &'static str,
}

impl Column {
    /// Of words.
    pub fn text(name: impl Into<String>) -> Self {
        Self { name: name.into(), class: "t" }
    }

    /// Of numbers, one below the other.
    pub fn number(name: impl Into<String>) -> Self {
        Self { name: name.into(), class: "n" }
    }

    /// Of secondary weight, left out on a phone.
    pub fn wide(name: impl Into<String>) -> Self {
        Self { name: name.into(), class: "t wide" }
    }
}

/// A table with a caption. The first cell of a row names it.
pub struct Table {
    caption: String,
    columns: Vec<Column>,
    rows: Vec<(Tone, Vec<Markup>)>,
    filter: bool,
}

impl Table {
    /// A table without rows.
    pub fn new(caption: impl Into<String>, columns: impl Into<Vec<Column>>) -> Self {
        Self { caption: caption.into(), columns: columns.into(), rows: Vec::new(), filter: false }
    }

    /// Lets the reader filter its rows by a word.
    pub fn filter(mut self) -> Self {
        self.filter = true;
        self
    }

    /// Adds a row: a cell a column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Markup>) {
        self.row_in(Tone::Plain, cells);
    }

    /// Adds a row that looks like `tone`.
    pub fn row_in(&mut self, tone: Tone, cells: impl IntoIterator<Item = Markup>) {
        self.rows.push((tone, cells.into_iter().collect()));
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl maud::Render for Table {
    fn render(&self) -> Markup {
        html! {
            div.scroll {
                table data-filter[self.filter] {
                    caption { (self.caption) }
                    thead { tr { @for column in &self.columns {
                        th scope="col" class=(column.class) { (column.name) }
                    } } }
                    tbody { @for (tone, cells) in &self.rows {
                        tr class=(tone.class()) { @for (i, cell) in cells.iter().enumerate() {
                            @let class = self.columns.get(i).map_or("", |column| column.class);
                            @if i == 0 { th scope="row" class=(class) { (cell) } }
                            @else { td class=(class) { (cell) } }
                        } }
                    } }
                }
            }
        }
    }
}

/// A chart with its caption, the names of its series, and its figures as a table, folded.
pub fn figure(caption: &str, legend: Markup, drawing: Markup, figures: Option<Markup>) -> Markup {
    html! {
        figure {
            figcaption { (caption) }
            (legend)
            (drawing)
            @if let Some(figures) = figures { (folded(html! { "The figures" }, figures)) }
        }
    }
}

/// Fails if a page needs anything beside itself, or if its tags do not match.
#[cfg(test)]
pub(crate) fn assert_sound(page: &str) {
    for word in ["http:", "https:", " src=", "@import", "url(", "<link", "<script src", "<iframe"] {
        assert!(!page.contains(word), "{word}");
    }
    let tags = [
        "html",
        "head",
        "body",
        "main",
        "header",
        "section",
        "details",
        "summary",
        "table",
        "thead",
        "tbody",
        "tr",
        "td",
        "th",
        "caption",
        "pre",
        "code",
        "ul",
        "li",
        "p",
        "script",
        "style",
        "div",
        "span",
        "figure",
        "figcaption",
        "svg",
        "g",
        "title",
        "text",
        "dl",
        "dt",
        "dd",
        "a",
    ];
    for tag in tags {
        let begins =
            page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(begins, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    assert_eq!(page.matches("<h1>").count(), 1);
    let mut ids: Vec<_> =
        page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "an identifier is there twice");
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str =
        "</td></script><script>alert(1)</script><img src=x \"onerror='a&b'\u{1b}[0m\u{202e}\0";

    #[test]
    fn what_a_guest_wrote_is_text_wherever_it_stands() {
        let mut page = Page::new(HOSTILE);
        page.add(verdict(Tone::Bad, HOSTILE, html! { (HOSTILE) }));
        page.add(tiles([(HOSTILE.to_owned(), HOSTILE)]));
        page.add(facts([(HOSTILE, html! { (HOSTILE) })]));
        page.add(folded(html! { (HOSTILE) }, command(HOSTILE)));
        let mut table = Table::new(HOSTILE, [Column::text("a"), Column::number("b")]).filter();
        table.row([html! { (HOSTILE) }, html! { span title=(HOSTILE) { "x" } }]);
        page.section("here", HOSTILE, html! { (table) });
        let text = page.render();
        assert_eq!(text.matches("<script>").count(), 1, "the page's own: {text}");
        assert!(!text.contains("<img"), "{text}");
        assert!(text.contains("&lt;img src=x &quot;onerror="), "{text}");
        assert!(!text.contains(['\u{1b}', '\0', '\u{202e}']), "{text}");
        // In an attribute the quotes are what counts.
        assert!(text.contains("<span title=\"&lt;/td&gt;"), "{text}");
    }

    #[test]
    fn a_page_is_whole_and_asks_for_nothing() {
        let mut page = Page::new("A run");
        for id in ["a", "b", "c"] {
            page.section(id, &format!("Part {id}"), html! { p { "text" } });
        }
        let text = page.render();
        assert_sound(&text);
        assert!(text.starts_with("<!DOCTYPE html>"));
        assert!(text.contains("<nav aria-label=\"Contents\">") && text.contains("<a href=\"#b\">"));
        assert!(text.contains("prefers-color-scheme: dark") && text.contains("@media print"));
    }

    #[test]
    fn a_table_has_a_caption_and_says_what_its_cells_are() {
        let mut table = Table::new("Files", [Column::text("File"), Column::number("Lines")]);
        table.row_in(Tone::Bad, [html! { "a.rs" }, html! { "7" }]);
        let text = html! { (table) }.into_string();
        assert!(text.contains("<caption>Files</caption>"), "{text}");
        assert!(text.contains("<th scope=\"col\" class=\"n\">Lines</th>"), "{text}");
        assert!(text.contains("<tr class=\"bad\"><th"), "{text}");
    }
}
