//! The allocator's chunks: the walk of the slot lists, and what holds for chunks as a whole
//! (I9 to I12).

use std::collections::HashMap;

use percpu_core::view::{
    AllocatorView, BLOCK_GRANULES, BlockView, CHUNK_DEMOTED, CHUNK_ISOLATED, CHUNK_RESERVED,
    ChunkView, GRANULE, ListView, PAGE,
};

use super::bits::Bits;
use super::counters::Registered;
use super::finding::{Findings, Violation, kind};
use super::kept::Kept;
use super::layout::Layout;
use super::owners::{Owners, Places};
use super::shadow::Shadow;
use super::{caches, maps, pages};
use crate::memory::{AddressSpace, Following, Wild};

/// Chunks that the lists may have in all: beyond it, they are no lists.
const MAX_CHUNKS: usize = 1 << 12;
/// Slots the allocator may have.
pub(crate) const MAX_SLOTS: u32 = 64;
/// Pages that all chunks may have together, so that maps which many chunks share are not read without end.
const MAX_PAGES_IN_ALL: u32 = 1 << 16;
/// Pages of a chunk's unit.
const MAX_PAGES: u32 = 1 << 12;

/// A chunk with its maps.
pub(crate) struct Chunk {
    pub(crate) address: u64,
    pub(crate) view: ChunkView,
    /// The slot on whose list it was found; `None` for the reserved chunk.
    pub(crate) slot: Option<u32>,
    pub(crate) alloc: Bits,
    pub(crate) bound: Bits,
    /// Where an area starts that somebody holds.
    pub(crate) live: Bits,
    pub(crate) populated: Bits,
    pub(crate) blocks: Vec<BlockView>,
}

impl Chunk {
    /// Its name in reports.
    pub(crate) fn name(&self) -> String {
        format!("chunk {:#x}", self.address)
    }

    /// Whether it has this `CHUNK_*` flag.
    pub(crate) fn is(&self, flag: u32) -> bool {
        self.view.flags & flag != 0
    }

    /// First granule that it manages.
    pub(crate) fn first(&self) -> u32 {
        self.view.start_offset / GRANULE
    }

    /// The granule after the last that it manages.
    pub(crate) fn last(&self) -> u32 {
        self.alloc.len() - self.view.end_offset / GRANULE
    }

    /// Address of a granule in unit space.
    pub(crate) fn at(&self, granule: u32) -> u64 {
        self.view.base.wrapping_add(u64::from(granule) * u64::from(GRANULE))
    }

    fn read(
        space: &AddressSpace<'_>,
        address: u64,
        slot: Option<u32>,
        pages_left: &mut u32,
    ) -> Result<Self, Box<Violation>> {
        let view: ChunkView = space.read(address).following(|| format!("chunk {address:#x}"))?;
        let size = view.nr_pages.saturating_mul(PAGE);
        let hidden = view.start_offset.saturating_add(view.end_offset);
        let whole =
            view.start_offset.is_multiple_of(GRANULE) && view.end_offset.is_multiple_of(GRANULE);
        if !(1..=MAX_PAGES).contains(&view.nr_pages) || hidden > size || !whole {
            let detail = format!(
                "chunk {address:#x} says it has {} pages, of which {} bytes at the start and {} at \
                 the end are hidden: it is no chunk",
                view.nr_pages, view.start_offset, view.end_offset
            );
            return Err(Violation::new(kind::MEMORY, format!("chunk {address:#x}"), detail).into());
        }
        let Some(left) = pages_left.checked_sub(view.nr_pages) else {
            let detail = format!(
                "the chunks up to {address:#x} have more than {MAX_PAGES_IN_ALL} pages together"
            );
            return Err(Violation::new(kind::MEMORY, "the chunks' pages", detail).into());
        };
        *pages_left = left;
        let granules = view.nr_pages * BLOCK_GRANULES;
        let bits = |map: u64, len: u32, what: &str| {
            let words = space
                .words(map, len.div_ceil(64) as usize)
                .following(|| format!("the {what} of chunk {address:#x}"))?;
            Ok::<_, Wild>(Bits::new(words, len))
        };
        let block = |n: u32| {
            let at = view.blocks.wrapping_add(u64::from(n) * size_of::<BlockView>() as u64);
            space.read(at).following(|| format!("block {n} of chunk {address:#x}"))
        };
        Ok(Self {
            address,
            slot,
            alloc: bits(view.alloc_map, granules, "allocation map")?,
            bound: bits(view.bound_map, granules + 1, "boundary map")?,
            live: bits(view.live_map, granules, "live map")?,
            populated: bits(view.populated, view.nr_pages, "populated map")?,
            blocks: (0..view.nr_pages).map(block).collect::<Result<_, Wild>>()?,
            view,
        })
    }
}

