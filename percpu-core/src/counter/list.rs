//! The list of all counters, for those who must visit each: a CPU's death, and a judge from
//! outside.

use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use super::node::Node;
use crate::sync::SpinLock;
use crate::view::ListView;

/// A node of the circular list; its pointers change under [`LOCK`].
#[repr(C)]
pub(super) struct Link {
    next: AtomicPtr<Link>,
    prev: AtomicPtr<Link>,
}

const _: () = assert!(size_of::<Link>() == size_of::<ListView>());

impl Link {
    /// A node of no list.
    pub(super) fn new() -> Self {
        Self { next: AtomicPtr::new(null_mut()), prev: AtomicPtr::new(null_mut()) }
    }
}

/// Head of the list.
static HEAD: Link = Link {
    next: AtomicPtr::new((&raw const HEAD).cast_mut()),
    prev: AtomicPtr::new((&raw const HEAD).cast_mut()),
};

/// Taken before a counter's own lock. Linux: `percpu_counters_lock`.
static LOCK: SpinLock<()> = SpinLock::new(());

/// Address of the head, a [`ListView`].
pub(crate) fn head_address() -> usize {
    (&raw const HEAD).expose_provenance()
}

/// Puts a node at the end.
///
/// # Safety
///
/// The node is in no list, and stays where it is until [`remove`].
pub(super) unsafe fn insert(node: NonNull<Node>) {
    let new = node.cast::<Link>().as_ptr();
    let head = (&raw const HEAD).cast_mut();
    let _lock = LOCK.lock();
    let last = HEAD.prev.load(Relaxed);
    // SAFETY: the new node by the caller's word, the last because nodes in the list are alive;
    // `repr(C)` puts a node's link at its address.
    unsafe {
        (*new).next.store(head, Relaxed);
        (*new).prev.store(last, Relaxed);
        (*last).next.store(new, Relaxed);
    }
    HEAD.prev.store(new, Relaxed);
}

/// Takes a node out.
///
/// # Safety
///
/// The node was put in by [`insert`] and not taken out since.
pub(super) unsafe fn remove(node: NonNull<Node>) {
    let old = node.cast::<Link>().as_ptr();
    let _lock = LOCK.lock();
    // SAFETY: the node is in the list by the caller's word, and so are its neighbours; all are
    // alive.
    unsafe {
        let (next, prev) = ((*old).next.load(Relaxed), (*old).prev.load(Relaxed));
        (*next).prev.store(prev, Relaxed);
        (*prev).next.store(next, Relaxed);
    }
}

/// Calls `f` for every counter; none comes or goes meanwhile.
pub(super) fn for_each(mut f: impl FnMut(&Node)) {
    let _lock = LOCK.lock();
    let mut link = HEAD.next.load(Relaxed);
    while !core::ptr::eq(link, &HEAD) {
        // SAFETY: a node in the list is alive, and the lock keeps it in; a link that is not the
        // head is the first field of a node.
        let node = unsafe { &*link.cast::<Node>() };
        f(node);
        link = node.link.next.load(Relaxed);
    }
}
