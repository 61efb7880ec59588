//! A free list of objects, of which each CPU has a part: to take one, or to give it back, is one
//! instruction that decides, without a lock, in threads and in interrupt handlers.
//!
//! The objects are numbers, [`Object`], for whatever there is a fixed number of: request tags,
//! descriptors of a device, buffers. Each is in one place at a time: in some CPU's list, in the depot
//! that all CPUs share, or with whoever has taken it.
//!
//! # Implementation
//!
//! A CPU's list is a stack, its [`Head`] one word: the first object, how many there are, and a tag, which
//! is another one after each change and never the same on two CPUs. A change reads the head, prepares
//! the next one, and puts it there by `this_cpu_cmpxchg`. An interrupt handler that changed the list in
//! between has changed the tag, and a thread that has migrated in between finds the tag of another CPU: it
//! fails and begins again. Linux's slab allocator does it in the same way (`tid` in `mm/slub.c`).
//!
//! A list that grows long gives a batch to the depot, one that is empty gets a batch from there, with
//! interrupts masked and under the depot's lock. A CPU that goes down gives all it has.
#![no_std]

mod head;

use core::sync::atomic::{AtomicU16, Ordering};

use percpu_core::hotplug::{self, RegisterError, Section};
use percpu_core::sync::SpinLock;
use percpu_core::{irq, percpu};

pub use head::{Head, NONE};

/// How many objects there are.
pub const OBJECTS: usize = 256;
/// The longest list that a CPU keeps to itself.
pub const LONGEST: u16 = 24;
/// How many change between a list and the depot at once.
pub const BATCH: u16 = 8;

percpu! {
    /// This CPU's list: a [`Head`], or 0 before the CPU has come up.
    static HEAD: PerCpu<u64> = 0;
}

/// What lies below each object in its list, or [`NONE`]. Written by whoever has the object.
static NEXT: [AtomicU16; OBJECTS] = [const { AtomicU16::new(NONE) }; OBJECTS];

/// Objects that no CPU has in its list.
static DEPOT: SpinLock<Depot> = SpinLock::new(Depot { first: NONE, len: 0 });

/// An object that somebody has: the only one of its number.
#[derive(Debug, PartialEq, Eq)]
pub struct Object(u16);

impl Object {
    /// Its number, below [`OBJECTS`].
    pub fn number(&self) -> usize {
        self.0.into()
    }
}

/// Puts all objects into the depot, and sees to the CPUs that come and go. To be called once, by a
/// thread, before anything else here.
///
/// # Errors
///
/// There is no room for another hotplug step.
pub fn init() -> Result<(), RegisterError> {
    (0..OBJECTS as u16).for_each(|number| DEPOT.lock().put(number, number, 1));
    hotplug::register(
        Section::Starting,
        "free_list:starting",
        Some(|cpu| {
            // Once: the tags go on from life to life, since a thread may have read one before.
            if HEAD.read() == 0 {
                HEAD.write(Head::empty(cpu.index() as u32).word());
            }
            Ok(())
        }),
        // On the CPU itself, interrupts masked: nobody takes or gives here any more.
        Some(|_| give_batch(u16::MAX)),
    )?;
    Ok(())
}

/// Takes an object; `None` if this CPU and the depot have none. From any context.
pub fn take() -> Option<Object> {
    loop {
        let head = Head::of(HEAD.read());
        if head.first == NONE {
            if !fetch_batch() {
                return None;
            }
            continue;
        }
        // Another CPU's list, perhaps, or one that has changed: then this is worth nothing, and the
        // exchange fails.
        let below = NEXT[usize::from(head.first)].load(Ordering::Relaxed);
        let next = head.changed(below, head.len - 1);
        if HEAD.cmpxchg(head.word(), next.word()).is_ok() {
            return Some(Object(head.first));
        }
    }
}

/// Gives an object back. From any context.
pub fn give(object: Object) {
    let Object(number) = object;
    loop {
        let head = Head::of(HEAD.read());
        NEXT[usize::from(number)].store(head.first, Ordering::Relaxed);
        let next = head.changed(number, head.len + 1);
        if HEAD.cmpxchg(head.word(), next.word()).is_ok() {
            if next.len > LONGEST {
                give_batch(BATCH);
            }
            return;
        }
    }
}

/// Moves up to `most` objects from this CPU's list to the depot.
fn give_batch(most: u16) {
    // Until the guard goes there is nobody else on this CPU, and nobody else changes its list.
    let _masked = irq::disable();
    let head = Head::of(HEAD.read());
    let len = most.min(head.len);
    if len == 0 {
        return;
    }
    let last = nth(head.first, len - 1);
    let rest = NEXT[usize::from(last)].load(Ordering::Relaxed);
    HEAD.write(head.changed(rest, head.len - len).word());
    DEPOT.lock().put(head.first, last, len);
}

/// Moves a batch from the depot to this CPU's list; false if there was none.
fn fetch_batch() -> bool {
    let _masked = irq::disable();
    let Some((first, last, len)) = DEPOT.lock().take(BATCH) else { return false };
    let head = Head::of(HEAD.read());
    // By now an interrupt handler may have given something back.
    NEXT[usize::from(last)].store(head.first, Ordering::Relaxed);
    HEAD.write(head.changed(first, head.len + len).word());
    true
}

/// The object that lies `n` below another one. The list is the caller's alone.
fn nth(first: u16, n: u16) -> u16 {
    (0..n).fold(first, |number, _| NEXT[usize::from(number)].load(Ordering::Relaxed))
}

/// A list that is under a lock.
#[repr(C)]
struct Depot {
    first: u16,
    len: u16,
}

impl Depot {
    /// Puts `len` objects on top, from `first` to `last`.
    fn put(&mut self, first: u16, last: u16, len: u16) {
        NEXT[usize::from(last)].store(self.first, Ordering::Relaxed);
        self.first = first;
        self.len += len;
    }

    /// Takes up to `most` objects, if there are any: the first, the last, how many.
    fn take(&mut self, most: u16) -> Option<(u16, u16, u16)> {
        let len = most.min(self.len);
        if len == 0 {
            return None;
        }
        let (first, last) = (self.first, nth(self.first, len - 1));
        self.first = NEXT[usize::from(last)].load(Ordering::Relaxed);
        self.len -= len;
        Some((first, last, len))
    }
}
