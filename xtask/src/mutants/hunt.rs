//! Runs a guest with seeds, several at a time, until it shows what it was expected to show.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::Row;
use super::bank::Mutant;

/// Seeds that each job has to itself.
const SEEDS: u64 = 1 << 32;
/// How often a job looks whether another one is done.
const LOOK: Duration = Duration::from_millis(20);
/// How long a scenario is minimised.
const MINIMISE_SECONDS: &str = "30";

/// How regressions are looked for.
pub struct Hunt {
    pub harness: PathBuf,
    pub jobs: usize,
    /// How long each.
    pub time: Duration,
}

/// The run that showed it.
#[derive(Serialize)]
pub struct Found {
    pub invariant: String,
    pub seed: u64,
    pub detail: String,
    /// Turns of the CPUs in the minimised scenario; `None` if it could not be minimised.
    pub switches: Option<u64>,
}

/// What is used of `vmm-harness fuzz --json`.
#[derive(Deserialize)]
struct Report {
    runs: u64,
    failures: Vec<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    seed: u64,
    what: String,
    detail: String,
}

/// What all jobs have seen together.
#[derive(Default)]
struct Seen {
    runs: u64,
    wanted: Option<Failure>,
    otherwise: Vec<String>,
}

/// A search under way.
struct Search<'a> {
    hunt: &'a Hunt,
    mutant: &'a Mutant,
    image: &'a Path,
    began: Instant,
    over: AtomicBool,
    seen: Mutex<Seen>,
}

impl Hunt {
    /// Looks for `mutant` in what its image does.
    pub fn run(&self, mutant: Mutant, image: &Path, say: impl Fn(&str)) -> Result<Row> {
        let search = Search {
            hunt: self,
            mutant: &mutant,
            image,
            began: Instant::now(),
            over: AtomicBool::new(false),
            seen: Mutex::default(),
        };
        std::thread::scope(|scope| {
            let search = &search;
            let start = |n| scope.spawn(move || search.job(n));
            let jobs: Vec<_> = (0..self.jobs as u64).map(start).collect();
            while !jobs.iter().all(|job| job.is_finished()) {
                say(&format!("{}: {:.0} s", mutant.name, search.began.elapsed().as_secs_f64()));
                std::thread::sleep(LOOK);
            }
            jobs.into_iter().try_for_each(|job| job.join().expect("a job does not panic"))
        })?;
        let seconds = search.began.elapsed().as_secs_f64();
        let Seen { runs, wanted, otherwise } = search.seen.into_inner().expect("no job panicked");
        let found = wanted.map(|failure| {
            say(&format!("{}: minimising seed {}", mutant.name, failure.seed));
            let switches = self.minimise(image, failure.seed);
            let Failure { seed, what, detail } = failure;
            Found { invariant: what, seed, detail, switches }
        });
        let Mutant { name, what, finds, .. } = mutant;
        Ok(Row { name, what, expected: finds, found, runs, seconds, otherwise, error: None })
    }

    /// Turns in the smallest scenario that fails as `seed`'s does.
    fn minimise(&self, image: &Path, seed: u64) -> Option<u64> {
        let mut minimise = Command::new(&self.harness);
        minimise.args(["minimise", &seed.to_string(), "--time", MINIMISE_SECONDS, "--image"]);
        let output = minimise.arg(image).current_dir(image.parent()?).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find(|line| line.starts_with("minimal after"))?;
        line.strip_suffix(" given turns")?.rsplit(' ').next()?.parse().ok()
    }
}

impl Search<'_> {
    /// Runs the seeds of job `n` until one shows what is looked for, or the time is up.
    fn job(&self, n: u64) -> Result<()> {
        let (mut next, end) = (n * SEEDS, (n + 1) * SEEDS);
        while !self.over.load(Ordering::Relaxed) {
            let report = self.fuzz(n, next..end).inspect_err(|_| self.end())?;
            let mut seen = self.seen.lock().expect("no job panics");
            seen.runs += report.runs;
            let Some(failure) = report.failures.into_iter().next() else { break };
            next = failure.seed + 1;
            if self.mutant.finds.contains(&failure.what) {
                seen.wanted.get_or_insert(failure);
                self.end();
            } else if !seen.otherwise.contains(&failure.what) {
                seen.otherwise.push(failure.what);
            }
            if self.mutant.patch.is_none() {
                self.end();
            }
        }
        Ok(())
    }

    fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Runs seeds until one fails, the time is up, or another job has ended the search.
    fn fuzz(&self, n: u64, seeds: Range<u64>) -> Result<Report> {
        let left = self.hunt.time.saturating_sub(self.began.elapsed());
        let [json, log] =
            ["json", "log"].map(|kind| self.image.with_extension(format!("{n}.{kind}")));
        let _ = fs::remove_file(&json);
        let said =
            File::create(&log).with_context(|| format!("{} cannot be made", log.display()))?;
        let mut fuzz = Command::new(&self.hunt.harness);
        fuzz.args(["fuzz", "--seeds", &format!("{}..{}", seeds.start, seeds.end)]);
        fuzz.args(["--time", &format!("{:.2}", left.as_secs_f64()), "--failures", "1"]);
        fuzz.arg("--image").arg(self.image).arg("--json").arg(&json);
        fuzz.current_dir(self.image.parent().context("the image lies nowhere")?);
        fuzz.stdout(said.try_clone()?).stderr(said);
        let mut child = fuzz.spawn().context("vmm-harness does not start")?;
        let mut asked = false;
        while child.try_wait()?.is_none() {
            if !asked && self.over.load(Ordering::Relaxed) {
                asked = true;
                // As Ctrl-C: it ends with its report.
                let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
            }
            std::thread::sleep(LOOK);
        }
        let Ok(text) = fs::read_to_string(&json) else {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("vmm-harness wrote no report: {}", said.lines().last().unwrap_or_default());
        };
        serde_json::from_str(&text).with_context(|| format!("{} is no report", json.display()))
    }
}
