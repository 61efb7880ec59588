//! I15, the half about history: the first and the reserved chunk are never depopulated.

use std::collections::{BTreeMap, BTreeSet};

use percpu_core::view::{BLOCK_GRANULES, CHUNK_IMMUTABLE, CHUNK_RESERVED};

use super::bits::Bits;
use super::chunks::Chunk;
use super::finding::{Findings, Violation};
use super::layout::Layout;
use crate::memory::AddressSpace;

/// Such chunks that are remembered: a guest has two.
const MOST: usize = 8;

/// What has ever been seen behind the chunks that are never depopulated.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// By the chunk's address.
    chunks: BTreeMap<u64, History>,
}

#[derive(Debug, Default)]
struct History {
    /// Where the populated map lies, and how many pages it has.
    map: (u64, u32),
    /// Pages that were populated at some time.
    pages: BTreeSet<u32>,
    /// The frame behind a page of a CPU's unit.
    frames: BTreeMap<(u32, u32), u64>,
}

impl Kept {
    /// Looks at a chunk, and remembers it. Other chunks than these two are none of our business.
    pub(crate) fn check(
        &mut self,
        space: &AddressSpace<'_>,
        layout: &Layout,
        chunk: &Chunk,
        findings: &mut Findings,
    ) {
        if !chunk.is(CHUNK_IMMUTABLE) && !chunk.is(CHUNK_RESERVED) {
            return;
        }
        findings.checked("I15", 1);
        if self.chunks.len() >= MOST && !self.chunks.contains_key(&chunk.address) {
            let detail = format!(
                "{} says that it is the first or the reserved chunk, of which {MOST} were seen",
                chunk.name()
            );
            return findings.report(Violation::new("I15", chunk.name(), detail));
        }
        // Pages behind the managed part may have been given back at set-up.
        let managed = chunk.first() / BLOCK_GRANULES..chunk.last().div_ceil(BLOCK_GRANULES);
        let hole = chunk.populated.next(false, managed.clone());
        if hole < managed.end {
            report(chunk.address, hole, findings);
        }
        let history = self.chunks.entry(chunk.address).or_default();
        history.map = (chunk.view.populated, chunk.view.nr_pages);
        history.check(chunk.address, &chunk.populated, findings);
        for page in (0..chunk.view.nr_pages).filter(|page| chunk.populated.get(*page)) {
            history.pages.insert(page);
            for cpu in layout.units() {
                let unit = layout.unit_offsets[cpu as usize];
                let address = chunk.at(page * BLOCK_GRANULES).wrapping_add(unit);
                // That it is mapped is another invariant's business.
                let Ok(frame) = space.translate(address) else { continue };
                let before = *history.frames.entry((page, cpu)).or_insert(frame);
                if before != frame {
                    let detail = format!(
                        "page {page} of chunk {:#x} lay in frame {before:#x} in CPU {cpu}'s unit and \
                         lies in {frame:#x}: it was depopulated meanwhile",
                        chunk.address
                    );
                    findings.report(
                        Violation::new("I15", chunk.name(), detail)
                            .on(cpu)
                            .values(format_args!("{frame:#x}"), format_args!("{before:#x}")),
                    );
                }
            }
        }
    }

    /// Looks at the populated maps again, at any instant.
    pub(crate) fn check_instant(&self, space: &AddressSpace<'_>, findings: &mut Findings) {
        for (address, history) in &self.chunks {
            let (map, pages) = history.map;
            // A map that cannot be read is found when its chunk is walked.
            let Ok(words) = space.words(map, pages.div_ceil(64) as usize) else { continue };
            findings.checked("I15", 1);
            history.check(*address, &Bits::new(words, pages), findings);
        }
    }
}

impl History {
    fn check(&self, chunk: u64, populated: &Bits, findings: &mut Findings) {
        let known = self.pages.range(..populated.len());
        if let Some(hole) = known.copied().find(|page| !populated.get(*page)) {
            report(chunk, hole, findings);
        }
    }
}

fn report(chunk: u64, page: u32, findings: &mut Findings) {
    let detail = format!(
        "page {page} of chunk {chunk:#x} was depopulated, though the chunk is the first or the \
         reserved one"
    );
    findings.report(Violation::new("I15", format!("chunk {chunk:#x}"), detail));
}
