//! Nodes for areas, at hand where no memory can be had.

use core::alloc::Layout;
use core::marker::PhantomData;
use core::mem::size_of;
use core::ptr::NonNull;

use super::tree::{Node, NodeRef, Tree};
use crate::platform::{NoMemory, Platform};
use crate::view::PAGE;

/// Nodes that a slab holds: as many as fit in a page with the link.
const SLAB_NODES: usize = PAGE as usize / size_of::<Node>() - 1;
/// Fewer free nodes than this call for another slab.
pub(super) const LOW: usize = SLAB_NODES / 2;

#[repr(C)]
struct Slab {
    next: Option<NonNull<Slab>>,
    nodes: [Node; SLAB_NODES],
}

/// Free nodes, and the memory of all nodes.
pub(super) struct Pool<P: Platform> {
    slabs: Option<NonNull<Slab>>,
    free: Option<NodeRef>,
    nr_free: usize,
    nr_slabs: usize,
    platform: PhantomData<fn() -> P>,
}

// SAFETY: the pool owns its slabs alone.
unsafe impl<P: Platform> Send for Pool<P> {}

/// Memory for further nodes.
pub(super) struct NewSlab<P: Platform> {
    slab: NonNull<Slab>,
    platform: PhantomData<fn() -> P>,
}

impl<P: Platform> NewSlab<P> {
    /// Gets the memory. Sleeps.
    pub(super) fn new() -> Result<Self, NoMemory> {
        let slab = P::alloc_meta(Layout::new::<Slab>()).ok_or(NoMemory)?.cast();
        Ok(Self { slab, platform: PhantomData })
    }
}

impl<P: Platform> Drop for NewSlab<P> {
    fn drop(&mut self) {
        // SAFETY: `new` got it with this layout, and no pool has taken it over.
        unsafe { P::free_meta(self.slab.cast(), Layout::new::<Slab>()) };
    }
}

impl<P: Platform> Pool<P> {
    pub(super) const fn new() -> Self {
        Self { slabs: None, free: None, nr_free: 0, nr_slabs: 0, platform: PhantomData }
    }

    pub(super) fn nr_free(&self) -> usize {
        self.nr_free
    }

    /// Bytes of all nodes.
    pub(super) fn bytes(&self) -> usize {
        self.nr_slabs * size_of::<Slab>()
    }

    /// Takes the nodes of a slab over. `tree` is the pool's.
    pub(super) fn add(&mut self, slab: NewSlab<P>, tree: &mut Tree) {
        let new = slab.slab.as_ptr();
        core::mem::forget(slab);
        for i in 0..SLAB_NODES {
            // SAFETY: the slab's memory is zeroed, which makes valid nodes, and nobody else knows
            // of it. It stays until the pool is dropped, with the tree that is asked for its nodes.
            let node = unsafe {
                let node = (&raw mut (*new).nodes).cast::<Node>().add(i);
                NodeRef::new(NonNull::new_unchecked(node))
            };
            self.put(node, tree);
        }
        // SAFETY: as above.
        unsafe { (*new).next = self.slabs };
        self.slabs = NonNull::new(new);
        self.nr_slabs += 1;
    }

    /// A node on no list and in no tree.
    pub(super) fn take(&mut self, tree: &mut Tree) -> Option<NodeRef> {
        let node = self.free?;
        self.free = tree.get_mut(node).next.take();
        self.nr_free -= 1;
        Some(node)
    }

    /// Takes back a node that is on no list and in no tree.
    pub(super) fn put(&mut self, node: NodeRef, tree: &mut Tree) {
        tree.get_mut(node).next = self.free;
        self.free = Some(node);
        self.nr_free += 1;
    }
}

impl<P: Platform> Drop for Pool<P> {
    fn drop(&mut self) {
        while let Some(slab) = self.slabs {
            // SAFETY: the pool's slabs are valid until here, and nobody asks for their nodes any
            // more: the tree goes with the pool.
            unsafe {
                self.slabs = (*slab.as_ptr()).next;
                P::free_meta(slab.cast(), Layout::new::<Slab>());
            }
        }
    }
}
