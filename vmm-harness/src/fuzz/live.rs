//! What one sees while seeds run: a line that is rewritten in place on a terminal, else one now and
//! then, on standard error.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::{FuzzReport, MachineKind};
use crate::coverage::Features;

/// Time between two plain lines where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(5);
const TERMINAL_EVERY: Duration = Duration::from_millis(100);

/// A line on standard error.
pub struct Live {
    bar: Option<ProgressBar>,
    shown: Instant,
}

impl Default for Live {
    /// One that says nothing yet.
    fn default() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg}");
            ProgressBar::new_spinner().with_style(style.expect("the template is a constant"))
        });
        Self { bar, shown: Instant::now() }
    }
}

impl Live {
    pub(super) fn show(&mut self, report: &FuzzReport, reached: &Features) {
        self.show_line(|| line(report, reached));
    }

    /// Shows how things stand, if the last time is a while ago.
    pub fn show_line(&mut self, line: impl FnOnce() -> String) {
        let every = if self.bar.is_some() { TERMINAL_EVERY } else { PLAIN_EVERY };
        if self.shown.elapsed() < every {
            return;
        }
        self.shown = Instant::now();
        let line = line();
        match &self.bar {
            Some(bar) => {
                bar.set_message(line);
                bar.tick();
            }
            None => eprintln!("{line}"),
        }
    }

    /// Says something that stays.
    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Takes the line away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// How things stand.
fn line(report: &FuzzReport, reached: &Features) -> String {
    let mut line = format!("{} runs, {:.0} a second", report.runs, report.runs_per_second);
    if report.machine == MachineKind::Deterministic {
        line += &format!(
            ", {} edges, {} switches, {} kept",
            reached.edges.count(),
            reached.switches.count(),
            report.corpus
        );
    }
    let failures = report.failures.len();
    let plural = if failures == 1 { "" } else { "s" };
    line + &format!(", {} plugs, {failures} failure{plural}", report.plugs)
}
