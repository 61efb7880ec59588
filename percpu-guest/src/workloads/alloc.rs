//! Allocator churn: areas of all sizes, each filled on every CPU and checked before it goes, by
//! threads and interrupt handlers that free what the other has allocated.

use core::sync::atomic::Ordering;

use percpu_core::alloc::AllocFlags;
use percpu_core::percpu;
use percpu_guest::abi::{AreaContent, EventKind};

use super::areas::{Area, most_bytes};
use super::exchange;
use percpu_guest::kernel::arch::tsc;
use percpu_guest::kernel::rng::Rng;
use percpu_guest::kernel::workload::Worker;
use percpu_guest::kernel::{events, shared};

/// Areas a thread holds at most.
const HELD: usize = 24;
/// Bytes over all CPUs that most operations keep below.
const USUAL_REACH: u64 = 16 << 10;
/// Operations of a round between two boundaries.
const ROUND: u32 = super::round(4);

percpu! {
    /// State of this CPU's choices in interrupts; 0 = not seeded.
    static CHOICES: PerCpu<u64> = 0;
}

#[percpu_guest::workload(name = "alloc", interrupt = on_interrupt)]
fn run(mut worker: Worker) {
    let mut held: [Option<Area>; HELD] = [None; HELD];
    let mut tide = Tide::Coming;
    loop {
        for _ in 0..ROUND {
            let which = tide.choose(&mut worker, &held);
            held[which] = match held[which] {
                None => take(&mut worker),
                Some(area) if area.fill.is_none() && worker.rng.one_in(2) => {
                    area.check();
                    Some(fill(&mut worker, area))
                }
                Some(area) => {
                    // Areas go back dirty, so that the next owner's zeroes are somebody's work.
                    let area = if area.fill.is_none() { fill(&mut worker, area) } else { area };
                    give_back(&mut worker, area);
                    None
                }
            };
        }
        if !worker.boundary() {
            break;
        }
    }
    // At the end of a short run the host looks at what is there: let it be something.
    if !cfg!(percpu_steps) {
        held.into_iter().flatten().for_each(Area::retire);
    }
}

/// Which way a thread's number of areas goes. In a short run it must go up and down at a stretch, or no
/// chunk would ever come or go.
#[derive(Clone, Copy, PartialEq)]
enum Tide {
    Coming,
    Going,
}

impl Tide {
    /// One operation in so many turns it.
    const TURNS: u64 = 12;

    /// The place that is used next.
    fn choose(&mut self, worker: &mut Worker, held: &[Option<Area>; HELD]) -> usize {
        let which = worker.rng.below(HELD as u64) as usize;
        if !cfg!(percpu_steps) {
            return which;
        }
        if worker.rng.one_in(Self::TURNS) {
            *self = if *self == Self::Coming { Self::Going } else { Self::Coming };
        }
        let wanted = |i: &usize| held[*i].is_none() == (*self == Self::Coming);
        (which..HELD).chain(0..which).find(wanted).unwrap_or(which)
    }
}

/// Sizes for a short run: parts of a unit, so that chunks fill; whole pages, or all but a few granules,
/// so that blocks do; and small ones for the holes.
fn size_in_a_short_run(worker: &mut Worker) -> usize {
    const PAGE: u64 = 4096;
    let size = match worker.rng.below(32) {
        0..3 => PAGE * (2 + worker.rng.below(7)),
        3..11 => PAGE * (1 + worker.rng.below(2)) - 4 * worker.rng.below(4),
        11..16 => 1 + worker.rng.below(1024),
        _ => 4 << worker.rng.below(4),
    };
    size as usize
}

/// Sizes as kernels ask for them: mostly a few words, now and then a page or more.
fn size(worker: &mut Worker) -> usize {
    if cfg!(percpu_steps) {
        return size_in_a_short_run(worker);
    }
    let usual = (USUAL_REACH / u64::from(shared::boot().possible)).clamp(64, 4096);
    let size = match worker.rng.below(64) {
        0 => 4096 + worker.rng.below(4096) as usize,
        1..8 => 1 + worker.rng.below(usual) as usize,
        8..24 => 1 + worker.rng.below(256) as usize,
        _ => 4 << worker.rng.below(5),
    };
    size.min(most_bytes().max(16))
}

/// An area: mostly a new one, now and then one that an interrupt handler has allocated.
fn take(worker: &mut Worker) -> Option<Area> {
    if worker.rng.one_in(8)
        && let Some(area) = exchange::collect()
    {
        area.check();
        return Some(area);
    }
    let flags = match worker.rng.below(16) {
        0..4 => AllocFlags::ATOMIC,
        // As a module's variables.
        4 => AllocFlags::RESERVED,
        _ => AllocFlags::NONE,
    };
    let size = match flags {
        AllocFlags::RESERVED => 4 + worker.rng.below(253) as usize,
        _ => size(worker),
    };
    let alignments = if worker.rng.one_in(16) { 8 } else { 3 };
    let align = 4 << worker.rng.below(alignments);
    let Ok(area) = Area::alloc(size, align, flags) else {
        events::emit(EventKind::AllocFailed, [size as u64, align as u64, 0, 0, 0]);
        return None;
    };
    area.check();
    events::emit(EventKind::Alloc, area.announcement(align));
    Some(if worker.rng.one_in(2) { fill(worker, area) } else { area })
}

/// Fills the area, while the host expects anything there.
fn fill(worker: &mut Worker, mut area: Area) -> Area {
    let seed = worker.rng.next_u64() as u32;
    let pointer = area.pointer.raw() as u64;
    let content = |content: AreaContent| {
        events::emit(EventKind::Filled, [pointer, 0, 0, content as u64, u64::from(seed)]);
    };
    content(AreaContent::Any);
    area.fill(seed);
    content(AreaContent::Pattern);
    area
}

/// Frees the area, or leaves it to an interrupt handler.
fn give_back(worker: &mut Worker, area: Area) {
    if area.size <= exchange::MOST_BYTES && worker.rng.one_in(8) && exchange::leave(area) {
        return;
    }
    area.retire();
}

/// The timer interrupt's share: an area freed that a thread allocated, or allocated for a thread
/// to free, or both by interrupts, in any order.
fn on_interrupt() {
    const EVERY: u64 = 2;
    if !shared::this_control().heartbeat.load(Ordering::Relaxed).is_multiple_of(EVERY) {
        return;
    }
    let mut rng = Rng::new(CHOICES.read() ^ tsc::now(), 1);
    CHOICES.write(rng.next_u64());
    if rng.one_in(2) {
        exchange::free_one_in_interrupt();
    } else {
        exchange::alloc_one_in_interrupt(&mut rng);
    }
}
