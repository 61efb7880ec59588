//! The bitmaps and the hints made from them: I2 to I8.

use std::collections::BTreeMap;
use std::ops::Range;

use percpu_core::view::{BLOCK_GRANULES, BlockView, GRANULE};

use super::bits::{Bits, Run};
use super::caches::Cached;
use super::chunks::Chunk;
use super::finding::{Findings, Violation};
use super::owners::Owner;

/// I4 to I8: the metadata of a chunk and its blocks agree with its allocation map.
pub(crate) fn check(chunk: &Chunk, findings: &mut Findings) {
    check_free_bytes(chunk, findings);
    let all = Metadata { chunk, block: None, md: &chunk.view.md, range: 0..chunk.alloc.len() };
    all.check_first_free(findings);
    all.check_contig(findings);
    all.check_scan(findings);
    for (n, md) in (0u32..).zip(&chunk.blocks) {
        let range = n * BLOCK_GRANULES..(n + 1) * BLOCK_GRANULES;
        let block = Metadata { chunk, block: Some(n), md, range };
        block.check_first_free(findings);
        block.check_edges(findings);
        block.check_contig(findings);
        block.check_scan(findings);
    }
}

/// I4: free bytes are four times the zero bits.
fn check_free_bytes(chunk: &Chunk, findings: &mut Findings) {
    findings.checked("I4", 1);
    let free = (chunk.alloc.len() - chunk.alloc.ones()) * GRANULE;
    if chunk.view.free_bytes != free {
        let detail = format!(
            "chunk {:#x} counts {} free bytes, its allocation map has {free}",
            chunk.address, chunk.view.free_bytes
        );
        findings
            .report(Violation::new("I4", chunk.name(), detail).values(chunk.view.free_bytes, free));
    }
}

/// The metadata of a block, or of the chunk as a whole, with the granules it speaks of.
struct Metadata<'a> {
    chunk: &'a Chunk,
    block: Option<u32>,
    md: &'a BlockView,
    range: Range<u32>,
}

impl Metadata<'_> {
    fn bits(&self) -> &Bits {
        &self.chunk.alloc
    }

    fn nr_bits(&self) -> u32 {
        self.range.end - self.range.start
    }

    fn name(&self) -> String {
        match self.block {
            Some(block) => format!("block {block} of chunk {:#x}", self.chunk.address),
            None => self.chunk.name(),
        }
    }

    fn report(
        &self,
        invariant: &'static str,
        what: &str,
        seen: impl std::fmt::Display,
        expected: impl std::fmt::Display,
        findings: &mut Findings,
    ) {
        let detail = format!("{what} of {} is {seen}, expected {expected}", self.name());
        findings.report(Violation::new(invariant, self.name(), detail).values(seen, expected));
    }

    /// Whether granules `start..start + len`, relative to the range, are there and free.
    fn is_free(&self, start: u32, len: u32) -> bool {
        let end = start.saturating_add(len);
        let (from, to) = (self.range.start, self.range.start.saturating_add(end));
        end <= self.nr_bits() && self.bits().next(true, from + start..to) == to
    }

    fn longest_free(&self) -> u32 {
        let runs = self.bits().runs(false, self.range.clone());
        runs.map(|run| run.len).max().unwrap_or(0)
    }

    /// I5: first_free is the lowest zero bit.
    fn check_first_free(&self, findings: &mut Findings) {
        findings.checked("I5", 1);
        let first = self.bits().next(false, self.range.clone()) - self.range.start;
        if self.md.first_free != first {
            self.report("I5", "first_free", self.md.first_free, first, findings);
        }
    }

    /// I6: left_free and right_free are exact.
    fn check_edges(&self, findings: &mut Findings) {
        findings.checked("I6", 1);
        let bits = self.bits();
        let left = bits.next(true, self.range.clone()) - self.range.start;
        let last_run = bits.runs(false, self.range.clone()).last();
        let right = last_run.filter(|run| run.end() == self.range.end).map_or(0, |run| run.len);
        if self.md.left_free != left {
            self.report("I6", "left_free", self.md.left_free, left, findings);
        }
        if self.md.right_free != right {
            self.report("I6", "right_free", self.md.right_free, right, findings);
        }
    }

    /// I7: the contig hint equals the longest free run, and names one.
    fn check_contig(&self, findings: &mut Findings) {
        findings.checked("I7", 1);
        let longest = self.longest_free();
        let (hint, start) = (self.md.contig_hint, self.md.contig_hint_start);
        if hint != longest {
            self.report("I7", "the contig hint", hint, longest, findings);
        } else if hint > 0 && !self.is_free(start, hint) {
            self.report(
                "I7",
                "the contig hint's start",
                format_args!("{start}"),
                format_args!("the start of a free run of {hint}"),
                findings,
            );
        }
    }

    /// I8: a scan hint, where set, names a real free run that precedes the contig run and is
    /// smaller.
    fn check_scan(&self, findings: &mut Findings) {
        let (scan, start) = (self.md.scan_hint, self.md.scan_hint_start);
        findings.checked("I8", 1);
        if scan == 0 {
            return;
        }
        let wrong = if !self.is_free(start, scan) {
            "which is not free"
        } else if start >= self.md.contig_hint_start {
            "which does not precede the contig run"
        } else if scan >= self.md.contig_hint {
            "which is not smaller than the contig run"
        } else {
            return;
        };
        let detail = format!(
            "the scan hint of {} names {scan} granules at {start}, {wrong} ({} at {})",
            self.name(),
            self.md.contig_hint,
            self.md.contig_hint_start
        );
        findings.report(
            Violation::new("I8", self.name(), detail).values(
                format_args!("{scan} at {start}"),
                "a smaller free run before the contig run",
            ),
        );
    }
}

