//! The initialisers of boxes: they run for the CPUs that have a unit when the box is made, and for
//! each other CPU when it gets one.
//!
//! # Implementation
//!
//! A box's initialiser lies in a node in metadata memory, and the node on a list. The node knows for
//! which CPUs it has made a value: those are dropped with the box, whatever happened in between.
//!
//! An initialiser runs without the list's lock, so that it can make and drop boxes itself. While it
//! runs its node is *busy*, and stays on the list: the box's drop waits, unless it is the initialiser
//! itself that drops the box, which is refused. New nodes go to the end of the list. So whoever gives a CPU its unit and goes to the list's end, publishing the CPU under the
//! same hold of the lock, has missed no node; and a node is listed only if it has made a value for
//! every CPU that is published.

use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::mem;
use core::ptr::{NonNull, with_exposed_provenance_mut};

use super::global;
use crate::cpu::{self, CpuId, CpuMask};
use crate::platform::{Global, NoMemory, Platform};
use crate::sync::{Mutex, MutexGuard};
use crate::unwind::{AtEnd, for_each_to_the_end};
use crate::var::PerCpuPtr;

/// What is known of an initialiser without its type; first in its node.
pub(super) struct Head {
    links: UnsafeCell<Links>,
    /// CPUs whose copies hold a value.
    made: CpuMask,
    /// Makes the value of a CPU's copy and marks it as made.
    ///
    /// To be called for a CPU whose unit has memory and whose copy holds no value, by one thread.
    make: unsafe fn(NonNull<Head>, CpuId),
    /// Drops the initialiser and frees the node.
    free: unsafe fn(NonNull<Head>),
}

/// A node's place on the list; the list's lock owns it.
struct Links {
    prev: Option<NonNull<Head>>,
    next: Option<NonNull<Head>>,
    listed: bool,
    /// The [thread](Platform::thread_id) that runs the initialiser for a CPU that comes up. There is one
    /// at most, since CPUs get their units one after the other.
    runner: Option<usize>,
}

#[repr(C)]
struct Node<T, F> {
    head: Head,
    ptr: PerCpuPtr<T>,
    init: F,
}

struct List {
    first: Option<NonNull<Head>>,
    last: Option<NonNull<Head>>,
}

// SAFETY: the nodes are owned by boxes, and hold initialisers that any thread may call and drop.
unsafe impl Send for List {}

static LIST: Mutex<List> = Mutex::new(List { first: None, last: None });

impl List {
    /// A node's links.
    ///
    /// # Safety
    ///
    /// The node was not freed, and `self` is what the lock of [`LIST`] owns.
    unsafe fn links(&mut self, node: NonNull<Head>) -> &mut Links {
        // SAFETY: links are reached under the lock only, and `&mut self` lends out one at a time.
        unsafe { &mut *node.as_ref().links.get() }
    }

    /// # Safety
    ///
    /// As [`links`](Self::links); the node is not listed.
    unsafe fn push_back(&mut self, node: NonNull<Head>) {
        let last = self.last.replace(node);
        // SAFETY: passed on to the caller.
        let links = unsafe { self.links(node) };
        links.prev = last;
        links.listed = true;
        match last {
            // SAFETY: a listed node was not freed.
            Some(last) => unsafe { self.links(last) }.next = Some(node),
            None => self.first = Some(node),
        }
    }

    /// # Safety
    ///
    /// As [`links`](Self::links).
    unsafe fn remove(&mut self, node: NonNull<Head>) {
        // SAFETY: passed on to the caller.
        let links = unsafe { self.links(node) };
        if !mem::take(&mut links.listed) {
            return;
        }
        let (prev, next) = (links.prev, links.next);
        match prev {
            // SAFETY: a listed node was not freed.
            Some(prev) => unsafe { self.links(prev) }.next = next,
            None => self.first = next,
        }
        match next {
            // SAFETY: as above.
            Some(next) => unsafe { self.links(next) }.prev = prev,
            None => self.last = prev,
        }
    }
}

/// Calls `init` for each CPU that has a unit, and has it called for each other when it gets one,
/// until [`retire`]. `ptr` is an area for a `T` that nobody else uses.
///
/// If `init` panics the values made so far are dropped.
pub(super) fn register<T, F>(ptr: PerCpuPtr<T>, init: F) -> Result<NonNull<Head>, NoMemory>
where
    T: Send + 'static,
    F: Fn(CpuId) -> T + Send + Sync + 'static,
{
    let links = Links { prev: None, next: None, listed: false, runner: None };
    let head = Head {
        links: UnsafeCell::new(links),
        made: CpuMask::new(),
        make: make::<T, F>,
        free: free::<T, F>,
    };
    let node = Global::alloc_meta(Layout::new::<Node<T, F>>()).ok_or(NoMemory)?;
    // SAFETY: the memory is as large and aligned as a node, and nobody else's.
    unsafe { node.cast().write(Node { head, ptr, init }) };
    let node = node.cast::<Head>();
    let unlisted = Unlisted { node, ptr };
    loop {
        // SAFETY: written above; shared from here on.
        let made = &unsafe { node.as_ref() }.made;
        for cpu in cpu::booted_once().iter().filter(|&cpu| !made.contains(cpu)) {
            // SAFETY: the CPU has a unit, and the copy no value. Until the node is listed only
            // this thread makes values.
            unsafe { make::<T, F>(node, cpu) };
        }
        let mut list = LIST.lock();
        // A CPU may have got its unit since; none does while the lock is held.
        if cpu::booted_once().iter().all(|cpu| made.contains(cpu)) {
            // SAFETY: the node is new.
            unsafe { list.push_back(node) };
            break;
        }
    }
    mem::forget(unlisted);
    Ok(node)
}

