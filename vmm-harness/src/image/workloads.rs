//! The workloads that an image declares.

use percpu_guest::abi::{self, MOST_WORKLOADS, NOT_FOR_SEEDS, WorkloadEntry};

use super::{bytes, section_of};
use crate::error::Error;
use crate::plain::plain;

/// Workloads, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workloads(Vec<Workload>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Workload {
    name: String,
    /// Its bit, and its place in tables by workload.
    number: usize,
    for_seeds: bool,
}

impl Workloads {
    /// Those of an image; `None` if they make no sense.
    pub(super) fn of(elf: &object::File<'_>) -> Option<Self> {
        let entries: Vec<WorkloadEntry> = section_of(elf, abi::WORKLOAD_SECTION)?;
        if entries.len() > MOST_WORKLOADS {
            return None;
        }
        let mut workloads = Vec::new();
        for (number, entry) in entries.into_iter().enumerate() {
            let name = bytes(elf, entry.name, entry.name_len)?;
            let name = plain(std::str::from_utf8(name).ok()?);
            let for_seeds = entry.flags & NOT_FOR_SEEDS == 0;
            workloads.push(Workload { name, number, for_seeds });
        }
        workloads.sort_by(|a, b| a.name.cmp(&b.name));
        // Two of one name could not be told apart.
        let differ = workloads.windows(2).all(|two| two[0].name != two[1].name);
        differ.then_some(Self(workloads))
    }

    /// Workloads of these names, in this order, all of which seeds may have.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn named(names: &[&str]) -> Self {
        let workload = |(number, name): (usize, &&str)| Workload {
            name: (*name).to_owned(),
            number,
            for_seeds: true,
        };
        Self(names.iter().enumerate().map(workload).collect())
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|workload| workload.name.as_str())
    }

    /// The names of those that scenarios made out of seeds may have.
    pub fn for_seeds(&self) -> Vec<&str> {
        let all = self.0.iter().filter(|workload| workload.for_seeds);
        all.map(|workload| workload.name.as_str()).collect()
    }

    /// The place of a workload in tables by workload.
    pub fn number(&self, name: &str) -> Option<usize> {
        self.0.iter().find(|workload| workload.name == name).map(|workload| workload.number)
    }

    /// What the guest is told of which are to run; those that do not exist are left out.
    pub fn bits(&self, names: &[String]) -> u32 {
        names.iter().filter_map(|name| self.number(name)).fold(0, |bits, number| bits | 1 << number)
    }

    /// What is wrong with a name, if it is none of theirs.
    pub fn check(&self, name: &str) -> Result<(), String> {
        match self.number(name) {
            Some(_) => Ok(()),
            None if self.0.is_empty() => Err("this guest declares no workloads".into()),
            None => {
                let names: Vec<_> = self.names().collect();
                Err(format!("there is no workload {name:?}: give some of {}", names.join(", ")))
            }
        }
    }

    /// Refuses an image of which seeds can make nothing.
    pub fn require_some(&self) -> Result<(), Error> {
        match self.0.iter().any(|workload| workload.for_seeds) {
            true => Ok(()),
            false => Err(Error::Usage(
                "this guest declares no workloads that seeds can choose from: put \
                 #[percpu_guest::workload] before a function of its own"
                    .into(),
            )),
        }
    }
}
