//! What the guest does on purpose while all workloads rest, judged by the state before and after:
//! a balance (I15), frees that are refused (I16), a growth that fails (I17).

use percpu_core::view::CHUNK_RESERVED;
use percpu_guest::abi::Trial;

use super::Judge;
use super::caches::{self, Cache};
use super::chunks::{self, Chunk};
use super::finding::{Findings, Violation};
use super::layout::Layout;
use super::snapshot::Snapshot;
use crate::memory::AddressSpace;

/// What the guest says of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrialEnd {
    /// Which one.
    pub trial: Trial,
    /// Operations it tried.
    pub tried: u64,
    /// Of these, how many ended as they were meant to.
    pub as_meant: u64,
    /// Sequence number of the command.
    pub command: u64,
}

impl Judge {
    /// Remembers the state before `trial`. The guest stands still.
    pub fn before_trial(&mut self, trial: Trial) {
        self.before = match trial {
            Trial::RefusedFrees | Trial::FailedGrowth => self.snapshot(),
            _ => None,
        };
    }

    /// Judges what a trial has left. The guest stands still again.
    pub fn after_trial(&mut self, end: &TrialEnd) {
        let mut findings = Findings::default();
        match end.trial {
            Trial::RefusedFrees => {
                if let Some((before, after)) = self.before.take().zip(self.snapshot()) {
                    findings.checked("I16", end.tried);
                    before.compare(&after, "I16", "a free that is to be refused", &mut findings);
                }
                if end.as_meant != end.tried {
                    let wrong = end.tried.saturating_sub(end.as_meant);
                    let detail = format!(
                        "of {} frees of what is no live area {wrong} did not end as specified",
                        end.tried
                    );
                    findings.report(
                        Violation::new("I16", "refused frees", detail)
                            .values(end.as_meant, end.tried),
                    );
                }
            }
            // A growth that found enough memory has changed something, rightly.
            Trial::FailedGrowth if end.as_meant == end.tried => {
                if let Some((before, after)) = self.before.take().zip(self.snapshot()) {
                    findings.checked("I17", 1);
                    before.compare(&after, "I17", "a growth that failed", &mut findings);
                }
            }
            Trial::Balance => {
                if let Some(layout) = self.layout.clone() {
                    let space = self.mem.address_space();
                    if let Some((chunks, _)) = allocator_now(&space, &layout, &mut findings) {
                        check_balanced(&chunks, &mut findings);
                    }
                }
            }
            // It ends with a growth that fails, after others that changed something: no comparison,
            // but the account must be in order.
            Trial::FillUp => {
                if let Some(layout) = self.layout.clone() {
                    let space = self.mem.address_space();
                    let kept = &mut self.kept;
                    chunks::check(&space, &layout, None, &None, kept, &mut findings);
                }
            }
            _ => {}
        }
        self.tally.add(findings, self.shadow.now);
    }

    fn snapshot(&mut self) -> Option<Snapshot> {
        let layout = self.layout.clone()?;
        let mut findings = Findings::default();
        let snapshot = {
            let space = self.mem.address_space();
            allocator_now(&space, &layout, &mut findings).and_then(|(chunks, caches)| {
                findings.sound(Snapshot::take(&space, &layout, &chunks, &caches))
            })
        };
        let whole = findings.found.is_empty();
        self.tally.add(findings, self.shadow.now);
        snapshot.filter(|_| whole)
    }
}

fn allocator_now(
    space: &AddressSpace<'_>,
    layout: &Layout,
    findings: &mut Findings,
) -> Option<(Vec<Chunk>, Vec<Cache>)> {
    let allocator = findings.sound(layout.allocator(space))?;
    Some((chunks::walk(space, &allocator, findings), caches::read(space, &allocator, findings)))
}

/// I15: after a balance at most one chunk is wholly free.
fn check_balanced(chunks: &[Chunk], findings: &mut Findings) {
    findings.checked("I15", 1);
    let free: Vec<_> = chunks
        .iter()
        .filter(|chunk| !chunk.is(CHUNK_RESERVED) && chunk.alloc.ones() == 0)
        .map(Chunk::name)
        .collect();
    if free.len() > 1 {
        let detail =
            format!("after a balance {} chunks are wholly free: {}", free.len(), free.join(", "));
        findings.report(Violation::new("I15", "wholly free chunks", detail).values(free.len(), 1));
    }
}
