//! A campaign: threads that run one scenario after the other, each on machines of its own, and what they
//! share: which scenario comes next, the corpus, the report.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::case::{Case, minimal_beside};
use super::corpus::Corpus;
use super::failure::{self, Failure, MinimalReport};
use super::live::Live;
use super::minimise::{Minimal, minimise};
use super::report::FuzzReport;
use super::seen::{Seen, image_name};
use super::told::Told;
use super::{FuzzConfig, MachineKind, Machines, Style, parallel};
use crate::coverage::Coverage;
use crate::error::Error;
use crate::guest::program;
use crate::image::Image;
use crate::machine::{Ending, Outcome, Random, Scenario};

/// How it went.
#[derive(Debug)]
pub struct Ended {
    /// What came of it.
    pub report: FuzzReport,
    /// What ended it early.
    pub error: Option<Error>,
}

/// Runs scenarios and reports.
pub fn run(image: &Image, config: &FuzzConfig, interrupted: &AtomicBool) -> Result<Ended, Error> {
    let campaign = Campaign::begin(image, config, interrupted)?;
    thread::scope(|scope| {
        for _ in 0..config.jobs_at_once() {
            scope.spawn(|| campaign.work());
        }
    });
    Ok(campaign.end())
}

/// Where a scenario is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// It was in the corpus.
    Corpus,
    /// A seed, or the seed's turns for the given scenario.
    Seed,
    /// It was kept, and changed.
    Changed,
}

/// What all threads share.
struct Campaign<'a> {
    image: &'a Image,
    image_name: String,
    config: &'a FuzzConfig,
    interrupted: &'a AtomicBool,
    began: Instant,
    state: Mutex<State>,
}

/// What they share and change.
struct State {
    /// The corpus's scenarios that were not run yet, last first.
    kept: Vec<Scenario>,
    seeds: Range<u64>,
    random: Random,
    corpus: Corpus,
    report: FuzzReport,
    live: Live,
    error: Option<Error>,
}