/// Walks all chunks and holds them against I2 to I15.
pub(crate) fn check(
    space: &AddressSpace<'_>,
    layout: &Layout,
    shadow: Option<&Shadow>,
    registered: &Registered,
    kept: &mut Kept,
    findings: &mut Findings,
) {
    let allocator = match layout.allocator(space) {
        Ok(allocator) => allocator,
        Err(violation) => return findings.report(violation),
    };
    let before = findings.found.len();
    let chunks = walk(space, &allocator, findings);
    let whole = findings.found.len() == before;

    for chunk in &chunks {
        maps::check(chunk, findings);
        check_slot(chunk, &allocator, findings);
        check_counts(chunk, findings);
        kept.check(space, layout, chunk, findings);
    }
    if whole {
        check_totals(&chunks, &allocator, findings);
    }
    pages::check_mapped(space, layout, &chunks, findings);
    if !whole {
        return;
    }
    let caches = caches::read(space, &allocator, findings);
    let places = Places::new(&chunks, allocator.delta, findings);
    let shelves = caches::place(&caches, &places, &chunks, findings);
    caches::check_zero(space, layout, &caches, findings);
    for (chunk, shelf) in chunks.iter().zip(&shelves.by_chunk) {
        caches::check(chunk, shelf, findings);
    }
    if let Some(shadow) = shadow {
        let owners = Owners::find(space, &chunks, &places, layout, shadow, registered, findings);
        for (n, chunk) in chunks.iter().enumerate() {
            let (here, shelf) = (&owners.by_chunk[n], &shelves.by_chunk[n]);
            maps::check_owners(chunk, here, shelf, owners.complete, findings);
            pages::check_owners(chunk, here, findings);
        }
    }
}

/// All chunks on the slot lists, and the reserved chunk.
pub(crate) fn walk(
    space: &AddressSpace<'_>,
    allocator: &AllocatorView,
    findings: &mut Findings,
) -> Vec<Chunk> {
    if !(4..=MAX_SLOTS).contains(&allocator.nr_slots) {
        let detail = format!("the allocator says it has {} slots", allocator.nr_slots);
        findings.report(
            Violation::new(kind::MEMORY, "the allocator", detail)
                .values(allocator.nr_slots, format_args!("4..={MAX_SLOTS}")),
        );
        return Vec::new();
    }
    // Chunk by slot, to see a circle and a chunk on two lists.
    let mut listed = HashMap::new();
    let mut chunks = Vec::new();
    let mut pages_left = MAX_PAGES_IN_ALL;
    for slot in 0..allocator.nr_slots {
        let head = allocator.slots.wrapping_add(u64::from(slot) * size_of::<ListView>() as u64);
        let list = (&mut listed, &mut chunks, &mut pages_left);
        if let Err(violation) = walk_slot(space, slot, head, list) {
            findings.report(violation);
        }
    }
    if allocator.reserved_chunk != 0 {
        match Chunk::read(space, allocator.reserved_chunk, None, &mut pages_left) {
            Ok(chunk) => chunks.push(chunk),
            Err(violation) => findings.report(violation),
        }
    }
    chunks
}

fn walk_slot(
    space: &AddressSpace<'_>,
    slot: u32,
    head: u64,
    (listed, chunks, pages_left): (&mut HashMap<u64, u32>, &mut Vec<Chunk>, &mut u32),
) -> Result<(), Box<Violation>> {
    let broken = |detail: String| {
        Box::new(Violation::new(kind::MEMORY, format!("the list of slot {slot}"), detail))
    };
    let first: ListView = space.read(head).following(|| format!("the head of slot {slot}"))?;
    let (mut before, mut node) = (head, first.next);
    while node != head {
        if let Some(other) = listed.insert(node, slot) {
            return Err(broken(format!(
                "chunk {node:#x} is found again on the list of slot {slot}, it is on slot {other}'s: \
                 the list runs in a circle or into another"
            )));
        }
        if listed.len() > MAX_CHUNKS {
            return Err(broken(format!("the slot lists have more than {MAX_CHUNKS} chunks")));
        }
        let chunk = Chunk::read(space, node, Some(slot), pages_left)?;
        if chunk.view.link.prev != before {
            return Err(broken(format!(
                "chunk {node:#x} follows {before:#x} on the list of slot {slot} but points back at \
                 {:#x}",
                chunk.view.link.prev
            )));
        }
        (before, node) = (node, chunk.view.link.next);
        chunks.push(chunk);
    }
    Ok(())
}

