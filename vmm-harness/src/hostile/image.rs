//! Any file as a guest image: all that is read of it, and its place in memory.

use std::path::Path;

use super::memory::guarded;
use crate::coverage::{Coverage, Features, SourceCoverage};
use crate::diag::{CpuReport, Frame, Symbols};
use crate::image::Image;
use crate::memory::GuestMem;

const MEMORY: usize = 48 << 20;
/// Addresses that are looked up.
const MOST_PLACES: usize = 64;

thread_local! {
    static MEM: GuestMem = guarded(MEMORY);
}

/// The bytes are the file.
pub(super) fn run(bytes: &[u8]) {
    // A report is made of whatever file there is.
    let symbols = Symbols::load(bytes);
    name(&symbols, [0, 1, u64::MAX, percpu_guest::abi::IMAGE]);
    let Ok(image) = Image::from_bytes(Path::new("image"), bytes.to_vec()) else { return };
    MEM.with(|mem| look(&image, &symbols, mem));
}

fn look(image: &Image, symbols: &Symbols, mem: &GuestMem) {
    let header = image.header();
    let functions = image.tests().iter().map(|test| test.function);
    name(symbols, functions.chain([header.entry, header.ap_entry, header.restore]));
    for (address, part) in image.loaded() {
        let start = u64::from_le_bytes(address);
        let step = (part.len() / MOST_PLACES).max(1);
        name(symbols, (0..part.len() as u64).step_by(step).map(|at| start.wrapping_add(at)));
    }
    assert!(image.writable().is_sorted_by_key(|part| part.start));
    if image.load(mem.regions()).is_ok() {
        crate::vm::entries(header, mem, percpu_guest::abi::MAX_CPUS as u32, 3);
    }
    let Some(edges) = image.edges() else { return };
    let reached = edges.read(mem).unwrap_or_default();
    let features = Features { edges: reached, ..Features::new() };
    let coverage = Coverage::of_runs(edges, 1, features);
    let _ = SourceCoverage::of(image, &coverage);
}

/// As a report would have it.
fn name(symbols: &Symbols, addresses: impl IntoIterator<Item = u64>) {
    let addresses = addresses.into_iter().take(MOST_PLACES);
    let frames: Vec<_> = addresses.map(|rip| Frame { rip, rbp: 0 }).collect();
    assert!(!CpuReport::new(0, None).stack(&frames, symbols).to_string().is_empty());
    for frame in frames {
        symbols.frames(frame.rip);
        if let Some(extent) = symbols.extent(frame.rip) {
            symbols.line_starts(extent);
        }
    }
}
