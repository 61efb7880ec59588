//! The CPUs' caches of freed areas (I2, the part about who does not hold an area): a taken area that
//! nobody holds is on exactly one shelf, and what is on a shelf is such an area.

use std::collections::BTreeMap;

use percpu_core::view::{AllocatorView, BLOCK_GRANULES, CacheView, GRANULE, SHELF_DEPTH};

use super::bits::Run;
use super::chunks::Chunk;
use super::finding::{Findings, Violation, kind};
use super::layout::Layout;
use super::owners::Places;
use crate::memory::{AddressSpace, Following, Wild};

/// Caches there may be.
const MAX_CACHES: u32 = 1 << 10;

/// A CPU's cache.
pub(crate) struct Cache {
    pub(crate) cpu: u32,
    pub(crate) view: CacheView,
}

impl Cache {
    fn name(&self) -> String {
        format!("CPU {}'s cache", self.cpu)
    }

    /// The state as words, without what only counts.
    pub(crate) fn words(&self) -> Vec<u64> {
        let mut words = vec![u64::from(self.view.held)];
        for shelf in &self.view.shelves {
            words.push(u64::from(shelf.len) | u64::from(shelf.count) << 32);
            words.extend(shelf.areas.iter().flat_map(|area| [area.ledger, area.address]));
        }
        words
    }
}

/// A place on a shelf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cached {
    pub(crate) cpu: u32,
    pub(crate) run: Run,
}

/// What is on the shelves of all caches, by chunk and by first granule.
#[derive(Debug, Default)]
pub(crate) struct Shelves {
    pub(crate) by_chunk: Vec<BTreeMap<u32, Cached>>,
}

/// All caches there are.
pub(crate) fn read(
    space: &AddressSpace<'_>,
    allocator: &AllocatorView,
    findings: &mut Findings,
) -> Vec<Cache> {
    if allocator.nr_caches > MAX_CACHES {
        let detail = format!("the allocator says it has {} caches", allocator.nr_caches);
        findings.report(
            Violation::new(kind::MEMORY, "the allocator's caches", detail)
                .values(allocator.nr_caches, format_args!("0..={MAX_CACHES}")),
        );
        return Vec::new();
    }
    let table = space
        .words(allocator.caches, allocator.nr_caches as usize)
        .following(|| "the table of caches");
    let Some(table) = findings.sound(table) else { return Vec::new() };
    (0u32..)
        .zip(table)
        .filter(|(_, address)| *address != 0)
        .filter_map(|(cpu, address)| {
            let view = space.read(address).following(|| format!("CPU {cpu}'s cache"));
            Some(Cache { cpu, view: findings.sound(view)? })
        })
        .collect()
}

/// The first CPU whose cache is locked.
pub(crate) fn locked(
    space: &AddressSpace<'_>,
    allocator: &AllocatorView,
) -> Result<Option<u32>, Wild> {
    let table = space.words(allocator.caches, allocator.nr_caches.min(MAX_CACHES) as usize)?;
    for (cpu, address) in (0u32..).zip(table) {
        // The lock's word is the first.
        if address != 0 && space.read::<u32>(address)? != 0 {
            return Ok(Some(cpu));
        }
    }
    Ok(None)
}

/// Finds the chunk of everything on the shelves. What makes no sense is reported and left out.
pub(crate) fn place(
    caches: &[Cache],
    places: &Places<'_>,
    chunks: &[Chunk],
    findings: &mut Findings,
) -> Shelves {
    let mut by_chunk: Vec<BTreeMap<u32, Cached>> = chunks.iter().map(|_| BTreeMap::new()).collect();
    for cache in caches {
        let mut held = 0u32;
        for (n, shelf) in cache.view.shelves.iter().enumerate() {
            let name = || format!("shelf {n} of {}", cache.name());
            if shelf.count as usize > SHELF_DEPTH
                || shelf.count != 0 && !(1..=BLOCK_GRANULES).contains(&shelf.len)
            {
                let detail = format!(
                    "{} says it has {} areas of {} granules",
                    name(),
                    shelf.count,
                    shelf.len
                );
                findings.report(Violation::new(kind::MEMORY, name(), detail).on(cache.cpu));
                continue;
            }
            held = held.wrapping_add(shelf.count * shelf.len);
            for area in &shelf.areas[..shelf.count as usize] {
                findings.checked("I2", 1);
                let wrong = |why: String| {
                    let detail = format!(
                        "{} has an area of {} bytes at unit address {:#x}, {why}",
                        name(),
                        shelf.len * GRANULE,
                        area.area()
                    );
                    Violation::new("I2", format!("cached area {:#x}", area.area()), detail)
                        .on(cache.cpu)
                };
                let Some((chunk, start)) = places.at(area.area()) else {
                    findings.report(wrong("where no chunk manages anything".into()));
                    continue;
                };
                let run = Run { start, len: shelf.len };
                if !area.area().is_multiple_of(GRANULE.into()) {
                    findings.report(wrong("which is no granule's address".into()));
                } else if area.ledger != chunks[chunk].view.ledger {
                    findings.report(wrong(format!(
                        "and names the ledger {:#x}, but it lies in chunk {:#x}",
                        area.ledger, chunks[chunk].address
                    )));
                } else if let Some(other) =
                    by_chunk[chunk].insert(start, Cached { cpu: cache.cpu, run })
                {
                    findings.report(wrong(format!("which CPU {}'s cache has, too", other.cpu)));
                }
            }
        }
        if held != cache.view.held {
            let detail = format!(
                "{} counts {} granules, its shelves have {held}",
                cache.name(),
                cache.view.held
            );
            findings.report(
                Violation::new("I2", cache.name(), detail)
                    .on(cache.cpu)
                    .values(cache.view.held, held),
            );
        }
    }
    Shelves { by_chunk }
}