impl<'a> Campaign<'a> {
    fn begin(
        image: &'a Image,
        config: &'a FuzzConfig,
        interrupted: &'a AtomicBool,
    ) -> Result<Self, Error> {
        image.workloads().require_some()?;
        let corpus = Corpus::new(config.corpus.as_deref())?;
        let (mut kept, wrong) = corpus.read(image.workloads())?;
        kept.reverse();
        let image_name = image_name(image);
        let mut report = FuzzReport::new(config, image_name.clone());
        let live = Live::default();
        for error in &wrong {
            live.say(&format!("left out of the corpus: {error}"));
        }
        report.corpus_wrong = wrong.len();
        let seeds = config.seeds.clone();
        let random = Random::new(seeds.start, 4);
        let state = State { kept, seeds, random, corpus, report, live, error: None };
        let (began, state) = (Instant::now(), Mutex::new(state));
        Ok(Self { image, image_name, config, interrupted, began, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it has the lock")
    }

    /// What a thread does. What is wrong ends all of them.
    fn work(&self) {
        if let Err(error) = self.run_all() {
            self.state().error.get_or_insert(error);
        }
    }

    fn run_all(&self) -> Result<(), Error> {
        let config = self.config;
        let mut machines = Machines::of(self.image, config, self.interrupted)?;
        let mut others = Machines::new(self.image, config.host.engine, config.ring);
        while let Some((scenario, origin)) = self.next() {
            let outcome = machines.run(&scenario)?;
            let mut seen = self.seen(&outcome);
            let mut equal = false;
            if config.verify {
                let again = others.run(&scenario)?;
                let differ = Seen::of_two(&outcome, &again, config.ring, &self.image_name);
                equal = differ.is_none();
                seen = differ.or(seen);
            }
            let found = self.add(&scenario, origin, &outcome, equal, seen.is_none())?;
            if let Some(seen) = seen {
                self.add_failure(&mut machines, (scenario, &outcome), origin, seen, found)?;
            }
        }
        Ok(())
    }

    /// The next scenario, if there is to be one.
    fn next(&self) -> Option<(Scenario, Origin)> {
        let config = self.config;
        let state = &mut *self.state();
        let late = config.time.is_some_and(|time| self.began.elapsed() >= time);
        state.report.interrupted |= self.interrupted.load(Ordering::Relaxed);
        let enough = state.report.failures.len() as u64 >= config.most_failures;
        if late || enough || state.report.interrupted || state.error.is_some() {
            return None;
        }
        if let Some(scenario) = state.kept.pop() {
            return Some((scenario, Origin::Corpus));
        }
        if config.change
            && state.random.one_in(2)
            && let Some(scenario) =
                state.corpus.changed(&mut state.random, &self.image.workloads().for_seeds())
        {
            return Some((scenario, Origin::Changed));
        }
        let seed = state.seeds.next()?;
        let scenario = match &config.scenario {
            Some(scenario) => scenario.with_seed(seed),
            None => Scenario::from_seed(seed, &self.image.workloads().for_seeds()),
        };
        Some((scenario, Origin::Seed))
    }

    fn seen(&self, outcome: &Outcome) -> Option<Seen> {
        let mut seen = Seen::of(outcome, self.config.ring, &self.image_name)?;
        if let (MachineKind::Parallel, Ending::Crashed(crash) | Ending::Hung(crash)) =
            (self.config.machine, &outcome.ending)
        {
            // Whoever cannot replay it to see more needs to see all of it now.
            seen.detail = crash.to_string();
        }
        Some(seen)
    }

    /// Adds a run, and keeps its scenario if it held and reached something new. How many runs there
    /// are now, and how long that took.
    fn add(
        &self,
        scenario: &Scenario,
        origin: Origin,
        outcome: &Outcome,
        equal: bool,
        held: bool,
    ) -> Result<(u64, Duration), Error> {
        let mut state = self.state();
        let State { report, corpus, live, .. } = &mut *state;
        report.add(outcome);
        report.verified += u64::from(equal);
        report.runs_changed += u64::from(origin == Origin::Changed);
        report.runs_of_corpus += u64::from(origin == Origin::Corpus);
        let is_kept = if held {
            corpus.add(scenario, &outcome.features)
        } else {
            // Changed, it would fail again and again.
            corpus.note(&outcome.features);
            false
        };
        report.corpus = corpus.len();
        let time = self.began.elapsed();
        report.set_time(time);
        live.show(report, corpus.known());
        let found = (report.runs, time);
        // Disks are slow, and the other threads need not wait.
        drop(state);
        if let Some(directory) = &self.config.corpus
            && is_kept
            && origin != Origin::Corpus
        {
            Case { failure: None, scenario: scenario.clone() }.write_below(directory)?;
        }
        Ok(found)
    }

    /// Writes a failure's file, makes it small, and reports it.
    fn add_failure(
        &self,
        machines: &mut Machines<'_>,
        (scenario, outcome): (Scenario, &Outcome),
        origin: Origin,
        seen: Seen,
        (runs, time): (u64, Duration),
    ) -> Result<(), Error> {
        let is_deterministic = self.config.machine == MachineKind::Deterministic;
        let case = Case { failure: Some(seen.clone()), scenario: scenario.clone() };
        let file = case.write_below(&self.config.failures);
        let is_to_be_small =
            is_deterministic && !self.config.minimise.is_zero() && !seen.is_of_two_runs();
        let (mut minimal, mut note) = (None, None);
        if is_to_be_small {
            let limit = self.config.minimise;
            let watch = &mut |smaller: &Scenario, runs| {
                let line =
                    || format!("making seed {} small: {smaller}, {runs} runs", scenario.seed);
                // Other threads go on, and show how that goes.
                if self.config.jobs_at_once() == 1 {
                    self.state().live.show_line(line);
                }
            };
            minimal = minimise(machines, &scenario, limit, self.interrupted, watch)?;
            note = minimal.is_none().then(|| "run again it held: see --verify".to_owned());
        }
        let minimal_file = match (&minimal, &file) {
            (Some(minimal), Ok(file)) => self.write_minimal(minimal, file).map(Some),
            _ => Ok(None),
        };
        let path = file.as_deref().ok().map(|path| path.display().to_string());
        let run = match &minimal {
            Some(minimal) => (&minimal.scenario, &minimal.outcome),
            None => (&scenario, outcome),
        };
        let told = tell(machines, run)?;
        let changed = origin != Origin::Seed || self.config.scenario.is_some();
        let failure = Failure {
            key: failure::key(&seen, &scenario, minimal.as_ref()),
            seed: scenario.seed,
            changed,
            what: seen.what,
            detail: seen.detail,
            scenario: match self.config.machine {
                MachineKind::Deterministic => scenario.to_string(),
                MachineKind::Parallel => parallel::describe(&scenario),
            },
            steps: seen.steps,
            hash: seen.hash,
            found_after_runs: runs,
            found_after_seconds: time.as_secs_f64(),
            replay: self.replay_command(scenario.seed, path.as_deref(), changed),
            minimise: path
                .as_ref()
                .filter(|_| is_deterministic)
                .map(|path| format!("{} minimise {path}", program())),
            file: path,
            minimal: minimal.as_ref().map(|minimal| {
                MinimalReport::new(minimal, minimal_file.as_ref().ok().and_then(Option::as_deref))
            }),
            note,
            told: Some(told),
        };
        let mut state = self.state();
        state.live.say(&failure.to_string());
        state.report.failures.push(failure);
        // Only now: it is reported whatever becomes of the files.
        file.and(minimal_file).map(drop)
    }

    fn replay_command(&self, seed: u64, file: Option<&str>, changed: bool) -> String {
        match (self.config.machine, file) {
            (MachineKind::Deterministic, Some(file)) => format!("{} replay {file}", program()),
            (MachineKind::Deterministic, None) => format!("{} replay {seed}", program()),
            (MachineKind::Parallel, file) => parallel::replay(seed, file, changed),
        }
    }

    fn write_minimal(&self, minimal: &Minimal, beside: &Path) -> Result<PathBuf, Error> {
        let path = minimal_beside(beside);
        let failure = Seen::of(&minimal.outcome, self.config.ring, &self.image_name);
        Case { failure, scenario: minimal.scenario.clone() }.write(&path)?;
        Ok(path)
    }

    fn end(self) -> Ended {
        let State { mut report, corpus, mut live, error, seeds, .. } =
            self.state.into_inner().expect("no thread panics while it has the lock");
        live.finish();
        report.set_time(self.began.elapsed());
        let reached = corpus.known();
        report.coverage =
            self.image.edges().map(|edges| Coverage::of_runs(edges, report.runs, reached.clone()));
        report.note_reached(reached);
        // All that were begun were ended, unless something is wrong.
        let ran = self.config.seeds.start..seeds.start;
        report.seeds = if ran.is_empty() { Vec::new() } else { vec![(ran.start, ran.end)] };
        report.failures.sort_by(|a, b| (&a.key, a.seed, &a.file).cmp(&(&b.key, b.seed, &b.file)));
        report.error = error.as_ref().map(ToString::to_string);
        Ended { report, error }
    }
}

/// What a failing run shows.
fn tell(machines: &mut Machines<'_>, run: (&Scenario, &Outcome)) -> Result<Told, Error> {
    let strikes = machines.strikes(run.0)?;
    let mut picture = machines.picture(Style { width: None, colours: false });
    Ok(Told::of(&mut picture, run, &strikes))
}