/// The slot for a longest free run of `contig` granules.
fn slot_for(chunk: &Chunk, allocator: &AllocatorView) -> u32 {
    let contig = chunk.view.md.contig_hint.saturating_mul(GRANULE);
    if chunk.view.free_bytes < GRANULE || contig == 0 {
        return 0;
    }
    if u64::from(contig) == allocator.unit_size {
        return allocator.free_slot;
    }
    // Sizes up to 15 bytes share slot 1, then a slot a power of two.
    (u32::BITS - contig.leading_zeros()).saturating_sub(3).max(1)
}

/// I9: the slot a chunk is listed in is the one its hint demands, except isolated and demoted
/// chunks; the field says the list it is on.
fn check_slot(chunk: &Chunk, allocator: &AllocatorView, findings: &mut Findings) {
    let Some(slot) = chunk.slot else { return };
    findings.checked("I9", 1);
    let demanded = slot_for(chunk, allocator);
    let hint = chunk.view.md.contig_hint;
    let tail = [allocator.sidelined_slot, allocator.to_depopulate_slot];
    let (wrong, expected) = if chunk.view.slot != slot {
        (chunk.view.slot, slot)
    } else if chunk.is(CHUNK_ISOLATED) {
        (slot, if tail.contains(&slot) { slot } else { allocator.to_depopulate_slot })
    } else if chunk.is(CHUNK_DEMOTED) && slot == 0 {
        (slot, slot)
    } else {
        (slot, demanded)
    };
    if wrong != expected {
        let detail = format!(
            "chunk {:#x} is on the list of slot {slot} and says slot {}, its contig hint of {hint} \
             granules demands slot {demanded} (flags {:#x})",
            chunk.address, chunk.view.slot, chunk.view.flags
        );
        findings.report(Violation::new("I9", chunk.name(), detail).values(wrong, expected));
    }
}

/// I10, I11: the counts of populated and of empty populated pages.
fn check_counts(chunk: &Chunk, findings: &mut Findings) {
    findings.checked("I10", 1);
    let populated = chunk.populated.ones();
    if chunk.view.nr_populated != populated {
        let detail = format!(
            "chunk {:#x} counts {} populated pages, its map has {populated}",
            chunk.address, chunk.view.nr_populated
        );
        findings.report(
            Violation::new("I10", chunk.name(), detail).values(chunk.view.nr_populated, populated),
        );
    }
    findings.checked("I11", 1);
    let empty = empty_pages(chunk);
    if chunk.view.nr_empty_pop_pages != empty {
        let detail = format!(
            "chunk {:#x} counts {} empty populated pages, there are {empty}",
            chunk.address, chunk.view.nr_empty_pop_pages
        );
        findings.report(
            Violation::new("I11", chunk.name(), detail)
                .values(chunk.view.nr_empty_pop_pages, empty),
        );
    }
}

/// Populated pages whose block is wholly free.
fn empty_pages(chunk: &Chunk) -> u32 {
    let empty = |page: &u32| {
        let block = page * BLOCK_GRANULES..(page + 1) * BLOCK_GRANULES;
        chunk.populated.get(*page) && chunk.alloc.next(true, block.clone()) == block.end
    };
    (0..chunk.view.nr_pages).filter(empty).count() as u32
}

/// I12: the allocator's own counts are the sums over its chunks.
fn check_totals(chunks: &[Chunk], allocator: &AllocatorView, findings: &mut Findings) {
    findings.checked("I12", 1);
    let counted = |chunk: &&Chunk| !chunk.is(CHUNK_RESERVED) && !chunk.is(CHUNK_ISOLATED);
    let empty: u64 =
        chunks.iter().filter(counted).map(|chunk| u64::from(chunk.view.nr_empty_pop_pages)).sum();
    if u64::from(allocator.nr_empty_pop_pages) != empty {
        let detail = format!(
            "the allocator counts {} empty populated pages, its chunks {empty}",
            allocator.nr_empty_pop_pages
        );
        findings.report(
            Violation::new("I12", "the allocator", detail)
                .values(allocator.nr_empty_pop_pages, empty),
        );
    }
    findings.checked("I9", 1);
    let listed = chunks.iter().filter(|chunk| chunk.slot.is_some()).count() as u64;
    if u64::from(allocator.nr_chunks) != listed {
        let detail = format!(
            "the allocator counts {} chunks, {listed} are on slot lists",
            allocator.nr_chunks
        );
        findings.report(
            Violation::new("I9", "the allocator", detail).values(allocator.nr_chunks, listed),
        );
    }
}