/// I14, before it is due: an area on a shelf that is said to be zero is zero on every CPU, since it
/// will be handed out as it is.
pub(crate) fn check_zero(
    space: &AddressSpace<'_>,
    layout: &Layout,
    caches: &[Cache],
    findings: &mut Findings,
) {
    let mut copy = Vec::new();
    // Each copy of an area has memory of its own.
    let mut left = space.mem().size();
    for cache in caches {
        let shelves = cache.view.shelves.iter().filter(|shelf| shelf.len <= BLOCK_GRANULES);
        let areas = shelves.flat_map(|shelf| {
            shelf.areas.iter().take(shelf.count as usize).map(|area| (*area, shelf.len))
        });
        for (area, len) in areas.filter(|(area, _)| area.is_zero()) {
            let bytes = u64::from(len * GRANULE) * layout.units().count() as u64;
            let Some(rest) = left.checked_sub(bytes) else {
                let detail = "the areas in the caches have more bytes than there is memory for";
                return findings.report(Violation::new("I2", "cached areas", detail));
            };
            left = rest;
            copy.resize((len * GRANULE) as usize, 0);
            let units = (0..).zip(layout.unit_offsets.iter().zip(&layout.offsets));
            for (cpu, (unit, _)) in units.filter(|(_, (_, offset))| **offset != 0) {
                // One that lies nowhere is found as such.
                if space.read_into(area.area().wrapping_add(*unit), &mut copy).is_err() {
                    continue;
                }
                findings.checked("I14", 1);
                if let Some(at) = copy.iter().position(|byte| *byte != 0) {
                    let detail = format!(
                        "CPU {cpu}'s copy of the area at unit address {:#x}, which is in {} as one \
                         that is zero, holds {:#x} at byte {at}",
                        area.area(),
                        cache.name(),
                        copy[at]
                    );
                    findings.report(
                        Violation::new("I14", format!("cached area {:#x}", area.area()), detail)
                            .on(cpu)
                            .values(format_args!("{:#x}", copy[at]), "zero"),
                    );
                }
            }
        }
    }
}

/// I2: every area of a chunk is live or on a shelf, not both; live bits and shelves name areas.
pub(crate) fn check(chunk: &Chunk, shelf: &BTreeMap<u32, Cached>, findings: &mut Findings) {
    let mut live = chunk.live.ones();
    let mut cached = 0;
    for run in areas(chunk) {
        findings.checked("I2", 1);
        let is_live = chunk.live.get(run.start);
        live -= u32::from(is_live);
        let on_shelf = shelf.get(&run.start);
        cached += usize::from(on_shelf.is_some());
        let wrong = match on_shelf {
            None if is_live => continue,
            None => "is taken, but nobody holds it and it is in no CPU's cache".to_owned(),
            Some(on) if is_live => {
                format!(
                    "is in CPU {}'s cache, but its live bit says that somebody holds it",
                    on.cpu
                )
            }
            Some(on) if on.run.len != run.len => {
                format!("is in CPU {}'s cache as one of {} granules", on.cpu, on.run.len)
            }
            Some(_) => continue,
        };
        report(chunk, run, &wrong, findings);
    }
    if live > 0 {
        let live = chunk.live.runs(true, 0..chunk.live.len());
        let mut begins = begins_in(chunk);
        let stray = live.flat_map(|run| run.start..run.end()).find(|bit| !begins(*bit));
        let start = stray.unwrap_or(0);
        let run = Run { start, len: 1 };
        report(chunk, run, "has a live bit, but no area begins there", findings);
    }
    if cached < shelf.len() {
        let mut begins = begins_in(chunk);
        for cached in shelf.values().filter(|cached| !begins(cached.run.start)) {
            let how = format!("is in CPU {}'s cache, but no area begins there", cached.cpu);
            report(chunk, cached.run, &how, findings);
        }
    }
}

/// Whether an area begins at a granule, asked in ascending order.
fn begins_in(chunk: &Chunk) -> impl FnMut(u32) -> bool {
    let mut starts = areas(chunk).map(|run| run.start).peekable();
    move |granule| {
        while starts.next_if(|start| *start < granule).is_some() {}
        starts.peek() == Some(&granule)
    }
}

/// The areas of the managed part, by the allocation and the boundary map.
fn areas(chunk: &Chunk) -> impl Iterator<Item = Run> {
    chunk.alloc.runs(true, chunk.first()..chunk.last()).flat_map(move |taken| {
        let mut start = taken.start;
        std::iter::from_fn(move || {
            (start < taken.end()).then(|| {
                let end = chunk.bound.next(true, start + 1..taken.end());
                let run = Run { start, len: end - start };
                start = end;
                run
            })
        })
    })
}

fn report(chunk: &Chunk, run: Run, how: &str, findings: &mut Findings) {
    let detail = format!(
        "the area at granules {}..{} of chunk {:#x} (unit address {:#x}) {how}",
        run.start,
        run.end(),
        chunk.address,
        chunk.at(run.start)
    );
    let object = format!("area at granule {} of {}", run.start, chunk.name());
    findings.report(Violation::new("I2", object, detail));
}