/// Takes an initialiser off the list: it makes no more values. Waits while it runs.
///
/// # Panics
///
/// If it is the initialiser itself that calls this, and the platform tells threads apart. Nothing has
/// changed then.
///
/// # Safety
///
/// `node` is of a [`register`], and not retired.
pub(super) unsafe fn unlist(node: NonNull<Head>) {
    let thread = Global::thread_id();
    loop {
        let mut list = LIST.lock();
        // SAFETY: the node was not freed, says the caller.
        let Some(runner) = unsafe { list.links(node) }.runner else {
            // SAFETY: as above.
            return unsafe { list.remove(node) };
        };
        drop(list);
        assert!(
            thread == 0 || runner != thread,
            "an initialiser drops the box that it is of, which waits until the initialiser has returned"
        );
        Global::yield_now();
    }
}

/// Drops every value that the copies hold, and frees the node of the initialiser, also when a destructor
/// panics: then the other values are dropped, too.
///
/// # Safety
///
/// `node` is of a [`register`] with this `ptr`, or with its cast to the type that `T` wraps, and
/// [off the list](unlist). Nobody uses the values any more, and the node is not used again.
pub(super) unsafe fn retire<T>(node: NonNull<Head>, ptr: PerCpuPtr<T>) {
    drop(Unlisted { node, ptr });
}

/// Calls every initialiser for a CPU whose unit has just got its memory, then `publish`: before any
/// box is made that does not see the CPU as published.
///
/// One caller at a time. If an initialiser panics, `publish` is not called; a further call goes on where
/// this one ended.
pub(crate) fn initialise_copies(cpu: CpuId, publish: impl FnOnce()) {
    let mut list = LIST.lock();
    let mut next = list.first;
    while let Some(node) = next {
        // SAFETY: listed nodes are not freed; this one stays on the list while the lock is held,
        // and while it is busy.
        let head = unsafe { node.as_ref() };
        if !head.made.contains(cpu) {
            // SAFETY: as above.
            unsafe { list.links(node) }.runner = Some(Global::thread_id());
            drop(list);
            let busy = Busy(node);
            // SAFETY: the unit has memory and the copy no value; the caller is alone with this
            // CPU, and whoever registers initialisers leaves it alone until it is published.
            unsafe { (head.make)(node, cpu) };
            list = busy.end();
        }
        // SAFETY: as above; the lock is held since the node was busy.
        next = unsafe { list.links(node) }.next;
    }
    publish();
}

/// An initialiser that runs for a CPU that comes up.
struct Busy(NonNull<Head>);

impl Busy {
    /// It has returned; the node stays on the list as long as the lock is held.
    fn end(self) -> MutexGuard<'static, List, Global> {
        let mut list = LIST.lock();
        // SAFETY: a busy node is listed.
        unsafe { list.links(self.0) }.runner = None;
        mem::forget(self);
        list
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        drop(Self(self.0).end());
    }
}

/// Where `cpu`'s copy lies, published or not.
fn copy_of<T>(ptr: PerCpuPtr<T>, cpu: CpuId) -> *mut T {
    let first = global().first_chunk().expect("an area was allocated");
    let offset = first.offset(cpu.index() as u32).expect("a possible CPU has a place for its unit");
    with_exposed_provenance_mut(ptr.raw().wrapping_add(offset))
}

/// # Safety
///
/// As [`Head::make`]; the node is a `Node<T, F>`.
unsafe fn make<T, F: Fn(CpuId) -> T>(node: NonNull<Head>, cpu: CpuId) {
    // SAFETY: the node is of this type, says the caller, and nobody has a unique reference: what
    // changes in it are the links, in a cell, and atomics.
    let node = unsafe { node.cast::<Node<T, F>>().as_ref() };
    let value = (node.init)(cpu);
    // SAFETY: the unit has memory, the area is as large and aligned as a `T`, and nobody else
    // uses this copy before it holds a value.
    unsafe { copy_of(node.ptr, cpu).write(value) };
    node.head.made.set(cpu, true);
}

/// # Safety
///
/// The node is a `Node<T, F>`, on no list, and not used again.
unsafe fn free<T, F>(node: NonNull<Head>) {
    /// Frees the memory also when the destructor panics.
    struct Free<T, F>(NonNull<Node<T, F>>);

    impl<T, F> Drop for Free<T, F> {
        fn drop(&mut self) {
            // SAFETY: allocated by `register` with this layout, and its owner's end.
            unsafe { Global::free_meta(self.0.cast(), Layout::new::<Node<T, F>>()) };
        }
    }

    let node = Free(node.cast::<Node<T, F>>());
    // SAFETY: passed on to the caller; a pointer and the head have nothing to drop.
    unsafe { node.0.drop_in_place() };
}

/// A node that is not listed, whose values were made for some of the CPUs. Dropping it drops those and
/// frees the node.
struct Unlisted<T> {
    node: NonNull<Head>,
    ptr: PerCpuPtr<T>,
}

impl<T> Drop for Unlisted<T> {
    fn drop(&mut self) {
        let node = self.node;
        let _free = AtEnd(|| {
            // SAFETY: the node is on no list and its owner is at its end.
            unsafe { (node.as_ref().free)(node) };
        });
        if mem::needs_drop::<T>() {
            // SAFETY: the node is freed at the end of this scope.
            let made = unsafe { node.as_ref() }.made.iter();
            for_each_to_the_end(made, |cpu| {
                // SAFETY: the copy holds a value, and this is its owner's end.
                unsafe { copy_of(self.ptr, cpu).drop_in_place() };
            });
        }
    }
}
