//! Areas as the workloads use them: zero when they come, filled on every CPU while they are held,
//! checked before they go.

use core::sync::atomic::Ordering;

use percpu_core::alloc::{self, AllocError, AllocFlags};
use percpu_core::cpu;
use percpu_core::var::PerCpuPtr;
use percpu_guest::abi::{AreaContent, EventKind, Invariant, pattern_word};

use percpu_guest::kernel::mem::words::{fill_words, find_other_word};
use percpu_guest::kernel::{events, shared};

/// An area that somebody owns.
#[derive(Clone, Copy)]
pub(super) struct Area {
    pub pointer: PerCpuPtr<u8>,
    pub size: u32,
    /// What it was filled with; `None` while nobody has written.
    pub fill: Option<Fill>,
}

/// The pattern in an area.
#[derive(Clone, Copy)]
pub(super) struct Fill {
    pub seed: u32,
    /// CPUs whose copies have it, a bit each. The copy of a CPU that had no unit then is zero.
    pub cpus: u64,
}

/// A word that is not what its owner left there.
struct Damage {
    cpu: u32,
    address: u64,
    seen: u32,
    expected: u32,
}

impl Area {
    /// Allocates an area. Nobody has been told of it.
    pub fn alloc(size: usize, align: usize, flags: AllocFlags) -> Result<Self, AllocError> {
        let pointer = alloc::global().alloc(size, align, flags).inspect_err(|error| {
            if *error == AllocError::NoPopulatedRoom {
                shared::header().balance.atomic_failures.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        Ok(Self { pointer, size: size as u32, fill: None })
    }

    /// Gives it back. Everybody has been told.
    pub fn free(self) {
        // SAFETY: the owner gives the area up by value, and copies of it are not used any more.
        if let Err(e) = unsafe { alloc::global().free(self.pointer) } {
            panic!("the allocator refused to take back an area it handed out: {e}");
        }
    }

    /// Fills every CPU's copy. The last few bytes, where the size is no multiple of a word, stay as
    /// they are.
    pub fn fill(&mut self, seed: u32) {
        let mut cpus = 0;
        for cpu in cpu::booted_once().iter() {
            cpus |= 1 << cpu.index();
            let word = pattern_word(seed, cpu.index() as u32);
            let words = self.pointer.on(cpu).cast::<u32>();
            // SAFETY: the caller owns the area, which is so long.
            unsafe { fill_words(words, word, self.size as usize / 4) };
        }
        self.fill = Some(Fill { seed, cpus });
    }

    /// Checks every CPU's copy against what the owner left there; tells the host if it differs.
    pub fn check(&self) {
        if let Some(Damage { cpu, address, seen, expected }) = self.damage() {
            events::violation(Invariant::I14, cpu, address, seen.into(), expected.into());
        }
    }

    /// As [`check`](Self::check), where nobody can wait for room in the event ring.
    pub fn check_in_interrupt(&self) {
        if let Some(Damage { cpu, address, seen, expected }) = self.damage() {
            let (seen, expected) = (seen.into(), expected.into());
            events::violation_in_interrupt(Invariant::I14, cpu, address, seen, expected);
        }
    }

    fn damage(&self) -> Option<Damage> {
        cpu::booted_once().iter().find_map(|cpu| {
            let n = cpu.index() as u32;
            let pattern = self.fill.filter(|fill| fill.cpus >> n & 1 != 0);
            let expected = pattern.map_or(0, |fill| pattern_word(fill.seed, n));
            let words = self.pointer.on(cpu).cast::<u32>();
            // SAFETY: as in `fill`.
            let at = unsafe { find_other_word(words, expected, self.size as usize / 4) }?;
            // SAFETY: the word lies in the area.
            let seen = unsafe { words.add(at).read_volatile() };
            Some(Damage {
                cpu: n,
                address: self.pointer.raw() as u64 + 4 * at as u64,
                seen,
                expected,
            })
        })
    }

    /// The arguments of the [`EventKind::Alloc`] that tells the host of it.
    pub fn announcement(&self, align: usize) -> [u64; 5] {
        let content = if self.fill.is_some() { AreaContent::Pattern } else { AreaContent::Zero };
        let seed = self.fill.map_or(0, |fill| fill.seed);
        let (pointer, size) = (self.pointer.raw() as u64, self.size);
        [pointer, size.into(), align as u64, content as u64, seed.into()]
    }

    /// Checks it, tells the host, and gives it back.
    pub fn retire(self) {
        self.check();
        events::emit(EventKind::Free, [self.pointer.raw() as u64, 0, 0, 0, 0]);
        self.free();
    }
}

/// Bytes that an area may have where everything is slow.
pub(super) fn most_bytes() -> usize {
    let boot = shared::boot();
    ((boot.reach_kib as usize) << 10) / boot.possible as usize
}
