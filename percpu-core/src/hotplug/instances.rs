//! The instances of a step: a list of values of one type, of which the list does not know the type,
//! and the runs of their callbacks for a CPU.
//!
//! # Implementation
//!
//! Each value lies in a node of metadata memory, with its callbacks. The list changes only under the
//! control lock, and callbacks run only by its holder or by the one CPU that the holder waits for.
//! So nodes stay where they are, and links as they are, during every walk.

use core::alloc::Layout;
use core::cell::Cell;
use core::ptr::NonNull;
use core::{iter, mem};

use super::failure;
use super::steps::{StepError, StepId};
use crate::cpu::CpuId;
use crate::platform::{Global, Platform};
use crate::unwind::{AtEnd, for_each_to_the_end};

/// Starts an instance up for a CPU, or says why not.
pub type InstanceStartup<T> = fn(CpuId, &T) -> Result<(), StepError>;
/// Tears down for a CPU what an instance's start-up started. It cannot refuse.
pub type InstanceTeardown<T> = fn(CpuId, &T);

/// Which of the two callbacks.
#[derive(Clone, Copy)]
enum Callback {
    StartUp,
    TearDown,
}

/// What is known of an instance without its type; first in its node.
pub(super) struct Head {
    prev: Cell<Option<NonNull<Head>>>,
    next: Cell<Option<NonNull<Head>>>,
    /// Runs a callback; to be called with the node that this is the head of.
    run: unsafe fn(NonNull<Head>, Callback, CpuId) -> Result<(), StepError>,
    /// Drops the value and frees the node, its owner's end.
    free: unsafe fn(NonNull<Head>),
}

/// An instance.
#[repr(C)]
pub(super) struct Node<T> {
    head: Head,
    startup: Option<InstanceStartup<T>>,
    teardown: Option<InstanceTeardown<T>>,
    value: T,
}

impl<T: Send + Sync + 'static> Node<T> {
    /// A node of no list, or `value` again if there is no memory.
    pub(super) fn allocate(
        value: T,
        startup: Option<InstanceStartup<T>>,
        teardown: Option<InstanceTeardown<T>>,
    ) -> Result<NonNull<Node<T>>, T> {
        let Some(memory) = Global::alloc_meta(Layout::new::<Self>()) else { return Err(value) };
        let head = Head {
            prev: Cell::new(None),
            next: Cell::new(None),
            run: Self::run,
            free: Self::drop_and_free,
        };
        let node = memory.cast::<Self>();
        // SAFETY: the memory is as large and aligned as a node, and nobody else's.
        unsafe { node.write(Self { head, startup, teardown, value }) };
        Ok(node)
    }

    /// The value of a node.
    ///
    /// # Safety
    ///
    /// The node is not freed as long as the value is used.
    pub(super) unsafe fn value<'a>(node: NonNull<Self>) -> &'a T {
        // SAFETY: passed on to the caller. A reference to the value alone: the links next to it
        // may change meanwhile.
        unsafe { &(*node.as_ptr()).value }
    }

    /// Frees a node and returns its value.
    ///
    /// # Safety
    ///
    /// The node is on no list, and not used again.
    pub(super) unsafe fn into_value(node: NonNull<Self>) -> T {
        // SAFETY: the node's owner says that this is its end, so the value can be moved out.
        let node_value = unsafe { node.read() };
        // SAFETY: allocated above with this layout.
        unsafe { Global::free_meta(node.cast(), Layout::new::<Self>()) };
        node_value.value
    }

    /// # Safety
    ///
    /// `head` is the head of a `Node<T>`, which is not freed meanwhile.
    unsafe fn run(head: NonNull<Head>, callback: Callback, cpu: CpuId) -> Result<(), StepError> {
        let node = head.cast::<Self>().as_ptr();
        // SAFETY: passed on to the caller; these never change. `T: Sync` allows for the CPU that
        // runs this, whichever it is.
        let (startup, teardown, value) =
            unsafe { ((*node).startup, (*node).teardown, &(*node).value) };
        match callback {
            Callback::StartUp => startup.map_or(Ok(()), |f| f(cpu, value)),
            Callback::TearDown => {
                if let Some(f) = teardown {
                    f(cpu, value);
                }
                Ok(())
            }
        }
    }

    /// # Safety
    ///
    /// `head` is the head of a `Node<T>`, on no list and not used again.
    unsafe fn drop_and_free(head: NonNull<Head>) {
        // SAFETY: passed on to the caller.
        drop(unsafe { Self::into_value(head.cast()) });
    }
}

