//! Allocator churn: areas of all sizes, each filled on every CPU and checked before it goes.

use core::sync::atomic::Ordering;

use percpu_core::alloc::{self, AllocFlags};
use percpu_core::cpu;
use percpu_core::var::PerCpuPtr;
use percpu_guest::abi::{AreaContent, EventKind, Invariant, pattern_word};

use super::Worker;
use crate::{events, shared};

/// Areas a thread holds at most.
const HELD: usize = 24;
/// Bytes over all CPUs that most operations keep below.
const USUAL_REACH: u64 = 16 << 10;
/// Operations of a round between two boundaries.
const ROUND: u32 = 4;

/// An area that this thread owns.
#[derive(Clone, Copy)]
struct Area {
    pointer: PerCpuPtr<u8>,
    size: usize,
    /// Seed of the pattern; `None` while nobody has written.
    seed: Option<u32>,
}

pub(super) fn run(mut worker: Worker) {
    let mut held: [Option<Area>; HELD] = [None; HELD];
    loop {
        for _ in 0..ROUND {
            let which = worker.rng.below(HELD as u64) as usize;
            held[which] = match held[which] {
                None => take(&mut worker),
                Some(area) if area.seed.is_none() && worker.rng.one_in(2) => {
                    check(&area);
                    Some(fill(&mut worker, area))
                }
                Some(area) => {
                    // Areas go back dirty, so that the next owner's zeroes are somebody's work.
                    let area = if area.seed.is_none() { fill(&mut worker, area) } else { area };
                    give_back(&area);
                    None
                }
            };
        }
        if !worker.boundary() {
            break;
        }
    }
    for area in held.iter().flatten() {
        give_back(area);
    }
}

/// Sizes as kernels ask for them: mostly a few words, now and then a page or more.
fn size(worker: &mut Worker) -> usize {
    let boot = shared::boot();
    let usual = (USUAL_REACH / u64::from(boot.possible)).clamp(64, 4096);
    let most = ((boot.reach_kib as usize) << 10) / boot.possible as usize;
    let size = match worker.rng.below(64) {
        0 => 4096 + worker.rng.below(4096) as usize,
        1..8 => 1 + worker.rng.below(usual) as usize,
        8..24 => 1 + worker.rng.below(256) as usize,
        _ => 4 << worker.rng.below(5),
    };
    size.min(most.max(16))
}

fn take(worker: &mut Worker) -> Option<Area> {
    let size = size(worker);
    let alignments = if worker.rng.one_in(16) { 8 } else { 3 };
    let align = 4 << worker.rng.below(alignments);
    let flags = if worker.rng.one_in(4) { AllocFlags::ATOMIC } else { AllocFlags::NONE };
    let Ok(pointer) = alloc::global().alloc(size, align, flags) else {
        events::emit(EventKind::AllocFailed, [size as u64, align as u64, 0, 0, 0]);
        return None;
    };
    let area = Area { pointer, size, seed: None };
    check(&area);
    let args = [pointer.raw() as u64, size as u64, align as u64, AreaContent::Zero as u64, 0];
    events::emit(EventKind::Alloc, args);
    Some(if worker.rng.one_in(2) { fill(worker, area) } else { area })
}

/// Fills every CPU's copy. The area's last few bytes, where the size is no multiple of a word,
/// stay as they are.
fn fill(worker: &mut Worker, area: Area) -> Area {
    let seed = worker.rng.next() as u32;
    let pointer = area.pointer.raw() as u64;
    let content = |content: AreaContent| {
        events::emit(EventKind::Filled, [pointer, 0, 0, content as u64, u64::from(seed)]);
    };
    content(AreaContent::Any);
    for cpu in cpu::possible().iter() {
        let word = pattern_word(seed, cpu.index() as u32);
        let words = area.pointer.on(cpu).cast::<u32>();
        for i in 0..area.size / 4 {
            // SAFETY: this thread owns the area, `i` stays inside it, and areas are aligned to 4.
            unsafe { words.add(i).write_volatile(word) };
        }
    }
    content(AreaContent::Pattern);
    Area { seed: Some(seed), ..area }
}

/// Checks every CPU's copy against what the thread left there; tells the host if it differs.
fn check(area: &Area) {
    for cpu in cpu::possible().iter() {
        let n = cpu.index() as u32;
        let expected = area.seed.map_or(0, |seed| pattern_word(seed, n));
        let words = area.pointer.on(cpu).cast::<u32>();
        for i in 0..area.size / 4 {
            // SAFETY: as in `fill`.
            let seen = unsafe { words.add(i).read_volatile() };
            if seen != expected {
                let object = area.pointer.raw() as u64 + 4 * i as u64;
                events::violation(Invariant::I14, n, object, u64::from(seen), u64::from(expected));
                return;
            }
        }
    }
}

/// The timer interrupt's share, now and then: an atomic allocation, checked, dirtied and freed at
/// once. The host hears nothing of it, since no interrupt is under way when it looks.
pub(super) fn on_interrupt() {
    const SIZE: usize = 16;
    const EVERY: u64 = 4;
    if !shared::this_control().heartbeat.load(Ordering::Relaxed).is_multiple_of(EVERY) {
        return;
    }
    let Ok(pointer) = alloc::global().alloc(SIZE, 8, AllocFlags::ATOMIC) else {
        // Nothing populated has room; a thread's allocation will see to that.
        return;
    };
    for cpu in cpu::possible().iter() {
        let word = pointer.on(cpu).cast::<u64>();
        // SAFETY: the area was just allocated, with this size and alignment.
        let seen = unsafe { word.read_volatile() };
        if seen != 0 {
            let object = pointer.raw() as u64;
            events::violation_in_interrupt(Invariant::I14, cpu.index() as u32, object, seen, 0);
        }
        // SAFETY: as above.
        unsafe { word.write_volatile(!0) };
    }
    // SAFETY: allocated above and forgotten here.
    if let Err(e) = unsafe { alloc::global().free(pointer) } {
        panic!("the allocator refused to take back an area it handed out: {e}");
    }
}

fn give_back(area: &Area) {
    check(area);
    events::emit(EventKind::Free, [area.pointer.raw() as u64, 0, 0, 0, 0]);
    // SAFETY: this thread owns the area and forgets it.
    if let Err(e) = unsafe { alloc::global().free(area.pointer) } {
        panic!("the allocator refused to take back an area it handed out: {e}");
    }
}