/// I2, I3: the maps say exactly what the owners and the caches say. Where some owners are not known, granules
/// without an owner are no finding.
pub(crate) fn check_owners(
    chunk: &Chunk,
    owners: &[Owner],
    shelf: &BTreeMap<u32, Cached>,
    complete: bool,
    findings: &mut Findings,
) {
    let mut expected = Bits::zero(chunk.alloc.len());
    expected.set(0..chunk.first());
    expected.set(chunk.last()..chunk.alloc.len());
    for owner in owners {
        expected.set(owner.run.start..owner.run.end());
    }
    let mut held = Bits::zero(chunk.live.len());
    for owner in owners {
        held.set(owner.run.start..owner.run.start + 1);
    }
    for cached in shelf.values() {
        expected.set(cached.run.start..cached.run.end().min(expected.len()));
    }
    findings.checked("I2", owners.len() as u64 + 1);
    for run in expected.without(&chunk.alloc).runs(true, 0..chunk.alloc.len()) {
        // To find whose it is takes time.
        if findings.is_full() {
            return;
        }
        let whose = owners
            .iter()
            .find(|owner| owner.run.start < run.end() && run.start < owner.run.end())
            .map_or("a hidden part", |owner| owner.name.as_str());
        report_map(
            chunk,
            run,
            &format!("free in the allocation map, but belong to {whose}"),
            findings,
        );
    }
    let strays = chunk.alloc.without(&expected);
    for run in strays.runs(true, 0..strays.len()).filter(|_| complete) {
        report_map(chunk, run, "taken in the allocation map, but belong to no live area", findings);
    }
    for owner in owners.iter().filter(|owner| !chunk.live.get(owner.run.start)) {
        let how = format!("not live by the live map, but belong to {}", owner.name);
        report_map(chunk, owner.run, &how, findings);
    }
    let unheld = chunk.live.without(&held);
    for run in unheld.runs(true, 0..unheld.len()).filter(|_| complete) {
        report_map(chunk, run, "live by the live map, but belong to nobody", findings);
    }
    for owner in owners.iter().filter(|owner| owner.exact) {
        check_bounds(chunk, owner, findings);
    }
}

fn report_map(chunk: &Chunk, run: Run, how: &str, findings: &mut Findings) {
    let (from, to) = (chunk.at(run.start), chunk.at(run.end()));
    let detail = format!(
        "granules {}..{} of chunk {:#x} (unit addresses {from:#x}..{to:#x}) are {how}",
        run.start,
        run.end(),
        chunk.address
    );
    let object = format!("granules {}..{} of {}", run.start, run.end(), chunk.name());
    findings.report(Violation::new("I2", object, detail));
}

/// I3: boundary bits at both ends of an area, and none between.
fn check_bounds(chunk: &Chunk, owner: &Owner, findings: &mut Findings) {
    findings.checked("I3", 1);
    let Run { start, .. } = owner.run;
    let end = owner.run.end();
    let inner = chunk.bound.next(true, start + 1..end);
    let wrong = if !chunk.bound.get(start) {
        format!("no boundary bit at its start, granule {start}")
    } else if !chunk.bound.get(end) {
        format!("no boundary bit at its end, granule {end}")
    } else if inner < end {
        format!("a boundary bit inside it, at granule {inner} of {start}..{end}")
    } else {
        return;
    };
    let detail = format!("{} in chunk {:#x} has {wrong}", owner.name, chunk.address);
    findings.report(
        Violation::new("I3", owner.name.clone(), detail)
            .values(wrong, "boundary bits at its two ends only"),
    );
}
