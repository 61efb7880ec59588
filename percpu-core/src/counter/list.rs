//! The list of all counters, for those who must visit each: a CPU's death, and a judge from
//! outside.

use core::ptr::{NonNull, null_mut, without_provenance_mut};

use super::node::Node;
use crate::atomic::{AtomicPtr, Ordering::Relaxed};
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
    /// Where the link of a node that was taken out points: nowhere that a machine has memory. Linux:
    /// `LIST_POISON1`.
    const POISON: *mut Self = without_provenance_mut(0xdead_0000_0000_0100);

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

/// Puts nodes at the end, under one hold of the lock.
///
/// # Safety
///
/// The nodes are in no list, and stay where they are until [`remove`].
pub(super) unsafe fn insert(nodes: impl Iterator<Item = NonNull<Node>>) {
    let head = (&raw const HEAD).cast_mut();
    let _lock = LOCK.lock();
    for node in nodes {
        let new = node.cast::<Link>().as_ptr();
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
}

/// Takes nodes out, under one hold of the lock.
///
/// # Safety
///
/// The nodes were put in by [`insert`] and not taken out since.
pub(super) unsafe fn remove(nodes: impl Iterator<Item = NonNull<Node>>) {
    let _lock = LOCK.lock();
    for node in nodes {
        let old = node.cast::<Link>().as_ptr();
        // SAFETY: the node is in the list by the caller's word, and so are its neighbours; all are
        // alive.
        unsafe {
            let (next, prev) = ((*old).next.load(Relaxed), (*old).prev.load(Relaxed));
            debug_assert!(
                (*next).prev.load(Relaxed) == old && (*prev).next.load(Relaxed) == old,
                "the list of counters is damaged around the one at {old:p}: its neighbours do not \
                 point at it"
            );
            (*next).prev.store(prev, Relaxed);
            (*prev).next.store(next, Relaxed);
            (*old).next.store(Link::POISON, Relaxed);
            (*old).prev.store(Link::POISON, Relaxed);
        }
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
