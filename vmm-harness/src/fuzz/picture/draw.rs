//! Rows as text: a column a CPU where there is room for that, else one below the other.

use std::io::{self, Write};

use super::drawing::{Drawing, DrawnRow, Ran, Standing};
use crate::report::Paint;

/// Characters of a step and what separates it.
const STEP: usize = 11;
/// A column of a CPU has at least and at most so many.
const NARROWEST: usize = 34;
const WIDEST: usize = 64;
/// Where the width is not known.
const PLAIN: usize = 160;
/// The last stretches, whose source lines are shown.
pub(super) const WITH_SOURCE: usize = 4;

/// What the text is for.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Characters of a line; `None`: it is no terminal.
    pub width: Option<usize>,
    /// Colours are wanted.
    pub colours: bool,
}

impl Style {
    /// That of standard output.
    pub fn of_stdout() -> Self {
        let stdout = std::io::stdout();
        let size = console::Term::stdout().size_checked();
        Self {
            width: size.map(|(_, columns)| columns.into()),
            colours: crate::report::colours_wanted(&stdout),
        }
    }

    pub(in crate::fuzz) fn paint(self) -> Paint {
        Paint(self.colours)
    }

    pub(in crate::fuzz) fn columns(self) -> usize {
        self.width.unwrap_or(PLAIN).max(20)
    }
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tone {
    Place,
    Source,
    Note,
    Mark,
}

impl Tone {
    fn paint(self, paint: Paint, text: &str) -> String {
        match self {
            Self::Place => paint.bold(text),
            Self::Source | Self::Note => text.to_owned(),
            Self::Mark => paint.with("33", text),
        }
    }
}

/// What a CPU that does not run is doing, as a character in its column.
fn mark(standing: Standing) -> char {
    match standing {
        Standing::Stopped => '|',
        Standing::Waiting => ':',
        Standing::Idle => '.',
        Standing::Off => ' ',
    }
}

/// Writes a drawing.
pub(super) fn draw(out: &mut impl Write, style: Style, drawing: &Drawing) -> io::Result<()> {
    let cpus = drawing.cpus as usize;
    let column = style.width.map_or(0, |width| width.saturating_sub(STEP) / cpus).min(WIDEST);
    let in_columns = column >= NARROWEST;
    let paint = style.paint();
    if in_columns {
        let heads: String = (0..cpus).map(|n| format!("{:column$}", format!("CPU {n}"))).collect();
        let head = format!("{:>9}  {heads}", "step");
        writeln!(out, "{}", paint.bold(head.trim_end()))?;
    }
    let all = drawing.rows.iter().filter(|row| matches!(row, DrawnRow::Ran(_))).count();
    let mut seen = 0;
    for row in &drawing.rows {
        let ran = match row {
            DrawnRow::Order { steps, text } => {
                writeln!(out, "{steps:>9}  {}", paint.with("36", &format!("-- {text}")))?;
                continue;
            }
            DrawnRow::Folded(text) => {
                let text = format!("{:>9}  ... {text}", "");
                writeln!(out, "{}", paint.dim(&text))?;
                continue;
            }
            DrawnRow::Ran(ran) => ran,
        };
        let room = match in_columns {
            true => column - 2,
            // Step, lanes, "CPU n".
            false => style.columns().saturating_sub(STEP + cpus + 8).max(12),
        };
        seen += 1;
        let lines = cell(ran, room, all - seen < WITH_SOURCE);
        let own = ran.cpu as usize;
        let lanes: Vec<_> = ran.lanes.iter().map(|&standing| mark(standing)).collect();
        for (i, (tone, text)) in lines.iter().enumerate() {
            let step = if i == 0 { ran.steps.to_string() } else { String::new() };
            let mut line = format!("{step:>9}  ");
            if in_columns {
                for (cpu, lane) in lanes.iter().enumerate() {
                    if cpu == own {
                        line += &tone.paint(paint, text);
                        line += &" ".repeat(column - text.chars().count());
                    } else {
                        line += &paint.dim(&format!("{lane:column$}"));
                    }
                }
            } else {
                let marks = lanes.iter().enumerate();
                line.extend(marks.map(|(cpu, lane)| if cpu == own { '#' } else { *lane }));
                let name = if i == 0 { format!("CPU {own}") } else { String::new() };
                line += &format!("  {name:<5} {}", tone.paint(paint, text));
            }
            writeln!(out, "{}", line.trim_end())?;
        }
    }
    Ok(())
}

/// What there is to say of a stretch, in lines of `room` characters at most.
fn cell(ran: &Ran, room: usize, with_source: bool) -> Vec<(Tone, String)> {
    let mut lines = Vec::new();
    let mut say = |tone, text: &str| {
        lines.extend(wrap(text, room).into_iter().map(|line| (tone, line)));
    };
    for note in &ran.notes {
        say(Tone::Note, &format!("- {note}"));
    }
    match &ran.spot {
        Some(spot) => {
            say(Tone::Place, &spot.text);
            if with_source
                && let Some(line) = spot.source.iter().find(|line| line.line == spot.line)
            {
                let text = format!("  {}", line.text.trim());
                say(Tone::Source, &text.chars().take(room).collect::<String>());
            }
        }
        // Nobody asked where a CPU stands at the end of a run that went well.
        None if ran.is_last => {}
        None => say(Tone::Place, "somewhere"),
    }
    match ran.change {
        Some(change) => say(Tone::Mark, &format!("=> {} (change {change})", ran.why)),
        None => say(Tone::Note, &format!("=> {}", ran.why)),
    }
    lines
}

/// Text in lines of `room` characters at most, broken between words where that is possible.
pub(in crate::fuzz) fn wrap(text: &str, room: usize) -> Vec<String> {
    let indent = text.len() - text.trim_start().len();
    let mut lines = vec![" ".repeat(indent)];
    let mut used = indent;
    for word in text.split_whitespace() {
        let mut word: Vec<_> = word.chars().collect();
        loop {
            let line = lines.last_mut().expect("never empty");
            let gap = usize::from(used > indent);
            if used + gap + word.len() <= room {
                line.extend((0..gap).map(|_| ' ').chain(word.iter().copied()));
                used += gap + word.len();
                break;
            }
            if used > indent {
                // On the next line, a little to the right.
                let next = (indent + 2).min(room / 2);
                lines.push(" ".repeat(next));
                used = next;
                if next + word.len() <= room {
                    lines.last_mut().expect("just pushed").extend(word.iter());
                    used += word.len();
                    break;
                }
            }
            // Longer than a line.
            let rest = word.split_off((room - used).clamp(1, word.len()));
            lines.last_mut().expect("never empty").extend(word);
            used = room;
            word = rest;
            if word.is_empty() {
                break;
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::Symbols;
    use crate::fuzz::picture::place::{Place, Places};
    use crate::fuzz::picture::rows::{Row, Stretch, Why};

    fn stretch(cpu: u32, why: Why, function: &str) -> Row {
        let place = Place {
            function: function.into(),
            file: "core/counter/percpu.rs".into(),
            line: 77,
            ..Place::default()
        };
        let notes = vec!["CPU 1 is now Dying".into()];
        Row::Stretch(Stretch {
            steps: 1000,
            cpu,
            why,
            place: Some(place),
            notes,
            change: (why == Why::Switched).then_some(2),
            telling: true,
        })
    }

    fn rows() -> Vec<Row> {
        vec![
            Row::Folded { stretches: 12, steps: 900, early: false },
            stretch(0, Why::Switched, "PercpuCounter::add_with_a_long_name_indeed"),
            Row::Order { steps: 1001, text: "the host wants CPU 1 out".into() },
            stretch(1, Why::Waits, "take_down"),
            stretch(0, Why::Over, "sum"),
        ]
    }

    fn text(width: Option<usize>, colours: bool, cpus: u32) -> String {
        let mut out = Vec::new();
        let mut places = Places::new(Symbols::load(b""));
        let style = Style { width, colours };
        draw(&mut out, style, &Drawing::of((cpus, 1), &rows(), &mut places, 4)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_cpu_has_a_column_where_there_is_room() {
        for (width, cpus) in [(80, 2), (160, 4), (200, 3)] {
            let text = text(Some(width), false, cpus);
            let head = text.lines().next().unwrap();
            let column = head.find("CPU 1").expect("a heading");
            let of_1 = text.lines().find(|line| line.contains("take_down")).unwrap();
            assert_eq!(of_1.find("take_down").or(Some(0)), Some(column), "{text}");
            assert!(of_1[STEP..].starts_with('|'), "CPU 0 stands on its way: {text}");
            let of_0 = text.lines().find(|line| line.contains("sum core/")).unwrap();
            assert_eq!(
                of_0.find(" : ").or(of_0.find(" :")),
                Some(column - 1),
                "CPU 1 waits: {text}"
            );
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
            assert!(text.contains("=> another one's turn (change 2)"), "{text}");
            assert!(text.contains("... 12 turns of waiting, to step 900"), "{text}");
        }
    }

    #[test]
    fn without_room_rows_stand_below_each_other() {
        for (width, cpus) in [(Some(80), 4), (Some(40), 2), (None, 2)] {
            let text = text(width, false, cpus);
            let of_1 = text.lines().find(|line| line.contains("CPU 1 - ")).unwrap();
            assert!(of_1.contains("  |#") && of_1.contains("is now"), "{text}");
            let most = width.unwrap_or(PLAIN);
            let rows = text.lines().filter(|line| !line.contains("--") && !line.contains("..."));
            assert!(rows.clone().all(|line| line.chars().count() <= most), "{text}");
            assert!(!text.contains('\x1b'));
        }
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let coloured = text(Some(100), true, 2);
        assert!(coloured.contains("\x1b["));
        let mut bare = String::new();
        for (i, part) in coloured.split('\x1b').enumerate() {
            bare += if i == 0 { part } else { part.split_once('m').unwrap().1 };
        }
        let trimmed =
            |text: &str| text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        assert_eq!(trimmed(&bare), trimmed(&text(Some(100), false, 2)));
    }

    #[test]
    fn lines_break_between_words_and_in_words_that_are_too_long() {
        assert_eq!(wrap("one two three", 8), ["one two", "  three"]);
        assert_eq!(wrap("  one two", 6), ["  one", "   two"]);
        let lines = wrap("a_word_that_is_longer_than_the_line x", 10);
        assert!(lines.iter().all(|line| line.chars().count() <= 10), "{lines:?}");
        assert_eq!(lines.concat().replace(' ', ""), "a_word_that_is_longer_than_the_linex");
        assert_eq!(wrap("", 10), [""]);
    }
}
