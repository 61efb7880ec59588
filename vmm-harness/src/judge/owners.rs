//! Who owns which granules: the union of live areas that the allocation maps must equal.

use percpu_core::view::GRANULE;

use super::bits::{Bits, Run};
use super::chunks::Chunk;
use super::counters::Registered;
use super::finding::{Findings, Violation};
use super::layout::Layout;
use super::shadow::Shadow;
use super::{refs, sums};
use crate::memory::AddressSpace;

/// Somebody who holds granules of a chunk.
pub(crate) struct Owner {
    pub(crate) run: Run,
    pub(crate) name: String,
    /// Its extent was announced; otherwise the boundary map was asked.
    pub(crate) exact: bool,
}

/// The owners in each chunk, in ascending order.
pub(crate) struct Owners {
    pub(crate) by_chunk: Vec<Vec<Owner>>,
    /// Whether all owners are known; not if the list of counters is broken.
    pub(crate) complete: bool,
}

/// Finds the chunk that manages an address.
pub(crate) struct Places<'a> {
    chunks: &'a [Chunk],
    /// Managed ranges of unit space with their chunks, ascending.
    ranges: Vec<(u64, u64, usize)>,
    /// From a per-CPU pointer to unit space.
    delta: u64,
}

impl<'a> Places<'a> {
    pub(crate) fn new(chunks: &'a [Chunk], delta: u64, findings: &mut Findings) -> Self {
        let mut ranges: Vec<_> = chunks
            .iter()
            .enumerate()
            .map(|(n, chunk)| (chunk.at(chunk.first()), chunk.at(chunk.last()), n))
            .collect();
        ranges.sort_unstable();
        findings.checked("I1", ranges.len() as u64);
        for pair in ranges.windows(2) {
            let [(_, end, low), (start, _, high)] = [pair[0], pair[1]];
            if start < end {
                let (low, high) = (&chunks[low], &chunks[high]);
                let detail = format!(
                    "chunks {:#x} and {:#x} both manage unit address {start:#x}",
                    low.address, high.address
                );
                findings.report(Violation::new("I1", high.name(), detail));
            }
        }
        Self { chunks, ranges, delta }
    }

    /// The chunk and the granule of a per-CPU pointer.
    fn find(&self, ptr: u64) -> Option<(usize, u32)> {
        self.at(ptr.wrapping_add(self.delta))
    }

    /// The chunk and the granule of an address of unit space.
    pub(crate) fn at(&self, address: u64) -> Option<(usize, u32)> {
        let after = self.ranges.partition_point(|(start, ..)| *start <= address);
        let (_, end, chunk) = self.ranges[..after].last()?;
        let offset = address.wrapping_sub(self.chunks[*chunk].view.base);
        (address < *end).then_some((*chunk, (offset / u64::from(GRANULE)) as u32))
    }
}

impl Owners {
    /// Places every live area, counter, sum and ref.
    pub(crate) fn find(
        space: &AddressSpace<'_>,
        chunks: &[Chunk],
        places: &Places<'_>,
        layout: &Layout,
        shadow: &Shadow,
        registered: &Registered,
        findings: &mut Findings,
    ) -> Self {
        let mut by_chunk: Vec<Vec<Owner>> = chunks.iter().map(|_| Vec::new()).collect();
        let mut owned: Vec<Bits> = chunks.iter().map(|c| Bits::zero(c.alloc.len())).collect();

        findings.checked("I1", shadow.areas.len() as u64);
        for area in shadow.areas.values() {
            let len = area.size.div_ceil(GRANULE);
            let place = places.find(area.ptr);
            let inside =
                place.filter(|(chunk, start)| start.saturating_add(len) <= chunks[*chunk].last());
            let Some((chunk, start)) = inside else {
                let detail = format!("{area} lies outside every chunk's managed range");
                findings.report(
                    Violation::new("I1", area.to_string(), detail)
                        .on(area.cpu)
                        .values(format_args!("{:#x}", area.ptr), "a pointer into a chunk"),
                );
                continue;
            };
            let run = Run { start, len };
            owned[chunk].set(start..run.end());
            by_chunk[chunk].push(Owner { run, name: area.to_string(), exact: true });
        }

        // Counters' locals, sums and refs' words may lie in areas that the guest did not announce as such.
        let locals = registered.iter().flatten().map(|(address, counter)| {
            (counter.locals, format!("the locals of counter {address:#x}"))
        });
        let sums = sums::areas(space, shadow, findings);
        let words = refs::areas(space, shadow, findings);
        for (ptr, name) in locals.chain(sums).chain(words) {
            if layout.is_static(ptr) {
                continue;
            }
            let Some((chunk, granule)) = places.find(ptr) else {
                let detail =
                    format!("{name} lies at {ptr:#x}, outside every chunk's managed range");
                findings.report(Violation::new("I1", name, detail));
                continue;
            };
            if owned[chunk].get(granule) {
                continue;
            }
            let run = extent(&chunks[chunk], granule);
            owned[chunk].set(run.start..run.end());
            by_chunk[chunk].push(Owner { run, name, exact: false });
        }
        for owners in &mut by_chunk {
            owners.sort_by_key(|owner| owner.run.start);
        }
        Self { by_chunk, complete: registered.is_some() }
    }
}

/// The area around a granule, by the boundary map.
fn extent(chunk: &Chunk, granule: u32) -> Run {
    let mut start = granule;
    while start > chunk.first() && !chunk.bound.get(start) {
        start -= 1;
    }
    let end = chunk.bound.next(true, granule + 1..chunk.last());
    Run { start, len: end - start }
}
