//! Looking at the free runs themselves, where the hints that are to be renewed do not tell.

use super::bitmap::{self, Run};
use crate::view::{BLOCK_GRANULES, BlockView};

const WORD: u32 = u64::BITS;

/// The longest free run, the first of several, and the longest run before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    pub(crate) contig: Run,
    pub(crate) scan: Run,
}

impl Survey {
    /// Takes the next run in order into account.
    #[inline]
    pub(crate) fn see(&mut self, run: Run) {
        if run.len() > self.contig.len() {
            self.scan = self.contig;
            self.contig = run;
        }
    }
}

/// The whole free run of a block that `part`, free again, is part of. Most often the word around it
/// tells, else most often the hints do.
#[inline]
pub(super) fn whole_run(block: &BlockView, words: &[u64], part: Run) -> Run {
    let (first, last) =
        (words[(part.start / WORD) as usize], words[((part.end - 1) / WORD) as usize]);
    let below = first & !(!0 << (part.start % WORD));
    let start = if below != 0 {
        part.start / WORD * WORD + (WORD - below.leading_zeros())
    } else {
        run_start(block, words, part.start)
    };
    let above = last >> ((part.end - 1) % WORD) >> 1;
    let end = if above != 0 {
        part.end + above.trailing_zeros()
    } else {
        run_end(block, words, part.end)
    };
    Run { start, end }
}

fn run_start(block: &BlockView, words: &[u64], before: u32) -> u32 {
    let contig = block.contig();
    if before == contig.end {
        contig.start
    } else if before == block.left_free {
        0
    } else {
        bitmap::run_start(words, 0, before)
    }
}

fn run_end(block: &BlockView, words: &[u64], from: u32) -> u32 {
    let contig = block.contig();
    if from == contig.start {
        contig.end
    } else if from == BLOCK_GRANULES - block.right_free {
        BLOCK_GRANULES
    } else {
        bitmap::next_set(words, from, BLOCK_GRANULES)
    }
}

/// Looks at all runs of a block that are longer than those before them.
pub(super) fn survey_block(words: &[u64]) -> Survey {
    let mut survey = Survey::default();
    let mut from = 0;
    let longer =
        |from, than: Run| bitmap::find_clear(words, from, BLOCK_GRANULES, than.len() + 1, 1);
    while let Some(start) = longer(from, survey.contig) {
        from = bitmap::next_set(words, start, BLOCK_GRANULES);
        survey.see(Run { start, end: from });
    }
    survey
}

/// The first free granule of a chunk in which all before `from` are taken.
pub(super) fn first_free(blocks: &[BlockView], from: u32) -> u32 {
    let first_block = (from / BLOCK_GRANULES) as usize;
    let rest = blocks.iter().enumerate().skip(first_block);
    rest.map(|(page, block)| (page as u32, block.first_free))
        .find(|&(_, first_free)| first_free < BLOCK_GRANULES)
        .map_or(blocks.len() as u32 * BLOCK_GRANULES, |(page, bit)| page * BLOCK_GRANULES + bit)
}

/// Finds the longest run of a chunk from its blocks' hints: it is either the longest of a block or
/// crosses a block's edge.
pub(super) fn survey_chunk(blocks: &[BlockView]) -> Survey {
    let mut survey = Survey::default();
    let mut carry = Run::EMPTY;
    for (page, block) in blocks.iter().enumerate() {
        let start = page as u32 * BLOCK_GRANULES;
        let end = start + BLOCK_GRANULES;
        let edge = Run {
            start: if carry.is_empty() { start } else { carry.start },
            end: start + block.left_free,
        };
        if block.is_all_free() {
            carry = edge;
            continue;
        }
        if edge.end > edge.start {
            survey.see(edge);
        }
        let contig = block.contig().shifted(start);
        if contig.start != start && contig.end != end {
            survey.see(contig);
        }
        carry = Run { start: end - block.right_free, end };
    }
    survey.see(carry);

    // Of the runs inside the block where the longest begins, only that block's hints were seen.
    let Some(block) = blocks.get((survey.contig.start / BLOCK_GRANULES) as usize) else {
        return survey;
    };
    let start = survey.contig.start / BLOCK_GRANULES * BLOCK_GRANULES;
    let at = survey.contig.start - start;
    let is_block_contig = block.contig_hint_start == at;
    if is_block_contig && block.first_free < at {
        if block.scan_hint == 0 {
            survey.scan = Run::EMPTY;
        } else if block.scan_hint > survey.scan.len() {
            survey.scan = block.scan().shifted(start);
        }
    }
    survey
}
