//! Replay of a recorded trace: what a Linux kernel allocated and freed while it made and destroyed
//! containers.
//!
//! All threads replay the one trace together, each taking the next operation: an area is mostly
//! freed by another thread, on another CPU, than it was allocated by. What the trace leaves live is
//! freed at its end, and the next pass begins.

use core::ptr::{null_mut, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use percpu_core::alloc::AllocFlags;
use percpu_core::sync::SpinLock;
use percpu_core::var::PerCpuPtr;
use percpu_guest::abi::EventKind;

use super::areas::{Area, Fill, most_bytes};
use percpu_guest::kernel::mem::{PAGE, frames};
use percpu_guest::kernel::workload::Worker;
use percpu_guest::kernel::{events, sched, shared};

/// `a ID SIZE ALIGN` allocates, `f ID` frees; an operation a line.
static TRACE: &[u8] = include_bytes!("../../../percpu-core/traces/linux-containers.trace");
/// Objects of the trace are numbered below this.
const OBJECTS: usize = 1 << 15;
/// Operations of a round between two boundaries.
const ROUND: u32 = super::round(8);

/// An operation of the trace.
#[derive(Clone, Copy)]
enum Op {
    Alloc { id: usize, size: usize, align: usize },
    Free { id: usize },
}

/// How far the replay has come.
struct Replay {
    /// Bytes of the trace that have been read in this pass.
    read: usize,
    /// Operations handed out, in all passes.
    issued: u64,
    /// Objects that were allocated and not freed, as far as operations have been handed out.
    live: [u64; OBJECTS / 64],
}

static REPLAY: SpinLock<Replay> =
    SpinLock::new(Replay { read: 0, issued: 0, live: [0; OBJECTS / 64] });

impl Replay {
    /// The next operation; `None` while a pass waits for its last operations.
    fn next(&mut self) -> Option<Op> {
        let counts = &shared::header().trace;
        if self.read == TRACE.len() && self.live.iter().all(|&word| word == 0) {
            if counts.ops.load(Ordering::Acquire) != self.issued {
                return None;
            }
            counts.passes.fetch_add(1, Ordering::Relaxed);
            self.read = 0;
        }
        let op = self.read_op().or_else(|| self.left_over())?;
        let (Op::Alloc { id, .. } | Op::Free { id }) = op;
        self.live[id / 64] ^= 1 << (id % 64);
        self.issued += 1;
        Some(op)
    }

    /// The next line.
    fn read_op(&mut self) -> Option<Op> {
        let rest = &TRACE[self.read..];
        let end = rest.iter().position(|&byte| byte == b'\n')?;
        let mut words = rest[..end].split(|&byte| byte == b' ');
        self.read += end + 1;
        let kind = words.next();
        let mut number = || words.next().and_then(number);
        let op = match kind {
            Some(b"a") => number()
                .zip(number())
                .zip(number())
                .map(|((id, size), align)| Op::Alloc { id, size, align }),
            Some(b"f") => number().map(|id| Op::Free { id }),
            _ => None,
        };
        let known = |op: &Op| {
            let (Op::Alloc { id, .. } | Op::Free { id }) = *op;
            id < OBJECTS
        };
        Some(op.filter(known).unwrap_or_else(|| panic!("byte {} of the trace", self.read)))
    }

    /// Frees an object that the trace has left live.
    fn left_over(&self) -> Option<Op> {
        let word = self.live.iter().position(|&word| word != 0)?;
        Some(Op::Free { id: word * 64 + self.live[word].trailing_zeros() as usize })
    }
}

fn number(digits: &[u8]) -> Option<usize> {
    core::str::from_utf8(digits).ok()?.parse().ok()
}

/// What an object of the trace is at the moment. Two operations on it may be under way, by two
/// threads: the later one in the trace waits for the earlier one.
struct Object {
    /// The pointer, [`NOTHING`] or [`FAILED`].
    pointer: AtomicU64,
    /// Size, and the pattern's seed << 32.
    rest: AtomicU64,
    /// CPUs whose copies have the pattern.
    filled: AtomicU64,
}

/// Not allocated.
const NOTHING: u64 = 0;
/// There was no memory for it.
const FAILED: u64 = 1;

/// The first of the objects.
static LIVE: AtomicPtr<Object> = AtomicPtr::new(null_mut());

/// Takes memory for the objects: much, so only where the trace is replayed.
fn init() {
    let frames = frames::alloc_fresh((OBJECTS * size_of::<Object>()).div_ceil(PAGE));
    let frames = frames.expect("memory for the objects of the trace");
    LIVE.store(with_exposed_provenance_mut(frames), Ordering::Release);
}

fn live(id: usize) -> &'static Object {
    assert!(id < OBJECTS);
    // SAFETY: the memory that `init` took before any thread began is for so many objects, of which
    // zeroes are valid ones, and it is never given back.
    unsafe { &*LIVE.load(Ordering::Acquire).add(id) }
}

impl Object {
    /// Waits until the operation before this one has ended, and returns what it has left.
    fn wait(&self, allocated: bool) -> u64 {
        loop {
            let pointer = self.pointer.load(Ordering::Acquire);
            if (pointer != NOTHING) == allocated {
                return pointer;
            }
            sched::yield_to_others();
        }
    }

    fn alloc(&self, size: usize, align: usize, seed: u32) {
        self.wait(false);
        let size = size.min(most_bytes().max(16));
        let Ok(mut area) = Area::alloc(size, align, AllocFlags::NONE) else {
            events::emit(EventKind::AllocFailed, [size as u64, align as u64, 0, 0, 0]);
            return self.pointer.store(FAILED, Ordering::Release);
        };
        area.check();
        area.fill(seed);
        events::emit(EventKind::Alloc, area.announcement(align));
        self.filled.store(area.fill.map_or(0, |fill| fill.cpus), Ordering::Relaxed);
        self.rest.store(u64::from(area.size) | u64::from(seed) << 32, Ordering::Relaxed);
        self.pointer.store(area.pointer.raw() as u64, Ordering::Release);
    }

    fn free(&self) {
        let pointer = self.wait(true);
        if pointer != FAILED {
            let rest = self.rest.load(Ordering::Relaxed);
            let pointer = PerCpuPtr::from_raw(pointer as usize);
            let cpus = self.filled.load(Ordering::Relaxed);
            let fill = Some(Fill { seed: (rest >> 32) as u32, cpus });
            Area { pointer, size: rest as u32, fill }.retire();
        }
        self.pointer.store(NOTHING, Ordering::Release);
    }
}

#[percpu_guest::workload(name = "trace", init = init, seeds = false)]
fn run(mut worker: Worker) {
    loop {
        for _ in 0..ROUND {
            // The lock is open again before the operation.
            let op = REPLAY.lock().next();
            match op {
                Some(Op::Alloc { id, size, align }) => {
                    live(id).alloc(size, align, worker.rng.next_u64() as u32);
                }
                Some(Op::Free { id }) => live(id).free(),
                None => {
                    sched::yield_to_others();
                    break;
                }
            }
            shared::header().trace.ops.fetch_add(1, Ordering::Release);
        }
        if !worker.boundary() {
            return;
        }
    }
}
