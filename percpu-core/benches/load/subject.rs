//! What can be measured: percpu-core's allocator and its neighbour, in one run.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use percpu_core::alloc::{AllocFlags, Allocator};
use percpu_core::area::{AllocInfo, Config, CpuSet, FirstChunk};
use percpu_core::var::PerCpuPtr;

use super::flat::{self, Flat};
use super::{Load, Operation, Shape};

const PAGE: usize = 4096;

/// An allocator of per-CPU memory. Nobody looks at the memory through this trait, so that a free is
/// safe.
pub trait Subject: Sync + Sized {
    const NAME: &'static str;

    /// An allocator for `cpus` CPUs, with nothing allocated.
    fn new(cpus: u32, shape: Shape) -> Self;

    /// Allocates zeroed memory on every CPU.
    fn alloc(&self, size: usize, align: usize) -> usize;

    /// Takes an area back.
    fn free(&self, area: usize);

    /// What the allocator has of memory.
    fn memory(&self) -> Memory;
}

/// Memory, in bytes of one unit where it is bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub chunks: u64,
    pub peak_chunks: u64,
    /// Address space: the chunks' units.
    pub reserved: u64,
    /// What has memory behind it, the first chunk's static part included.
    pub populated: u64,
}

/// Does `operations`; `areas` knows each id's area.
#[inline]
pub fn replay<S: Subject>(subject: &S, operations: &[Operation], areas: &mut [usize]) {
    for op in operations {
        match *op {
            Operation::Alloc { id, size, align } => {
                areas[id as usize] = subject.alloc(usize::from(size), usize::from(align));
            }
            Operation::Free { id } => subject.free(areas[id as usize]),
        }
    }
}

/// A subject in the state of interest: a load's prologue is done.
pub struct Ready<S> {
    pub subject: S,
    pub areas: Vec<usize>,
}

impl<S: Subject> Ready<S> {
    pub fn new(load: &Load, cpus: u32) -> Self {
        let subject = S::new(cpus, load.shape);
        let mut areas = vec![0; load.ids()];
        replay(&subject, &load.prologue, &mut areas);
        Self { subject, areas }
    }

    /// Does the timed part.
    pub fn run(&mut self, load: &Load) {
        replay(&self.subject, &load.timed, &mut self.areas);
    }
}

/// The time in which each of `threads` threads does the timed part `times` times, on areas of its
/// own. Each is a CPU of its own.
pub fn on_threads<S: Subject>(subject: &S, load: &Load, threads: usize, times: u64) -> Duration {
    let (ready, finished) = (Barrier::new(threads), Barrier::new(threads));
    let worker = &|cpu: usize| {
        flat::enter(cpu as u32);
        let mut areas = vec![0; load.ids()];
        replay(subject, &load.prologue, &mut areas);
        ready.wait();
        let start = Instant::now();
        for _ in 0..times {
            replay(subject, &load.timed, &mut areas);
        }
        let end = Instant::now();
        finished.wait();
        areas.into_iter().for_each(|area| subject.free(area));
        (start, end)
    };
    let spans: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|cpu| scope.spawn(move || worker(cpu))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker panicked")).collect()
    });
    let (starts, ends) = (spans.iter().map(|span| span.0), spans.iter().map(|span| span.1));
    starts.min().zip(ends.max()).map_or(Duration::ZERO, |(start, end)| end - start)
}

/// percpu-core's allocator; whoever makes balance work necessary does it at once.
pub struct Percpu {
    allocator: Allocator<Flat>,
    unit_size: usize,
    cpus: usize,
    /// Nobody changes it after the first chunk has copied it.
    _template: Vec<u8>,
}

impl Percpu {
    #[inline]
    fn balance(&self) {
        if self.allocator.balance_wanted() {
            self.allocator.balance();
        }
    }
}

impl Subject for Percpu {
    const NAME: &'static str = "percpu";

    fn new(cpus: u32, shape: Shape) -> Self {
        let (static_size, config) = match shape {
            Shape::Server => (
                208 << 10,
                Config { reserved_size: 8 << 10, atom_size: 2 << 20, ..Config::default() },
            ),
            Shape::Small => (0, Config::default()),
        };
        let template = vec![0; static_size.max(1)];
        let possible = CpuSet::new(0..cpus).expect("checked when the arguments were read");
        let info = AllocInfo::build(static_size, &config, &possible).expect("a usual shape");
        let start = template.as_ptr().expose_provenance();
        // SAFETY: `build` makes what `verify` accepts, for the CPUs that it is given. The template is
        // kept as long as the allocator, and not changed.
        let first = unsafe { FirstChunk::embed(&info, start, config.span_limit(), &possible) };
        let allocator = Allocator::new();
        allocator.init(first.expect("memory is there")).expect("the first time");
        Self { allocator, unit_size: info.unit_size, cpus: cpus as usize, _template: template }
    }

    #[inline]
    fn alloc(&self, size: usize, align: usize) -> usize {
        let area = self.allocator.alloc(size, align, AllocFlags::NONE).expect("memory is there");
        self.balance();
        area.raw()
    }

    #[inline]
    fn free(&self, area: usize) {
        // SAFETY: nobody uses areas at all.
        unsafe { self.allocator.free(PerCpuPtr::from_raw(area)) }.expect("a live area");
        self.balance();
    }

    fn memory(&self) -> Memory {
        let statistics = self.allocator.statistics();
        Memory {
            chunks: statistics.chunks.into(),
            peak_chunks: statistics.peak_chunks.into(),
            reserved: u64::from(statistics.chunks) * self.unit_size as u64,
            populated: (flat::populated_pages() / self.cpus * PAGE) as u64,
        }
    }
}
