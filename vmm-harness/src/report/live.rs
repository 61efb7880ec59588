//! What one sees while a run is under way.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{grouped, short_number};

/// Time between two plain lines where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// The state of a run at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Since the guest's first instruction.
    pub elapsed: Duration,
    /// How long the run is to last.
    pub total: Option<Duration>,
    /// CPUs online now.
    pub online: u32,
    /// CPUs that can be.
    pub possible: u32,
    /// Plug orders fulfilled so far.
    pub plugs: u64,
    /// Operations so far, by workload.
    pub ops: Vec<(String, u64)>,
    /// Checks so far.
    pub checks: u64,
    /// Violations so far.
    pub violations: u64,
}

/// A line on standard error: rewritten in place on a terminal, else a plain one every few seconds.
#[derive(Debug)]
pub struct LiveLine {
    bar: Option<ProgressBar>,
    /// What the rates are relative to.
    last: Progress,
    printed: Duration,
}

impl Default for LiveLine {
    /// A line for a run that begins now.
    fn default() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{spinner} {wide_msg}");
            bar.set_style(style.expect("the template is a constant"));
            bar
        });
        Self { bar, last: Progress::default(), printed: Duration::ZERO }
    }
}

impl LiveLine {
    /// Shows how things stand; to be called a few times a second.
    pub fn update(&mut self, now: Progress) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(line(&self.last, &now));
                bar.tick();
            }
            None if now.elapsed.saturating_sub(self.printed) >= PLAIN_EVERY => {
                eprintln!("{}", line(&self.last, &now));
                self.printed = now.elapsed;
            }
            None => return,
        }
        self.last = now;
    }

    /// Takes the line away: the table follows.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        self.finish();
    }
}

fn line(before: &Progress, now: &Progress) -> String {
    let passed = now.elapsed.saturating_sub(before.elapsed).as_secs_f64().max(1e-3);
    let rate = |a: u64, b: u64| short_number(b.saturating_sub(a) as f64 / passed);
    let mut text = format!("{:.0} s", now.elapsed.as_secs_f64());
    if let Some(total) = now.total {
        text = format!("{:.0}/{:.0} s", now.elapsed.as_secs_f64(), total.as_secs_f64());
    }
    text += &format!(
        "  {}/{} CPUs  {} plugs/s",
        now.online,
        now.possible,
        rate(before.plugs, now.plugs)
    );
    for (n, (name, ops)) in now.ops.iter().enumerate() {
        let earlier = before.ops.get(n).map_or(0, |(_, ops)| *ops);
        text += &format!("  {name} {}/s", rate(earlier, *ops));
    }
    text += &format!("  {} checks", grouped(now.checks));
    if now.violations > 0 {
        text += &format!("  {} BROKEN", now.violations);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_rates_since_the_last_one() {
        let before = Progress {
            elapsed: Duration::from_secs(10),
            plugs: 100,
            ops: vec![("alloc".into(), 1000)],
            ..Progress::default()
        };
        let now = Progress {
            elapsed: Duration::from_secs(12),
            total: Some(Duration::from_secs(60)),
            online: 3,
            possible: 16,
            plugs: 150,
            ops: vec![("alloc".into(), 51_000)],
            checks: 1234,
            violations: 1,
        };
        assert_eq!(
            line(&before, &now),
            "12/60 s  3/16 CPUs  25 plugs/s  alloc 25.0 k/s  1 234 checks  1 BROKEN"
        );
    }
}
