//! The neighbour that gives the numbers a scale: what one writes without thinking of speed. One
//! lock around trees of free and of live areas, the best fitting free one taken, and the same
//! zeroing on all CPUs. It checks nothing, gives no memory back and serves no atomic allocation.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ptr::{with_exposed_provenance_mut, write_bytes};
use std::sync::Mutex;

use super::Shape;
use super::arena;
use super::subject::{Memory, Subject};

pub struct Baseline {
    unit_size: usize,
    cpus: usize,
    state: Mutex<State>,
}

/// Areas by the address of CPU 0's copy.
#[derive(Default)]
struct State {
    /// Free runs: bytes by address, and by bytes.
    free: BTreeMap<usize, usize>,
    by_size: BTreeSet<(usize, usize)>,
    live: HashMap<usize, usize>,
    chunks: Vec<usize>,
}

impl State {
    /// Takes the smallest free run that `size` bytes fit in, and gives back what is left of it.
    fn take(&mut self, size: usize, align: usize) -> Option<usize> {
        let (run, at) = self.by_size.range((size, 0)..).find_map(|&(len, start)| {
            let at = start.next_multiple_of(align);
            (at + size <= start + len).then_some(((start, len), at))
        })?;
        let (start, len) = run;
        self.remove(start, len);
        self.insert(start, at - start);
        self.insert(at + size, start + len - at - size);
        self.live.insert(at, size);
        Some(at)
    }

    fn give_back(&mut self, at: usize) {
        let mut len = self.live.remove(&at).expect("a live area");
        let mut start = at;
        if let Some((&before, &before_len)) = self.free.range(..at).next_back()
            && before + before_len == at
        {
            self.remove(before, before_len);
            start = before;
            len += before_len;
        }
        if let Some(&after_len) = self.free.get(&(start + len)) {
            self.remove(start + len, after_len);
            len += after_len;
        }
        self.insert(start, len);
    }

    fn insert(&mut self, start: usize, len: usize) {
        if len != 0 {
            self.free.insert(start, len);
            self.by_size.insert((len, start));
        }
    }

    fn remove(&mut self, start: usize, len: usize) {
        self.free.remove(&start);
        self.by_size.remove(&(len, start));
    }
}

impl Subject for Baseline {
    const NAME: &'static str = "baseline";

    fn new(cpus: u32, shape: Shape) -> Self {
        let unit_size = match shape {
            Shape::Server => 256 << 10,
            Shape::Small => 32 << 10,
        };
        Self { unit_size, cpus: cpus as usize, state: Mutex::default() }
    }

    fn alloc(&self, size: usize, align: usize) -> usize {
        let (size, align) = (size.next_multiple_of(4), align.max(4));
        let at = {
            let mut state = self.state.lock().expect("no panic while it is held");
            match state.take(size, align) {
                Some(at) => at,
                None => {
                    let chunk = arena::reserve(self.unit_size * self.cpus, self.unit_size);
                    let chunk = chunk.expect("memory is there");
                    state.chunks.push(chunk);
                    state.insert(chunk, self.unit_size);
                    state.take(size, align).expect("a new chunk has room")
                }
            }
        };
        for cpu in 0..self.cpus {
            let copy = with_exposed_provenance_mut::<u8>(at + cpu * self.unit_size);
            // SAFETY: each unit of the chunk has these bytes, and they were taken out of the free
            // runs above.
            unsafe { write_bytes(copy, 0, size) };
        }
        at
    }

    fn free(&self, area: usize) {
        self.state.lock().expect("no panic while it is held").give_back(area);
    }

    fn memory(&self) -> Memory {
        let chunks = self.state.lock().expect("no panic while it is held").chunks.len() as u64;
        let bytes = chunks * self.unit_size as u64;
        Memory { chunks, peak_chunks: chunks, reserved: bytes, populated: bytes }
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        let state = self.state.get_mut().expect("no panic while it was held");
        for &chunk in &state.chunks {
            arena::release(chunk, self.unit_size * self.cpus);
        }
    }
}
