//! Runs a guest with seeds until it shows what it was expected to show.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::Row;
use super::bank::Mutant;

/// Seeds of a campaign: more than there is time for.
const SEEDS: u64 = 1 << 32;
/// How often it is looked whether a campaign is over.
const LOOK: Duration = Duration::from_millis(50);

/// How regressions are looked for.
pub struct Hunt {
    pub harness: PathBuf,
    pub jobs: usize,
    /// How long each.
    pub time: Duration,
    /// Seconds for making a failure small.
    pub minimise: f64,
}

/// The run that showed it.
#[derive(Serialize)]
pub struct Found {
    pub invariant: String,
    pub seed: u64,
    pub detail: String,
    /// How often CPUs take over from each other in the smallest scenario; `None` if none was looked
    /// for.
    pub switches: Option<u64>,
    /// What is left of the scenario.
    pub minimal: Option<String>,
    /// The files of the failure and of the smallest scenario.
    pub files: Vec<String>,
}

/// What is used of `vmm-harness fuzz --json`.
#[derive(Deserialize)]
struct Report {
    runs: u64,
    seconds: f64,
    failures: Vec<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    seed: u64,
    what: String,
    detail: String,
    found_after_runs: u64,
    found_after_seconds: f64,
    file: Option<String>,
    minimal: Option<Minimal>,
}

#[derive(Deserialize)]
struct Minimal {
    scenario: String,
    switches: u64,
    file: Option<String>,
}

impl Hunt {
    /// Looks for `mutant` in what its image does. A failure of another kind is noted, and the search
    /// goes on with other seeds; not so where there is nothing to look for.
    pub fn run(&self, mutant: &Mutant, image: &Path, say: impl Fn(&str)) -> Result<Row> {
        let (mut runs, mut seconds, mut first) = (0, 0.0, 0);
        let mut row = Row::new(mutant);
        while row.found.is_none() && seconds < self.time.as_secs_f64() {
            let left = self.time.as_secs_f64() - seconds;
            let report =
                self.campaign(image, first, left, |text| say(&format!("{}: {text}", mutant.name)))?;
            let Some(failure) = report.failures.into_iter().next() else {
                (runs, seconds) = (runs + report.runs, seconds + report.seconds);
                break;
            };
            first = failure.seed + 1;
            runs += failure.found_after_runs;
            seconds += failure.found_after_seconds;
            if mutant.finds.contains(&failure.what) {
                row.found = Some(failure.into());
            } else {
                row.otherwise.push(format!("{} by seed {}", failure.what, failure.seed));
                if mutant.patch.is_none() {
                    break;
                }
            }
        }
        (row.runs, row.seconds) = (runs, seconds);
        Ok(row)
    }

    /// Runs seeds from `first` on until one fails or the time is up.
    fn campaign(&self, image: &Path, first: u64, time: f64, say: impl Fn(&str)) -> Result<Report> {
        let [json, log] = ["json", "log"].map(|kind| image.with_extension(kind));
        let _ = fs::remove_file(&json);
        let said =
            File::create(&log).with_context(|| format!("{} cannot be made", log.display()))?;
        let mut fuzz = Command::new(&self.harness);
        fuzz.args(["fuzz", "--seeds", &format!("{first}..{}", first + SEEDS)]);
        fuzz.args(["--time", &format!("{time:.2}"), "--jobs", &self.jobs.to_string()]);
        fuzz.args(["--failures", "1", "--minimise", &self.minimise.to_string()]);
        fuzz.arg("--keep").arg(image.with_extension("failures"));
        fuzz.arg("--image").arg(image).arg("--json").arg(&json);
        fuzz.stdout(said.try_clone()?).stderr(said);
        let mut child = fuzz.spawn().context("vmm-harness does not start")?;
        let began = Instant::now();
        while child.try_wait()?.is_none() {
            let seconds = began.elapsed().as_secs_f64();
            // Afterwards it makes what it has found small.
            say(&format!("{seconds:.0} s"));
            std::thread::sleep(LOOK);
        }
        let Ok(text) = fs::read_to_string(&json) else {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("vmm-harness wrote no report: {}", said.lines().last().unwrap_or_default());
        };
        serde_json::from_str(&text).with_context(|| format!("{} is no report", json.display()))
    }
}

impl From<Failure> for Found {
    fn from(failure: Failure) -> Self {
        let Failure { seed, what: invariant, detail, file, minimal, .. } = failure;
        let small = minimal.as_ref().and_then(|minimal| minimal.file.clone());
        let files = file.into_iter().chain(small).collect();
        let switches = minimal.as_ref().map(|minimal| minimal.switches);
        let minimal = minimal.map(|minimal| minimal.scenario);
        Self { invariant, seed, detail, switches, minimal, files }
    }
}
