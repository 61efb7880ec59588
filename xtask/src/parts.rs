//! Parts of a longer job: all are done, and those that failed are named.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

/// The parts done so far.
#[derive(Default)]
pub struct Parts {
    failed: Vec<&'static str>,
}

impl Parts {
    /// Does a part under a heading.
    pub fn part(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) {
        println!("\n=== {name}");
        let began = Instant::now();
        let result = work();
        println!("({name}: {:.0} s)", began.elapsed().as_secs_f64());
        if let Err(error) = result {
            println!("FAILED: {name}: {error:#}");
            self.failed.push(name);
        }
    }

    /// Does the last part, which says itself whether it failed: its last word is the last. What
    /// failed before is said first.
    pub fn last(&mut self, name: &'static str, work: impl FnOnce() -> Result<bool>) {
        if !self.failed.is_empty() {
            println!("\nFAILED so far: {}", self.failed.join("; "));
        }
        println!("\n=== {name}");
        match work() {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => println!("FAILED: {name}: {error:#}"),
        }
        self.failed.push(name);
    }

    /// Success if every part was one.
    pub fn exit_code(&self) -> ExitCode {
        if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
