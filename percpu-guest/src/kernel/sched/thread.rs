//! A thread: its stack, its saved stack pointer, what it is for; and queues of threads.
//!
//! Threads are known by address. Their fields are atomics where two CPUs may look at once; the
//! queue link and the stack pointer belong to whoever holds the run queue's lock.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::{RUN_QUEUE, switch};
use crate::kernel::mem::{PAGE, frames};

/// Bytes of a thread's stack and its own data.
const STACK: usize = 4 * PAGE;
const NO_CPU: u32 = u32::MAX;

/// A thread, at the low end of its stack.
#[repr(C)]
pub struct Thread {
    rsp: AtomicUsize,
    next: AtomicUsize,
    /// A `fn(u32) -> bool`, or 0: the thread is always wanted.
    wanted: AtomicUsize,
    /// Time stamp before which it is not wanted.
    not_before: AtomicU64,
    /// Time stamp until which it looks for what it waits for without giving its CPU away.
    look_until: AtomicU64,
    ended: AtomicBool,
    /// The only CPU it may run on.
    bound: u32,
    /// Its row in the ledger.
    row: u32,
    entry: fn(usize),
    arg: usize,
    /// Last, so that a stack that grows too far hits it first.
    canary: AtomicUsize,
}

const CANARY: usize = 0x5374_6163_6b45_6e64;

fn thread(address: usize) -> &'static Thread {
    let thread = core::ptr::with_exposed_provenance::<Thread>(address);
    // SAFETY: addresses of threads are made by `Thread::new` only, and threads stay.
    unsafe { &*thread }
}

impl Thread {
    /// A thread that will run `entry(arg)`; `None` if there is no memory.
    pub fn new(
        entry: fn(usize),
        arg: usize,
        row: u32,
        bound: Option<u32>,
    ) -> Option<&'static Self> {
        let base = frames::alloc_fresh(STACK / PAGE)?;
        let at = core::ptr::with_exposed_provenance_mut::<Self>(base);
        let new = Self {
            rsp: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            wanted: AtomicUsize::new(0),
            not_before: AtomicU64::new(0),
            look_until: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            bound: bound.unwrap_or(NO_CPU),
            row,
            entry,
            arg,
            canary: AtomicUsize::new(CANARY),
        };
        // SAFETY: the frames are ours and aligned to a page.
        unsafe { at.write(new) };
        let thread = thread(base);
        // SAFETY: nobody knows the thread yet.
        unsafe { thread.reset() };
        Some(thread)
    }

    /// Puts the thread back to its beginning.
    ///
    /// # Safety
    ///
    /// It runs on no CPU and is in no queue.
    pub unsafe fn reset(&self) {
        // SAFETY: the stack is not in use.
        let rsp = unsafe { switch::first_frame(self.stack_top()) };
        self.rsp.store(rsp, Ordering::Relaxed);
        self.wanted.store(0, Ordering::Relaxed);
        self.not_before.store(0, Ordering::Relaxed);
        self.look_until.store(0, Ordering::Relaxed);
        self.ended.store(false, Ordering::Relaxed);
    }

    /// Its address, by which queues know it.
    pub fn address(&self) -> usize {
        (&raw const *self).expose_provenance()
    }

    /// End of its stack.
    pub fn stack_top(&self) -> usize {
        self.address() + STACK
    }

    /// Puts it on its queue.
    pub fn make_runnable(&self) {
        RUN_QUEUE.with(|queues| match self.bound {
            NO_CPU => queues.shared.push(self.address()),
            cpu => queues.bound[cpu as usize].push(self.address()),
        });
    }

    /// Whether `cpu` may run it, at time stamp `now`.
    pub(super) fn is_wanted(&self, cpu: u32, now: u64) -> bool {
        if self.not_before.load(Ordering::Relaxed) > now {
            return false;
        }
        match self.wanted.load(Ordering::Relaxed) {
            0 => true,
            wanted => {
                // SAFETY: `set_wanted` stored a function of this type.
                let wanted: fn(u32) -> bool = unsafe {
                    core::mem::transmute(core::ptr::with_exposed_provenance::<()>(wanted))
                };
                wanted(cpu)
            }
        }
    }
}