/// One instance, for whoever runs its callbacks.
#[derive(Clone, Copy)]
pub(super) struct InstanceRef(NonNull<Head>);

impl InstanceRef {
    /// The instance in this node.
    ///
    /// # Safety
    ///
    /// The caller holds the control lock, or is waited for by its holder, and the node is not freed
    /// as long as the result is used.
    pub(super) unsafe fn new(node: NonNull<Head>) -> Self {
        Self(node)
    }

    /// Its node.
    pub(super) fn node(self) -> NonNull<Head> {
        self.0
    }

    /// Starts the instance up, which has `nth` before it, unless a failure was ordered.
    fn start_up(self, nth: usize, step: StepId, cpu: CpuId) -> Result<(), StepError> {
        if failure::take_instance(step, nth, cpu) {
            return Err(StepError::INJECTED);
        }
        // SAFETY: the node is not freed meanwhile; the function is of the node's own type.
        unsafe { ((*self.0.as_ptr()).run)(self.0, Callback::StartUp, cpu) }
    }

    /// Tears the instance down.
    pub(super) fn tear_down(self, cpu: CpuId) {
        // SAFETY: as in `start_up`.
        let _ = unsafe { ((*self.0.as_ptr()).run)(self.0, Callback::TearDown, cpu) };
    }
}

/// Drops an instance's value and frees its memory.
///
/// # Safety
///
/// The node is on no list, and not used again.
pub(super) unsafe fn free(node: NonNull<Head>) {
    // SAFETY: passed on to the caller.
    unsafe { ((*node.as_ptr()).free)(node) };
}

/// A step's instances, in the order in which they were added. A copy is good as long as the list
/// stands still.
#[derive(Clone, Copy)]
pub(super) struct Instances {
    first: Option<NonNull<Head>>,
    last: Option<NonNull<Head>>,
    len: usize,
}

// SAFETY: nodes hold values that any thread may use and drop; their links are used as the module's
// documentation says.
unsafe impl Send for Instances {}

impl Instances {
    pub(super) const NONE: Self = Self { first: None, last: None, len: 0 };

    pub(super) fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The latest instance.
    pub(super) fn last(self) -> Option<NonNull<Head>> {
        self.last
    }

    /// Puts a node at the end.
    ///
    /// # Safety
    ///
    /// The caller holds the control lock. The node is on no list, and not freed before
    /// [`remove`](Self::remove).
    pub(super) unsafe fn push(&mut self, node: NonNull<Head>) {
        // SAFETY: the node is the caller's.
        unsafe { node.as_ref() }.prev.set(self.last);
        match self.last.replace(node) {
            // SAFETY: a listed node is not freed.
            Some(last) => unsafe { last.as_ref() }.next.set(Some(node)),
            None => self.first = Some(node),
        }
        self.len += 1;
    }

    /// Takes a node out.
    ///
    /// # Safety
    ///
    /// The caller holds the control lock. The node is on this list.
    pub(super) unsafe fn remove(&mut self, node: NonNull<Head>) {
        // SAFETY: a listed node is not freed.
        let (prev, next) = unsafe { (node.as_ref().prev.take(), node.as_ref().next.take()) };
        match prev {
            // SAFETY: as above.
            Some(prev) => unsafe { prev.as_ref() }.next.set(next),
            None => self.first = next,
        }
        match next {
            // SAFETY: as above.
            Some(next) => unsafe { next.as_ref() }.prev.set(prev),
            None => self.last = prev,
        }
        self.len -= 1;
    }

