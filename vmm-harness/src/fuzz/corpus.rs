//! Scenarios that reached what none before them did: kept, in a directory if there is one, and changed
//! in the hope for more.

use std::fs;
use std::path::{Path, PathBuf};

use super::case::Case;
use super::store;
use crate::coverage::{Features, New};
use crate::error::Error;
use crate::image::Workloads;
use crate::machine::{Random, Scenario};

/// One changed scenario in so many is made of two.
const SPLICED: u64 = 8;

/// New places at which CPUs gave way to each other for which a scenario is kept. There are many more of
/// those than of edges, and most runs have one or two that no other had.
const SWITCHES: usize = 16;

/// What is kept.
pub(super) struct Corpus {
    entries: Vec<Scenario>,
    known: Features,
    directory: Option<PathBuf>,
}

impl Corpus {
    /// Empty; kept in `directory` if there is one, which must be writable.
    pub(super) fn new(directory: Option<&Path>) -> Result<Self, Error> {
        directory.map(store::check).transpose()?;
        let directory = directory.map(Into::into);
        Ok(Self { entries: Vec::new(), known: Features::new(), directory })
    }

    /// What is in the directory, by name, and what is wrong with the rest. Nothing is ever deleted.
    pub(super) fn read(&self, workloads: &Workloads) -> Result<(Vec<Scenario>, Vec<Error>), Error> {
        let Some(directory) = &self.directory else { return Ok(Default::default()) };
        let unreadable = |source| Error::ScenarioUnreadable { path: directory.clone(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(directory).map_err(unreadable)? {
            files.push(entry.map_err(unreadable)?.path());
        }
        files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
        // In one order on all hosts.
        files.sort();
        let (mut scenarios, mut wrong) = (Vec::new(), Vec::new());
        for file in files {
            match Case::read(&file, workloads) {
                Ok(case) => scenarios.push(case.scenario),
                Err(error) => wrong.push(error),
            }
        }
        Ok((scenarios, wrong))
    }

    /// Keeps a scenario whose run reached enough that is new; whether it did.
    pub(super) fn add(&mut self, scenario: &Scenario, reached: &Features) -> bool {
        let New { edges, switches } = self.known.add(reached);
        let is_kept = edges > 0 || switches >= SWITCHES;
        if is_kept {
            self.entries.push(scenario.clone());
        }
        is_kept
    }

    /// Notes what a run reached that is not to be run again.
    pub(super) fn note(&mut self, reached: &Features) {
        self.known.add(reached);
    }

    /// A changed scenario, perhaps with other ones of these workloads; `None` if there is none to change.
    pub(super) fn changed(&self, random: &mut Random, workloads: &[&str]) -> Option<Scenario> {
        let n = self.entries.len() as u64;
        if n == 0 {
            return None;
        }
        let any = |random: &mut Random| &self.entries[random.below(n) as usize];
        let one = any(random);
        let mut scenario =
            if random.one_in(SPLICED) { one.splice(any(random), random) } else { one.clone() };
        scenario.mutate(random, workloads);
        Some(scenario)
    }

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// All that was reached.
    pub(super) fn known(&self) -> &Features {
        &self.known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::scenario::WORKLOADS;

    fn reached(edges: &[usize]) -> Features {
        Features { edges: edges.iter().copied().collect(), ..Features::new() }
    }

    #[test]
    fn what_reaches_something_new_is_kept_and_changed() {
        let mut corpus = Corpus::new(None).expect("there is no directory");
        let mut random = Random::new(1, 0);
        assert_eq!(corpus.changed(&mut random, &WORKLOADS), None);
        let scenarios: Vec<_> = (0..4).map(|seed| Scenario::from_seed(seed, &WORKLOADS)).collect();
        assert!(corpus.add(&scenarios[0], &reached(&[1, 2])));
        assert!(!corpus.add(&scenarios[1], &reached(&[2])));
        assert!(corpus.add(&scenarios[2], &reached(&[2, 3])));
        corpus.note(&reached(&[4]));
        assert!(!corpus.add(&scenarios[3], &reached(&[4])));
        assert_eq!((corpus.len(), corpus.known().edges.count()), (2, 4));
        let mut known = 0;
        for _ in 0..1000 {
            let changed = corpus.changed(&mut random, &WORKLOADS).expect("there are two");
            assert_eq!(changed.check(), Ok(()), "{changed:?}");
            known += u32::from(scenarios.contains(&changed));
        }
        // A splice of two that is changed may be one of the two again.
        assert!(known < 5, "{known} of 1000 are as they were");
    }

    #[test]
    fn some_new_places_of_switches_are_enough_and_few_are_not() {
        let mut corpus = Corpus::new(None).expect("there is no directory");
        let switches = |from: usize, n: usize| Features {
            switches: (from..from + n).collect(),
            ..Features::new()
        };
        let scenario = Scenario::from_seed(0, &WORKLOADS);
        assert!(!corpus.add(&scenario, &switches(0, SWITCHES - 1)));
        assert!(!corpus.add(&scenario, &switches(0, SWITCHES)), "all but one were known");
        assert!(corpus.add(&scenario, &switches(100, SWITCHES)));
        assert_eq!(corpus.len(), 1);
    }

    #[test]
    fn files_that_are_wrong_are_named_and_left_where_they_are() {
        let directory = std::env::temp_dir().join(format!("percpu-corpus-{}", std::process::id()));
        let corpus = Corpus::new(Some(&directory)).expect("a directory for temporary files");
        for seed in [3, 4] {
            let case = Case { failure: None, scenario: Scenario::from_seed(seed, &WORKLOADS) };
            case.write_below(&directory).expect("written");
        }
        let write = |name: &str, text: &str| {
            fs::write(directory.join(name), text).expect("written");
        };
        write("broken.toml", "version = 1\n[scenario");
        write("empty.toml", "");
        write("notes.txt", "no scenario");
        let (scenarios, wrong) = corpus.read(&Workloads::named(&WORKLOADS)).expect("a directory");
        let mut seeds: Vec<_> = scenarios.iter().map(|scenario| scenario.seed).collect();
        seeds.sort_unstable();
        assert_eq!(seeds, [3, 4]);
        let wrong: Vec<_> = wrong.iter().map(ToString::to_string).collect();
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].contains("broken.toml, line 2: "), "{wrong:?}");
        assert!(wrong[1].contains("empty.toml, line 1: "), "{wrong:?}");
        assert_eq!(fs::read_dir(&directory).expect("a directory").count(), 5);
        fs::remove_dir_all(&directory).expect("it is this test's own");
    }
}
