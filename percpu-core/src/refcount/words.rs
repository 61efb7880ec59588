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
//! per-CPU mode. It is closed in one step with respect to the CPU's own operations: from anywhere if
//! operations are one step for other CPUs, too ([`arch::REMOTE_SAFE`]), else on that CPU, or where
//! the CPU does not run.
//!
//! So where operations are no such step a CPU opens its word only while the thread that closes it can
//! [call](cpu::takes_calls) the CPU: hotplug has begun, and the CPU is online. Why a word that is open
//! is then closed in one step:
//!
//! - The CPU was online when it opened the word, with interrupts masked, so that it could not
//!   [leave the mask](crate::hotplug::die) in between.
//! - The thread that closes words holds a [`CpusReadGuard`]: no CPU is on its way up or down. A CPU is
//!   on its way from before it is started until its last ONLINE step, and from its first ONLINE
//!   tear-down until it is [dead](crate::hotplug::dead).
//! - So the CPU is online, and is called; or it went down since it opened its word, is dead, and
//!   executes nothing. On its way down or up again it works on the open word as at any other time.
//!
//! A CPU that runs without hotplug, because the kernel has none, has not begun it, or has started the
//! CPU behind its back, is not online, and its word is never opened. Nor is it touched by the thread
//! that closes the others. The same goes for a thread that is no CPU (feature `host`): it has no
//! word, and its operations find it closed.

use crate::alloc::{AllocError, PerCpuBox};
use crate::arch;
use crate::atomic::{AtomicU64, Ordering};
use crate::cpu::{self, CpuId};
use crate::hotplug::CpusReadGuard;
use crate::platform::{Global, Platform};
use crate::var::PerCpuPtr;

/// An open word with a balance of 0.
pub(super) const OPEN: i64 = crate::view::REF_OPEN;
/// A word that has just been closed: as far from positive as from overflow.
const CLOSED: i64 = -OPEN;
/// How far a word may be from what it began with before [`Words::drift`] says so. Each single
/// operation moves it by 1, which takes a century to matter; those on many references move it by
/// up to 32 bits, and look here before.
const FAR: u64 = 1 << 40;

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

    /// Adds to this CPU's word. Returns whether it is closed, or the thread is no CPU: then nothing
    /// was counted.
    #[inline(always)]
    pub(super) fn add_or_closed(&self, amount: i64) -> bool {
        // SAFETY: the words live as long as `memory`, and all accesses are of this kind.
        unsafe { arch::add_is_negative(self.ptr.raw(), amount) }
    }

    /// Returns whether this CPU's word can be closed again if it is opened now. Called with
    /// interrupts masked.
    pub(super) fn can_be_opened_here() -> bool {
        if arch::REMOTE_SAFE { arch::is_cpu() } else { cpu::takes_calls(cpu::current()) }
    }

    /// Opens this CPU's word, if it is closed.
    ///
    /// Called with interrupts masked, by one CPU at a time, while no thread closes words and the word
    /// [can be opened](Self::can_be_opened_here).
    pub(super) fn open_here(&self) {
        // SAFETY: as above. What comes in between, an NMI, finds the word closed and leaves nothing
        // there that counts.
        unsafe {
            if self.ptr.read() < 0 {
                self.ptr.write(OPEN);
            }
        }
    }

    /// Closes all words and returns the sum of the balances of those that were open. None is opened
    /// meanwhile, or afterwards until that is allowed again. May sleep.
    pub(super) fn close_all(&self, cpus: &CpusReadGuard) -> i128 {
        // A CPU that gets its unit from now on has a closed word and does not run before the guard
        // is dropped. The sum of 1024 words does not fit in 64 bits.
        cpu::booted_once().iter().map(|cpu| i128::from(self.close(cpu, cpus))).sum()
    }

    fn close(&self, cpu: CpuId, _cpus: &CpusReadGuard) -> i64 {
        // SAFETY: the word lives as long as `memory`, and is accessed as an atomic or by
        // operations of its CPU. Those may collide with the load, which then finds some value that
        // the word had; with the exchange they do not collide: see the module's documentation.
        let word = unsafe { &*self.memory.on(cpu).cast::<AtomicU64>() };
        // The lock under which words are opened shows an open word to this thread.
        if (word.load(Ordering::Relaxed) as i64) < 0 {
            return 0;
        }
        let closing = Closing { word, before: AtomicU64::new(0) };
        if arch::REMOTE_SAFE || !cpu::takes_calls(cpu) {
            closing.run();
        } else {
            let arg = (&raw const closing).expose_provenance();
            Global::run_on_cpu(cpu.index() as u32, Closing::run_at, arg);
        }
        closing.before.load(Ordering::Relaxed) as i64 - OPEN
    }

    /// How far this CPU's word has gone from what it began with, if that is far. A thread that is no
    /// CPU has no word.
    #[inline]
    pub(super) fn drift(&self) -> Option<Drift> {
        if !arch::is_cpu() {
            return None;
        }
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
        // SAFETY: as above. A word that another CPU closes at the same time is left closed.
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
