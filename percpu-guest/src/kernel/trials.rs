//! Trials: misuse and shortage on purpose, at the host's order and while all workloads rest. The
//! host compares what it finds in memory before and after; nothing is decided here.

use crate::abi::{AreaContent, EventKind, Trial, TrialSize};
use percpu_core::alloc::{self, AllocFlags, MAX_ALLOC_SIZE};
use percpu_core::area;
use percpu_core::cpu::CpuId;
use percpu_core::percpu;
use percpu_core::var::PerCpuPtr;

use crate::kernel::mem::{PAGE, shortage};
use crate::kernel::{balance, events, shared};

/// Areas that the trials hold at most.
const HELD: usize = 48;
/// Bytes of the areas that are freed the wrong way: inside a page, and over a page's end.
const SIZES: [usize; 2] = [24, PAGE + 200];

percpu! {
    /// A static variable, which nobody can free.
    static STATIC: PerCpu<u64> = 0;
}

/// What the trials hold.
pub struct Trials {
    /// Areas to be freed the wrong way.
    live: [Option<PerCpuPtr<u8>>; SIZES.len()],
    /// Areas that were freed the right way.
    freed: [Option<PerCpuPtr<u8>>; SIZES.len()],
    /// Areas that fill up what has memory.
    held: [Option<PerCpuPtr<u8>>; HELD],
}

impl Trials {
    /// Nothing at all.
    pub const fn new() -> Self {
        Self { live: [None; SIZES.len()], freed: [None; SIZES.len()], held: [None; HELD] }
    }

    /// Carries out what the host ordered by its command number `command`, and says so.
    pub fn run(&mut self, trial: u32, argument: u64, command: u64) {
        let Some(kind) = Trial::from_code(trial) else {
            panic!("the host ordered a trial of unknown kind {trial}");
        };
        let (tried, as_expected) = match kind {
            Trial::PrepareFrees => self.prepare_frees(),
            Trial::RefusedFrees => self.refused_frees(),
            Trial::Balance => (1, u64::from(!balance::balance().out_of_memory)),
            Trial::FillUp => self.fill_up(size(argument)),
            Trial::FailedGrowth => failed_growth(size(argument >> 32), argument & 0xffff_ffff),
            Trial::Release => self.release(),
        };
        events::emit_and_ring(EventKind::TrialDone, [trial.into(), tried, as_expected, command, 0]);
    }

    fn prepare_frees(&mut self) -> (u64, u64) {
        let most = most_bytes();
        for (size, (live, freed)) in SIZES.iter().zip(self.live.iter_mut().zip(&mut self.freed)) {
            *live = take((*size).min(most), 4);
            *freed = take((*size).min(most), 4);
            if let Some(area) = *freed {
                give_back(area);
            }
        }
        (2 * SIZES.len() as u64, 0)
    }

    fn refused_frees(&mut self) -> (u64, u64) {
        let mut frees = Frees::default();
        frees.of(0, true);
        frees.of(STATIC.ptr().raw(), false);
        // Numbers that are no pointers, and a pointer with a bit too many.
        for wild in [8, usize::MAX & !7, 1 << 47, STATIC.ptr().raw() ^ 1 << 45] {
            frees.of(wild, false);
        }
        for area in self.freed.iter().flatten() {
            frees.of(area.raw(), false);
            frees.of(area.raw(), false);
        }
        for (area, size) in self.live.iter().zip(SIZES) {
            let Some(live) = area else { continue };
            let size = size.min(most_bytes());
            for inside in [1, 4, (size / 2) & !3, size.next_multiple_of(4) - 4] {
                frees.of(live.raw() + inside, false);
            }
            // The address of a CPU's copy in place of the pointer, as somebody may mix them up.
            if let (Some(first), Some(other)) = (CpuId::new(0), CpuId::new(1)) {
                let units = area::try_offset(first).zip(area::try_offset(other));
                let distance = units.map_or(0, |(first, other)| other.wrapping_sub(first));
                if distance != 0 {
                    frees.of(live.raw().wrapping_add(distance), false);
                }
            }
        }
        (frees.tried, frees.as_specified)
    }

    /// Takes areas of `size` bytes until the next one would need memory from the kernel.
    fn fill_up(&mut self, size: usize) -> (u64, u64) {
        let mut taken = 0;
        for place in &mut self.held {
            if place.is_some() {
                continue;
            }
            *place = shortage::with(0, || take(size, PAGE));
            if place.is_none() {
                return (taken, 1);
            }
            taken += 1;
        }
        (taken, 0)
    }

    fn release(&mut self) -> (u64, u64) {
        let mut freed = 0;
        for place in self.live.iter_mut().chain(&mut self.held) {
            if let Some(area) = place.take() {
                give_back(area);
                freed += 1;
            }
        }
        self.freed = [None; SIZES.len()];
        (freed, freed)
    }
}

/// Frees that are not to succeed, counted.
#[derive(Default)]
struct Frees {
    tried: u64,
    as_specified: u64,
}

impl Frees {
    /// Frees what lies at `pointer`; `accepted` says whether that is in order.
    fn of(&mut self, pointer: usize, accepted: bool) {
        self.tried += 1;
        // SAFETY: `pointer` is no live area but, perhaps, the inside of one of ours, which nobody
        // uses: an allocator that took it back would do no harm but to its own account, which is
        // what the host looks at.
        let result = unsafe { alloc::global().free(PerCpuPtr::from_raw(pointer)) };
        self.as_specified += u64::from(result.is_ok() == accepted);
    }
}

/// Allocates once more while memory is short; says whether that was refused.
fn failed_growth(size: usize, granted: u64) -> (u64, u64) {
    match shortage::with(granted, || alloc::global().alloc(size, PAGE, AllocFlags::NONE)) {
        Ok(area) => {
            // SAFETY: just allocated, and nobody was told.
            unsafe { alloc::global().free(area) }.expect("just allocated");
            (1, 0)
        }
        Err(_) => (1, 1),
    }
}

/// Bytes that an area may have where everything is slow.
fn most_bytes() -> usize {
    let boot = shared::boot();
    let most = ((boot.reach_kib as usize) << 10) / boot.possible as usize;
    most.clamp(64, MAX_ALLOC_SIZE)
}

fn size(code: u64) -> usize {
    match u32::try_from(code).ok().and_then(TrialSize::from_code) {
        Some(TrialSize::Largest) => (most_bytes() & !(PAGE - 1)).max(PAGE),
        _ => PAGE,
    }
}

fn take(size: usize, align: usize) -> Option<PerCpuPtr<u8>> {
    let area = alloc::global().alloc(size, align, AllocFlags::NONE).ok()?;
    let args = [area.raw() as u64, size as u64, align as u64, AreaContent::Zero as u64, 0];
    events::emit(EventKind::Alloc, args);
    Some(area)
}

fn give_back(area: PerCpuPtr<u8>) {
    events::emit(EventKind::Free, [area.raw() as u64, 0, 0, 0, 0]);
    // SAFETY: an area of the trials, which forget it.
    if let Err(e) = unsafe { alloc::global().free(area) } {
        panic!("the allocator refused to take back an area it handed out: {e}");
    }
}
