//! A chunk's maps, and the hints that belong to them, computed the slow way.

use percpu_core::view::{BlockView, ChunkView, GRANULE};

use super::DELTA;

/// A chunk before it is written.
pub(crate) struct Chunk {
    pub(crate) address: u64,
    pub(crate) base: u64,
    pub(crate) taken: Vec<bool>,
    pub(crate) bound: Vec<bool>,
    pub(crate) live: Vec<bool>,
    pub(crate) populated: Vec<bool>,
    pub(crate) flags: u32,
    pub(crate) view: ChunkView,
}

impl Chunk {
    /// Pointer to a granule.
    pub(crate) fn ptr(&self, granule: u32) -> u64 {
        self.base + u64::from(granule * GRANULE) - DELTA
    }

    /// Marks an area as taken and held by somebody.
    pub(crate) fn hold(&mut self, start: u32, len: u32) {
        self.take(start, len);
        self.live[start as usize] = true;
    }

    /// Marks granules as taken.
    pub(crate) fn take(&mut self, start: u32, len: u32) {
        for bit in start..start + len {
            assert!(!std::mem::replace(&mut self.taken[bit as usize], true));
        }
        self.bound[start as usize] = true;
        self.bound[(start + len) as usize] = true;
    }

    /// Granules of the longest free run.
    pub(crate) fn longest_free(&self) -> u32 {
        metadata(&self.taken).contig_hint
    }
}

/// Hints of a range of granules, from nothing but the granules.
pub(crate) fn metadata(taken: &[bool]) -> BlockView {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for (at, taken) in (0u32..).zip(taken) {
        match runs.last_mut() {
            Some((start, len)) if !taken && *start + *len == at => *len += 1,
            _ if !taken => runs.push((at, 1)),
            _ => {}
        }
    }
    let nr_bits = taken.len() as u32;
    let mut contig = (0, 0);
    for run in &runs {
        if run.1 > contig.1 {
            contig = *run;
        }
    }
    let scan = runs.iter().filter(|r| r.0 < contig.0).max_by_key(|r| r.1).unwrap_or(&(0, 0));
    BlockView {
        scan_hint: scan.1,
        scan_hint_start: scan.0,
        contig_hint: contig.1,
        contig_hint_start: contig.0,
        left_free: runs.first().filter(|r| r.0 == 0).map_or(0, |r| r.1),
        right_free: runs.last().filter(|r| r.0 + r.1 == nr_bits).map_or(0, |r| r.1),
        first_free: runs.first().map_or(nr_bits, |r| r.0),
        nr_bits,
    }
}
