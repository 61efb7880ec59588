//! A ref's per-CPU words: each counts what its CPU takes and gives back, as long as it is open.
//!
//! # How an operation finds out that its CPU's word is closed
//!
//! By the sign of the sum that its one addition made. An open word is [`OPEN`] and the CPU's balance,
//! which is far smaller: positive. A closed word is negative and stays so, whatever is added to it
//! by operations that then learn that it is closed; nobody reads what they left there. So nothing
//! has to be undone, and nothing has to be masked.
//!
//! # Who opens, who closes
//!
//! A word begins closed, also that of a CPU that first comes up later: whichever mode the ref is in,
//! that is right, if slow. Only the CPU itself opens it, when it finds it closed in a ref that is in
//! per-CPU mode. It is closed in one step with respect to the CPU's own operations: on that CPU, or
//! where the CPU does not run, or from anywhere if operations are atomic
//! ([`arch::REMOTE_SAFE`]).

use crate::alloc::{AllocError, PerCpuBox};
use crate::arch;
use crate::atomic::{AtomicU64, Ordering};
use crate::cpu::{self, CpuId};
use crate::hotplug::{CpusReadGuard, cpus_read_lock};
use crate::platform::{Global, Platform};
use crate::var::PerCpuPtr;

/// An open word with a balance of 0.
pub(super) const OPEN: i64 = crate::view::REF_OPEN;
/// A word that has just been closed: as far from positive as from overflow.
const CLOSED: i64 = -OPEN;
/// How far a word may be from what it began with before [`Words::drift`] says so. Each single
/// operation moves it by 1, which takes centuries to matter; those on many references move it by
/// up to 32 bits.
const FAR: u64 = 1 << 48;

/// The words of a ref.
#[repr(C)]
pub(super) struct Words {
    ptr: PerCpuPtr<i64>,
    /// Owns what `ptr` points to.
    memory: PerCpuBox<i64>,
}

/// A word that is far from what it began with.
pub(super) enum Drift {
    /// It is open and has this balance.
    Open(i64),
    /// It is closed and has this value.
    Closed(i64),
}

impl Words {
    /// Closed words.
    #[track_caller]
    pub(super) fn new() -> Result<Self, AllocError> {
        let memory = PerCpuBox::try_new_with(|_| CLOSED)?;
        Ok(Self { ptr: memory.ptr(), memory })
    }

    /// Adds to this CPU's word. Whether it is closed: then nothing was counted.
    #[inline(always)]
    pub(super) fn add_or_closed(&self, amount: i64) -> bool {
        // SAFETY: the words live as long as `memory`, and all accesses are of this kind.
        unsafe { arch::add_is_negative(self.ptr.raw(), amount) }
    }

    /// Opens this CPU's word, if it is closed.
    ///
    /// Called with interrupts masked, by one CPU at a time, while nobody closes words.
    pub(super) fn open_here(&self) {
        // SAFETY: as above. Whoever comes in between, an NMI, finds the word closed and leaves
        // nothing there that counts.
        unsafe {
            if self.ptr.read() < 0 {
                self.ptr.write(OPEN);
            }
        }
    }

    /// Closes all words and returns the sum of the balances of those that were open. Nobody opens
    /// one meanwhile, or afterwards until he is allowed to. May sleep.
    pub(super) fn close_all(&self) -> i64 {
        let cpus = cpus_read_lock();
        // A CPU that gets its unit from now on has a closed word and does not run before the guard
        // is dropped.
        cpu::booted_once().iter().map(|cpu| self.close(cpu, &cpus)).sum()
    }

    fn close(&self, cpu: CpuId, _cpus: &CpusReadGuard) -> i64 {
        // SAFETY: the word lives as long as `memory`, and is accessed as an atomic or by
        // operations of its CPU, with which the exchange does not collide: see below.
        let word = unsafe { &*self.memory.on(cpu).cast::<AtomicU64>() };
        let closing = Closing { word, before: AtomicU64::new(0) };
        if arch::REMOTE_SAFE || !cpu::online().contains(cpu) {
            // The operations are atomic; or the CPU executes none, and will not while the guard
            // keeps it down. Before hotplug begins it is the one that runs this.
            closing.run();
        } else {
            let arg = (&raw const closing).expose_provenance();
            Global::run_on_cpu(cpu.index() as u32, Closing::run_at, arg);
        }
        match closing.before.load(Ordering::Relaxed) as i64 {
            open @ 0.. => open - OPEN,
            _ => 0,
        }
    }

    /// How far this CPU's word has gone from what it began with, if that is far.
    #[inline]
    pub(super) fn drift(&self) -> Option<Drift> {
        // SAFETY: as above.
        let word = unsafe { self.ptr.read() };
        let (centre, drift) = match word {
            0.. => (OPEN, Drift::Open(word - OPEN)),
            _ => (CLOSED, Drift::Closed(word)),
        };
        (word.abs_diff(centre) > FAR).then_some(drift)
    }

    /// Takes away what has gathered in a closed word, unless it has changed.
    pub(super) fn tidy(&self, closed: i64) {
        // SAFETY: as above. A word that is closed by somebody else at the same time is left closed.
        let _ = unsafe { self.ptr.cmpxchg(closed, CLOSED) };
    }
}

/// A word that is being closed, perhaps by another CPU, and what was in it.
struct Closing<'a> {
    word: &'a AtomicU64,
    before: AtomicU64,
}

impl Closing<'_> {
    fn run(&self) {
        let before = self.word.swap(CLOSED as u64, Ordering::AcqRel);
        self.before.store(before, Ordering::Relaxed);
    }

    fn run_at(address: usize) {
        // SAFETY: `close` passes the address of a `Closing` that stays until this returns.
        unsafe { &*core::ptr::with_exposed_provenance::<Closing<'_>>(address) }.run();
    }
}
