//! What one sees while it is measured, on standard error: a line that changes on a terminal, else a
//! line for each part.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two plain lines of one group where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Progress of a benchmark.
pub struct Live {
    bar: Option<ProgressBar>,
    group: String,
    began: Instant,
    printed: Option<Instant>,
}

impl Live {
    /// Nothing so far.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{elapsed:>4} {prefix:8} {wide_msg}");
            ProgressBar::new_spinner().with_style(style.expect("the template is a constant"))
        });
        Self { bar, group: String::new(), began: Instant::now(), printed: None }
    }

    /// A group begins.
    pub fn group(&mut self, name: &str) {
        self.group = name.to_owned();
        self.printed = None;
        if let Some(bar) = &self.bar {
            bar.set_prefix(name.to_owned());
        }
    }

    /// What is measured now.
    pub fn step(&mut self, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(what.to_owned());
                bar.tick();
            }
            None if self.printed.is_none_or(|at| at.elapsed() >= PLAIN_EVERY) => {
                eprintln!("[{:4.0} s] {}: {what}", self.began.elapsed().as_secs_f64(), self.group);
                self.printed = Some(Instant::now());
            }
            None => {}
        }
    }

    /// The same of the group's rows, of which so many are done.
    pub fn within(&mut self, done: usize, planned: usize, last: &str) {
        self.step(&format!("{done} of {planned}: {last}"));
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
