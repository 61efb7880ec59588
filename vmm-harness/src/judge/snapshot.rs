//! The allocator's whole state at one moment, to compare with another moment's.
//!
//! In it: every structure word by word, the frame behind every page of every unit, and what the
//! kernel has granted. Not in it: statistics, which may count what was refused.

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};

use percpu_core::view::{AllocatorView, BLOCK_GRANULES, BlockView, ChunkView, ListView};
use percpu_guest::abi::{Resources, SHARED, SharedHeader};

use super::caches::Cache;
use super::chunks::{Chunk, MAX_SLOTS};
use super::finding::{Findings, Violation};
use super::layout::Layout;
use crate::memory::{AddressSpace, Following, Wild};

/// Words that differ are listed up to this number, by part.
const SHOWN: usize = 3;

/// Words by the name of the part they belong to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    parts: BTreeMap<String, Vec<u64>>,
}

impl Snapshot {
    /// The state as it is now, with `chunks` just read.
    pub(crate) fn take(
        space: &AddressSpace<'_>,
        layout: &Layout,
        chunks: &[Chunk],
        caches: &[Cache],
    ) -> Result<Self, Wild> {
        let mut parts = BTreeMap::new();
        let mut put = |name: String, words: Vec<u64>| parts.insert(name, words);
        let words =
            |at: u64, bytes: usize, name: &str| space.words(at, bytes / 8).following(|| name);

        let allocator = layout.allocator(space)?;
        let root = layout.roots.allocator;
        put("the allocator".into(), words(root, size_of::<AllocatorView>(), "the allocator")?);
        let heads = allocator.nr_slots.min(MAX_SLOTS) as usize * size_of::<ListView>();
        put("the slots' heads".into(), words(allocator.slots, heads, "the slots' heads")?);
        for chunk in chunks {
            let of = |what: &str| format!("{what} of {}", chunk.name());
            let view = words(chunk.address, size_of::<ChunkView>(), "a chunk")?;
            put(chunk.name(), view);
            put(of("the allocation map"), chunk.alloc.words().to_vec());
            put(of("the boundary map"), chunk.bound.words().to_vec());
            put(of("the live map"), chunk.live.words().to_vec());
            put(of("the populated map"), chunk.populated.words().to_vec());
            let blocks = chunk.blocks.len() * size_of::<BlockView>();
            put(of("the blocks"), words(chunk.view.blocks, blocks, "the blocks of a chunk")?);
            put(of("the frames"), frames(space, layout, chunk));
        }
        for cache in caches {
            put(format!("CPU {}'s cache", cache.cpu), cache.words());
        }
        let granted = SHARED + offset_of!(SharedHeader, resources) as u64;
        let granted: Result<_, Wild> = (0..size_of::<Resources>() as u64 / 8)
            .map(|n| space.mem().load_u64(granted + 8 * n))
            .collect();
        put("what the kernel has granted (frames, bytes of tables, of addresses)".into(), granted?);
        Ok(Self { parts })
    }

    /// Reports each part that is not in `after` what it is here.
    pub(crate) fn compare(
        &self,
        after: &Self,
        invariant: &'static str,
        cause: &str,
        findings: &mut Findings,
    ) {
        for (name, before) in &self.parts {
            let change = match after.parts.get(name) {
                None => "is gone".to_owned(),
                Some(after) if after == before => continue,
                Some(after) => difference(before, after),
            };
            let detail = format!("{cause} changed {name}: {change}");
            findings.report(
                Violation::new(invariant, name.clone(), detail)
                    .values(change, "what it was before"),
            );
        }
        for name in after.parts.keys().filter(|name| !self.parts.contains_key(*name)) {
            let detail = format!("{cause} brought {name}, which was not there before");
            findings.report(Violation::new(invariant, name.clone(), detail));
        }
    }
}

/// The words that differ.
fn difference(before: &[u64], after: &[u64]) -> String {
    if before.len() != after.len() {
        return format!("{} words in place of {}", after.len(), before.len());
    }
    let all: Vec<_> = (0..before.len()).filter(|&n| before[n] != after[n]).collect();
    let shown: Vec<_> = all
        .iter()
        .take(SHOWN)
        .map(|&n| format!("word {n} was {:#x} and is {:#x}", before[n], after[n]))
        .collect();
    let more = all.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    shown.join(", ") + &more
}

/// The frame behind each page of each unit; all bits set where there is none.
fn frames(space: &AddressSpace<'_>, layout: &Layout, chunk: &Chunk) -> Vec<u64> {
    let units = layout.units().map(|cpu| layout.unit_offsets[cpu as usize]);
    units
        .flat_map(|unit| {
            (0..chunk.view.nr_pages).map(move |page| {
                space.translate(chunk.at(page * BLOCK_GRANULES).wrapping_add(unit)).unwrap_or(!0)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(parts: &[(&str, &[u64])]) -> Snapshot {
        let parts = parts.iter().map(|(name, words)| ((*name).to_owned(), words.to_vec()));
        Snapshot { parts: parts.collect() }
    }

    #[test]
    fn each_part_that_changed_came_or_went_is_reported_once() {
        let before = snapshot(&[("a", &[1, 2, 3, 4, 5]), ("b", &[7]), ("c", &[9])]);
        let after = snapshot(&[("a", &[1, 0, 0, 0, 0]), ("c", &[9]), ("d", &[1])]);
        let mut findings = Findings::default();
        before.compare(&after, "I16", "a refused free", &mut findings);
        let found: Vec<_> = findings.found.iter().map(|v| v.detail.as_str()).collect();
        assert_eq!(
            found,
            [
                "a refused free changed a: word 1 was 0x2 and is 0x0, word 2 was 0x3 and is 0x0, \
                 word 3 was 0x4 and is 0x0, and 1 more",
                "a refused free changed b: is gone",
                "a refused free brought d, which was not there before",
            ]
        );
        let mut none = Findings::default();
        before.compare(&before.clone(), "I16", "a refused free", &mut none);
        assert_eq!(none.found, []);
    }
}
