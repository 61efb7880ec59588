//! The allocator's state for a person to read. Linux: `/sys/kernel/debug/percpu_stats`.

use core::fmt;

use super::slot::size_slot;
use super::{Allocator, ChunkStatistics, Statistics};
use crate::platform::Platform;
use crate::view::{CHUNK_DEMOTED, CHUNK_RESERVED, PAGE};

/// A report on an allocator; made by [`Allocator::report`]. What it shows is of the time when it is
/// written.
pub struct Report<'a, P: Platform> {
    allocator: &'a Allocator<P>,
}

impl<P: Platform> Allocator<P> {
    /// A table of what the allocator has, as a whole and chunk by chunk, to be printed:
    ///
    /// ```text
    /// kprintln!("{}", alloc::global().report());
    /// ```
    ///
    /// Writing it costs what [`statistics`](Self::statistics) and
    /// [`for_each_chunk`](Self::for_each_chunk) cost, and sleeps as they do: what it is written to
    /// is called with the growth lock held, so it must do no more than a
    /// [visitor of chunks](Self::for_each_chunk) may. It may fail or panic.
    pub fn report(&self) -> Report<'_, P> {
        Report { allocator: self }
    }
}

impl<P: Platform> fmt::Display for Report<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.allocator.first_chunk() else {
            return f.write_str("per-CPU memory is not set up\n");
        };
        let statistics = self.allocator.statistics();
        let Statistics { allocs, frees, live, peak_live, chunks, peak_chunks, .. } = statistics;
        let Statistics { smallest, largest, live_bytes, peak_bytes, .. } = statistics;
        let Statistics { populated_bytes, peak_populated_bytes, .. } = statistics;
        let Statistics { empty_populated_pages, reserved_bytes, metadata_bytes, .. } = statistics;
        let (fixed, reserve) = (first.static_size, first.reserved_size);
        let dynamic = (first.populated_pages * PAGE as usize).saturating_sub(fixed + reserve);
        let (unit_size, cpus) = (first.unit_size, first.units().len());

        writeln!(f, "per-CPU memory of {cpus} CPUs; bytes are those of one CPU")?;
        writeln!(
            f,
            "unit       {unit_size} bytes: {fixed} static, {reserve} reserved, {dynamic} dynamic"
        )?;
        writeln!(f, "areas      {live}, at most {peak_live}; {allocs} allocated, {frees} freed")?;
        writeln!(
            f,
            "live       {live_bytes} bytes, at most {peak_bytes}; areas of {smallest} to {largest}"
        )?;
        writeln!(
            f,
            "populated  {populated_bytes} bytes, at most {peak_populated_bytes}; \
             {empty_populated_pages} pages empty"
        )?;
        writeln!(f, "chunks     {chunks}, at most {peak_chunks}; {reserved_bytes} bytes")?;
        writeln!(f, "metadata   {metadata_bytes} bytes in all")?;
        writeln!(f)?;
        writeln!(
            f,
            "{:<18} {:<13} {:>8} {:>8} {:>8} {:>6} {:>6} {:>6} {:>8} {:>6} {:>6}",
            "chunk",
            "slot",
            "free",
            "longest",
            "median",
            "runs",
            "4-byte",
            "areas",
            "live",
            "pages",
            "empty"
        )?;
        let mut result = Ok(());
        self.allocator.for_each_chunk(|chunk| {
            if result.is_ok() {
                result = write_chunk(f, chunk, unit_size);
            }
        });
        result
    }
}

fn write_chunk(
    f: &mut fmt::Formatter<'_>,
    chunk: &ChunkStatistics,
    unit_size: usize,
) -> fmt::Result {
    let ChunkStatistics { base, free, longest_run, median_run, runs, fragments, .. } = chunk;
    let ChunkStatistics { areas, live_bytes, populated_pages, empty_populated_pages, .. } = chunk;
    write!(f, "{base:<#18x} ")?;
    match slot_name(chunk, unit_size) {
        Some(name) => write!(f, "{name:<13}")?,
        None => write!(f, "{:<13}", chunk.slot)?,
    }
    writeln!(
        f,
        " {free:>8} {longest_run:>8} {median_run:>8} {runs:>6} {fragments:>6} {areas:>6} \
         {live_bytes:>8} {populated_pages:>6} {empty_populated_pages:>6}"
    )
}

/// The name of a chunk's slot, if it is one of the tail slots or of none; the others are known by
/// number.
fn slot_name(chunk: &ChunkStatistics, unit_size: usize) -> Option<&'static str> {
    let tail = size_slot(unit_size) + 1;
    match chunk.slot {
        _ if chunk.flags & CHUNK_RESERVED != 0 => Some("reserved"),
        0 if chunk.flags & CHUNK_DEMOTED != 0 => Some("demoted"),
        0 => Some("full"),
        slot if slot == tail => Some("sidelined"),
        slot if slot == tail + 1 => Some("free"),
        slot if slot == tail + 2 => Some("to depopulate"),
        _ => None,
    }
}
