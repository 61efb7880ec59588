//! CPU masks: which CPUs can exist, are plugged, run, take threads, are on their way out, have per-CPU
//! memory, or have counts in it.
//!
//! possible ⊇ present ⊇ online ⊇ active; a dying CPU has left online or is about to, a starting one is
//! about to enter it. The possible
//! mask is frozen when per-CPU areas are set up, the others change under hotplug. A CPU that was
//! ever online has a unit and is booted-once: possible ⊇ booted-once ⊇ starting ∪ online ∪ dying.
//! Every CPU that has a unit is counted, unless it went down and its counts were folded:
//! booted-once ⊇ counted ⊇ online.

use super::id::{CpuId, NR_CPUS};
use crate::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::platform::Global;
use crate::sync::{SpinGuard, SpinLock};

const WORDS: usize = NR_CPUS / 64;

/// A set of CPUs that any CPU may read at any time. Each bit is atomic, the set as a whole is not:
/// hold the hotplug read guard to see it stand still.
#[repr(transparent)]
pub struct CpuMask {
    words: [AtomicU64; WORDS],
}

impl CpuMask {
    /// The empty set.
    pub const fn new() -> Self {
        Self { words: [const { AtomicU64::new(0) }; WORDS] }
    }

    /// Whether `cpu` is in the set.
    #[inline]
    pub fn contains(&self, cpu: CpuId) -> bool {
        self.contains_index(cpu.index())
    }

    /// As [`contains`](Self::contains), for a number that need not be a possible CPU.
    #[inline]
    pub(crate) fn contains_index(&self, n: usize) -> bool {
        self.words[n / 64].load(Ordering::Acquire) & (1 << (n % 64)) != 0
    }

    /// The number of CPUs in the set.
    pub fn count(&self) -> usize {
        self.live_words().map(|w| w.count_ones() as usize).sum()
    }

    /// Whether the set has no CPU.
    pub fn is_empty(&self) -> bool {
        self.live_words().all(|w| w == 0)
    }

    /// The CPUs of the set in ascending order, each word read once.
    pub fn iter(&self) -> impl Iterator<Item = CpuId> + '_ {
        bits(self.live_words())
    }

    /// The CPUs that are in this set or in `other`, in ascending order. Linux: `for_each_cpu_or`.
    pub fn union<'a>(&'a self, other: &'a CpuMask) -> impl Iterator<Item = CpuId> + 'a {
        bits((0..live_words()).map(|i| self.word(i) | other.word(i)))
    }

    /// Adds or removes a CPU.
    pub(crate) fn set(&self, cpu: CpuId, member: bool) {
        self.set_index(cpu.index(), member);
    }

    /// As [`set`](Self::set), for set-up, when the possible mask is still being made.
    pub(crate) fn set_index(&self, n: usize, member: bool) {
        let bit = 1 << (n % 64);
        if member {
            self.words[n / 64].fetch_or(bit, Ordering::AcqRel);
        } else {
            self.words[n / 64].fetch_and(!bit, Ordering::AcqRel);
        }
    }

    fn live_words(&self) -> impl Iterator<Item = u64> + '_ {
        (0..live_words()).map(|i| self.word(i))
    }

    #[inline]
    fn word(&self, i: usize) -> u64 {
        self.words[i].load(Ordering::Acquire)
    }
}

/// How many words of a mask are in use.
#[inline]
fn live_words() -> usize {
    super::nr_cpu_ids().div_ceil(64).min(WORDS)
}

impl Default for CpuMask {
    fn default() -> Self {
        Self::new()
    }
}

fn bits(words: impl Iterator<Item = u64>) -> impl Iterator<Item = CpuId> {
    words.enumerate().flat_map(|(i, mut w)| {
        core::iter::from_fn(move || {
            if w == 0 {
                return None;
            }
            let bit = w.trailing_zeros();
            w &= w - 1;
            // SAFETY: masks hold possible CPUs only, by construction of `set`.
            Some(unsafe { CpuId::new_unchecked((i as u32 * 64 + bit) as usize) })
        })
    })
}