    /// Starts all instances up for `cpu`; if one fails or panics, those before it are torn down in
    /// reverse.
    ///
    /// # Safety
    ///
    /// The list stands still: the caller holds the control lock, or is waited for by its holder.
    pub(super) unsafe fn start_up(self, step: StepId, cpu: CpuId) -> Result<(), StepError> {
        // SAFETY: passed on to the caller.
        unsafe { self.start_up_from(self.first, 0, step, cpu) }
    }

    /// Starts an instance up that is about to be put at the end.
    pub(super) fn start_up_new(
        self,
        instance: InstanceRef,
        step: StepId,
        cpu: CpuId,
    ) -> Result<(), StepError> {
        instance.start_up(self.len, step, cpu)
    }

    /// Tears all instances down for `cpu`, in reverse; one of them may be made to fail. Those torn
    /// down before it are then started again; should one of these fail, all are torn down, and the
    /// CPU is up without the step: the second value.
    ///
    /// # Safety
    ///
    /// As [`start_up`](Self::start_up).
    pub(super) unsafe fn tear_down(
        self,
        step: StepId,
        cpu: CpuId,
    ) -> Result<(), (StepError, Result<(), StepError>)> {
        let mut nth = self.len;
        let mut this = self.last;
        while let Some(node) = this {
            nth -= 1;
            // SAFETY: a listed node, and the list stands still.
            let (prev, next) = unsafe { (node.as_ref().prev.get(), node.as_ref().next.get()) };
            if failure::take_instance(step, nth, cpu) {
                // SAFETY: passed on to the caller.
                let again = unsafe { self.start_up_from(next, nth + 1, step, cpu) };
                return Err((StepError::INJECTED, again));
            }
            // A tear-down that panics is done, and so is the step's then.
            // SAFETY: passed on to the caller.
            let rest = AtEnd(|| unsafe { undo_back(prev, cpu) });
            InstanceRef(node).tear_down(cpu);
            mem::forget(rest);
            this = prev;
        }
        Ok(())
    }

    /// Tears all instances down for `cpu`, in reverse, also those behind one that panics.
    ///
    /// # Safety
    ///
    /// As [`start_up`](Self::start_up).
    pub(super) unsafe fn undo(self, cpu: CpuId) {
        // SAFETY: passed on to the caller.
        unsafe { undo_back(self.last, cpu) };
    }

    /// Starts the instances up from `this`, which has `nth` before it, to the end. If one fails or
    /// panics, all before it are torn down.
    ///
    /// # Safety
    ///
    /// As [`start_up`](Self::start_up).
    unsafe fn start_up_from(
        self,
        mut this: Option<NonNull<Head>>,
        mut nth: usize,
        step: StepId,
        cpu: CpuId,
    ) -> Result<(), StepError> {
        while let Some(node) = this {
            // SAFETY: a listed node, and the list stands still.
            let (prev, next) = unsafe { (node.as_ref().prev.get(), node.as_ref().next.get()) };
            // SAFETY: passed on to the caller.
            let undo = AtEnd(|| unsafe { undo_back(prev, cpu) });
            InstanceRef(node).start_up(nth, step, cpu)?;
            mem::forget(undo);
            this = next;
            nth += 1;
        }
        Ok(())
    }
}

/// Tears instances down from `this` back to the first, also those behind one that panics.
///
/// # Safety
///
/// The nodes are on a list that stands still.
unsafe fn undo_back(this: Option<NonNull<Head>>, cpu: CpuId) {
    // SAFETY: passed on to the caller.
    let back = iter::successors(this, |node| unsafe { node.as_ref() }.prev.get());
    for_each_to_the_end(back, |node| InstanceRef(node).tear_down(cpu));
}

/// A node that is freed unless it gets an owner.
pub(super) struct Unowned<T: Send + Sync + 'static>(pub(super) NonNull<Node<T>>);

impl<T: Send + Sync + 'static> Unowned<T> {
    /// The node, which is now the caller's.
    pub(super) fn into_node(self) -> NonNull<Node<T>> {
        mem::ManuallyDrop::new(self).0
    }
}

impl<T: Send + Sync + 'static> Drop for Unowned<T> {
    fn drop(&mut self) {
        // SAFETY: the node is on no list, and nobody owns it.
        unsafe { free(self.0.cast()) };
    }
}