/// Makes a thread that any CPU may run.
pub fn spawn(entry: fn(usize), arg: usize, row: u32) -> &'static Thread {
    let thread = Thread::new(entry, arg, row, None).expect("no memory for a thread");
    thread.make_runnable();
    thread
}

/// Makes a thread for one CPU.
pub fn spawn_bound(entry: fn(usize), cpu: u32) -> &'static Thread {
    let thread =
        Thread::new(entry, cpu as usize, NO_CPU, Some(cpu)).expect("no memory for a thread");
    thread.make_runnable();
    thread
}

/// Runs a thread's function; the first call on its stack.
pub(super) extern "C" fn run_current() -> ! {
    super::finish_first_switch();
    let current = thread(super::CURRENT.read());
    (current.entry)(current.arg);
    super::end_current()
}

pub(super) fn row_of(address: usize) -> u32 {
    thread(address).row
}

/// Stops the kernel if the thread has used more stack than it has.
pub(super) fn check_stack(address: usize) {
    let intact = thread(address).canary.load(Ordering::Relaxed) == CANARY;
    assert!(intact, "the stack of the thread at {address:#x} has overflowed");
}

pub(super) fn is_bound(address: usize) -> bool {
    thread(address).bound != NO_CPU
}

pub(super) fn has_ended(address: usize) -> bool {
    thread(address).ended.load(Ordering::Relaxed)
}

pub(super) fn set_ended(address: usize) {
    thread(address).ended.store(true, Ordering::Relaxed);
}

pub(super) fn set_wanted(address: usize, wanted: Option<fn(u32) -> bool>) {
    let wanted = wanted.map_or(0, |f| (f as *const ()).expose_provenance());
    thread(address).wanted.store(wanted, Ordering::Relaxed);
}

pub(super) fn look_until(address: usize) -> u64 {
    thread(address).look_until.load(Ordering::Relaxed)
}

pub(super) fn set_look_until(address: usize, time: u64) {
    thread(address).look_until.store(time, Ordering::Relaxed);
}

pub(super) fn set_not_before(address: usize, time: u64) {
    thread(address).not_before.store(time, Ordering::Relaxed);
}

/// Saves `previous` and goes on with `next`.
///
/// # Safety
///
/// The run queue's lock is held, interrupts are masked, `next` runs nowhere.
pub(super) unsafe fn switch(previous: usize, next: usize) {
    // SAFETY: by this function's contract the saved stack pointer of `next` is current.
    unsafe {
        switch::switch_stacks(
            thread(previous).rsp.as_ptr(),
            thread(next).rsp.load(Ordering::Relaxed),
        );
    }
}

/// First in, first out.
pub(super) struct Queue {
    first: usize,
    last: usize,
}

impl Queue {
    pub(super) const fn new() -> Self {
        Self { first: 0, last: 0 }
    }

    pub(super) fn push(&mut self, address: usize) {
        thread(address).next.store(0, Ordering::Relaxed);
        if self.first == 0 {
            self.first = address;
        } else {
            thread(self.last).next.store(address, Ordering::Relaxed);
        }
        self.last = address;
    }

    pub(super) fn push_front(&mut self, address: usize) {
        thread(address).next.store(self.first, Ordering::Relaxed);
        if self.first == 0 {
            self.last = address;
        }
        self.first = address;
    }

    /// Takes the first thread that `wanted` accepts.
    pub(super) fn pop_if(&mut self, wanted: impl Fn(&Thread) -> bool) -> Option<usize> {
        let mut before = 0;
        let mut at = self.first;
        while at != 0 && !wanted(thread(at)) {
            before = at;
            at = thread(at).next.load(Ordering::Relaxed);
        }
        if at == 0 {
            return None;
        }
        let next = thread(at).next.load(Ordering::Relaxed);
        if before == 0 {
            self.first = next;
        } else {
            thread(before).next.store(next, Ordering::Relaxed);
        }
        if next == 0 {
            self.last = before;
        }
        Some(at)
    }
}