/// The masks, in one place so that a view from outside finds them by one address.
#[repr(C)]
pub(crate) struct Masks {
    pub(crate) possible: CpuMask,
    pub(crate) present: CpuMask,
    pub(crate) online: CpuMask,
    pub(crate) active: CpuMask,
    pub(crate) dying: CpuMask,
    pub(crate) booted_once: CpuMask,
    pub(crate) starting: CpuMask,
    pub(crate) counted: CpuMask,
}

pub(crate) static MASKS: Masks = Masks {
    possible: CpuMask::new(),
    present: CpuMask::new(),
    online: CpuMask::new(),
    active: CpuMask::new(),
    dying: CpuMask::new(),
    booted_once: CpuMask::new(),
    starting: CpuMask::new(),
    counted: CpuMask::new(),
};

/// Held while a CPU's counts are folded, and taken when a CPU becomes counted again: a CPU that was
/// found to execute nothing is not started before its counts are folded.
static COUNTED: SpinLock<()> = SpinLock::new(());

/// Keeps every CPU that is down from being [counted again](count_again) until the guard is dropped.
pub(crate) fn hold_counted() -> SpinGuard<'static, (), Global> {
    COUNTED.lock()
}

/// Makes a CPU that is about to be started one of the [counted](counted()).
pub(crate) fn count_again(cpu: CpuId) {
    let _lock = COUNTED.lock();
    MASKS.counted.set(cpu, true);
}

/// CPUs that can ever be brought up; frozen at set-up. Linux: `cpu_possible_mask`.
#[inline]
pub fn possible() -> &'static CpuMask {
    &MASKS.possible
}

/// CPUs that are plugged in. Linux: `cpu_present_mask`.
#[inline]
pub fn present() -> &'static CpuMask {
    &MASKS.present
}

/// CPUs that run. Linux: `cpu_online_mask`.
#[inline]
pub fn online() -> &'static CpuMask {
    &MASKS.online
}

/// CPUs that take new threads. Linux: `cpu_active_mask`.
#[inline]
pub fn active() -> &'static CpuMask {
    &MASKS.active
}

/// CPUs that are going down: until their last PREPARE tear-down. Linux: `cpu_dying_mask`.
#[inline]
pub fn dying() -> &'static CpuMask {
    &MASKS.dying
}

/// CPUs that have a unit of per-CPU memory: those that can have touched per-CPU data, over which
/// whoever sums or visits all copies goes. Only ever grows. Linux: `cpus_booted_once_mask`.
///
/// Without [units on demand](crate::area::Config::units_on_demand) these are all possible CPUs.
#[inline]
pub fn booted_once() -> &'static CpuMask {
    &MASKS.booted_once
}

/// CPUs that run their [STARTING](crate::hotplug::Section::Starting) steps: from before they are
/// started until they are online, or until their PREPARE tear-downs when a step fails.
#[inline]
pub fn starting() -> &'static CpuMask {
    &MASKS.starting
}

/// The CPUs that may hold per-CPU counts which are folded when a CPU dies, in ascending order: every
/// CPU that has a unit, but for those that went down and whose counts [were
/// folded](crate::counter::cpu_dead).
///
/// A CPU is in this set before it executes its first instruction, whether hotplug starts it or the
/// kernel does. Only the fold takes it out, and [`cpu_up`](crate::hotplug::cpu_up) puts it back. So
/// this is true as well in a kernel that never uses hotplug, or that forgot to [register the
/// counters' steps](crate::counter::register_hotplug_steps).
#[inline]
pub fn counted() -> impl Iterator<Item = CpuId> {
    MASKS.counted.iter()
}

/// Whether [`hotplug::init`](crate::hotplug::init) was called.
static HOTPLUG: AtomicBool = AtomicBool::new(false);

/// Records that hotplug has begun.
pub(crate) fn set_hotplug_has_begun() {
    HOTPLUG.store(true, Ordering::Release);
}

/// Returns whether [`Platform::run_on_cpu`](crate::platform::Platform::run_on_cpu) reaches `cpu`:
/// hotplug has begun, and the CPU is online. Before that the online mask says no more than which CPU
/// booted, and a kernel without hotplug need not be able to call another CPU.
///
/// Hold the hotplug read guard, or be the CPU with interrupts masked, for the answer to stay true.
pub(crate) fn takes_calls(cpu: CpuId) -> bool {
    HOTPLUG.load(Ordering::Acquire) && online().contains(cpu)
}
