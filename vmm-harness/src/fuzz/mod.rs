//! Fuzzing: scenarios out of seeds or of a corpus, one run after the other, on machines that are kept
//! and reset.
//!
//! - [`run`]: a campaign of many runs on one or more threads, and its [`FuzzReport`];
//! - `corpus`: scenarios that reached something new, which are changed;
//! - [`Case`]: a scenario in a file, and how it failed;
//! - [`minimise`]: what is left of a scenario without all that it fails without;
//! - [`Shard`] and [`merge`]: a campaign on many hosts, and its report.

mod campaign;
mod case;
mod corpus;
mod failure;
mod html;
mod live;
mod machines;
mod merge;
mod minimise;
mod parallel;
mod picture;
mod report;
mod scenario_report;
mod seen;
mod shard;
mod show;
mod store;
mod told;

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use campaign::{Ended, run};
pub use case::{Case, minimal_beside};
pub use failure::{Dropped, Failure, MinimalReport};
pub use html::{campaign_page, scenario_page};
pub use live::Live;
pub use machines::Machines;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use merge::report_from_bytes;
pub use merge::{merge, read_report};
pub use minimise::{Minimal, minimise};
pub use parallel::Parallel;
pub use picture::{Drawing, DrawnRow, Picture, Ran, SourceLine, Spot, Standing, Style};
pub use report::{FuzzReport, write_report};
pub use scenario_report::ScenarioReport;
pub use seen::{Likeness, Seen, image_name};
pub use shard::Shard;
pub use show::{write_minimal, write_replay};
pub use told::Told;

use crate::host::HostInfo;
use crate::machine::Scenario;
use crate::vm::Engine;

/// What scenarios run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineKind {
    /// One CPU at a time, as the seed says.
    #[default]
    Deterministic,
    /// A thread a CPU.
    Parallel,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct FuzzConfig {
    /// Seeds, in order; those of this shard.
    pub seeds: Range<u64>,
    /// Which part of a campaign this is.
    pub shard: Shard,
    /// What is run with each seed's turns and choices, in place of the seed's own scenario.
    pub scenario: Option<Scenario>,
    /// Besides seeds, kept scenarios are changed and run.
    pub change: bool,
    /// Directory in which scenarios are kept, and looked for at the beginning.
    pub corpus: Option<PathBuf>,
    /// No run begins after this time.
    pub time: Option<Duration>,
    /// Threads.
    pub jobs: usize,
    /// Each scenario runs on two machines, and the traces are compared.
    pub verify: bool,
    /// Failures after which it ends.
    pub most_failures: u64,
    /// Directory of the failures' files.
    pub failures: PathBuf,
    /// How long to try to make a failure small.
    pub minimise: Duration,
    /// The guest's privilege level.
    pub ring: u8,
    /// The machine.
    pub machine: MachineKind,
    /// What the host can do.
    pub host: HostInfo,
}

impl FuzzConfig {
    /// Threads that can run scenarios at once: one, where a guest is threads of this process, since all
    /// guests lie at the same addresses. (Several processes can share the work, as shards.)
    pub fn jobs_at_once(&self) -> usize {
        match self.host.engine {
            Engine::Kvm => self.jobs,
            Engine::Threads => self.jobs.min(1),
        }
    }
}
