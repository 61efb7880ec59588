//! Memory of counters: any number of them is made at once, with one area for the local parts of all
//! and one block for their nodes.
//!
//! Counters that were made together may be destroyed one by one, so each node knows the first one,
//! which counts those in use; with the last one the memory goes.

use core::alloc::Layout;
use core::ptr::NonNull;

use super::list;
use super::node::Node;
use crate::alloc::{AllocError, MAX_ALLOC_SIZE, alloc_percpu, free_percpu};
use crate::platform::{Global, Platform};
use crate::var::PerCpuPtr;

/// Nodes of counters that are in the list, one after the other in one block.
#[derive(Clone, Copy)]
pub(super) struct Nodes {
    pub(super) first: NonNull<Node>,
    pub(super) count: usize,
}

impl Nodes {
    /// Makes `count` counters, at least one, that stand at `amount`.
    pub(super) fn new(count: usize, amount: i64) -> Result<Self, AllocError> {
        let size = count.saturating_mul(size_of::<i32>());
        let locals = alloc_percpu(size, align_of::<i32>())?.cast::<i32>();
        let Some(memory) = Global::alloc_meta(Self::layout(count)) else {
            // SAFETY: allocated above and told to nobody.
            unsafe { free_locals(locals) };
            return Err(AllocError::NoMemory);
        };
        let nodes = Self { first: memory.cast(), count };
        for (n, node) in nodes.iter().enumerate() {
            let local = PerCpuPtr::from_raw(locals.raw() + n * size_of::<i32>());
            const { assert!(MAX_ALLOC_SIZE / size_of::<i32>() <= u16::MAX as usize) };
            // SAFETY: `alloc_meta` gave memory of `count` nodes to us alone. Their local parts fit an
            // area, which makes the number one of 16 bits.
            unsafe { node.write(Node::new(amount, local, nodes.first, count as u16)) };
        }
        // Those who walk the list by its view come by number.
        nodes.first.as_ptr().expose_provenance();
        // SAFETY: they stay where they are until `destroy` takes them out of the list.
        unsafe { list::insert(nodes.iter()) };
        Ok(nodes)
    }

    pub(super) fn iter(self) -> impl Iterator<Item = NonNull<Node>> + Clone {
        // SAFETY: within the block, or its end.
        (0..self.count).map(move |n| unsafe { self.first.add(n) })
    }

    fn layout(count: usize) -> Layout {
        Layout::array::<Node>(count).expect("so many nodes as have local parts in one area")
    }
}

/// Takes counters out of the list, under one hold of its lock, and frees what nobody uses any more.
///
/// # Safety
///
/// The counters came from [`Nodes::new`], and nobody uses them any more.
pub(super) unsafe fn destroy(nodes: impl Iterator<Item = NonNull<Node>> + Clone) {
    for node in nodes.clone() {
        // SAFETY: they are alive by the caller's word, on which this is a check.
        unsafe { node.as_ref() }.check();
    }
    // Before they are marked: who walks the list finds live counters only.
    // SAFETY: `Nodes::new` put them there, and nobody has destroyed them before.
    unsafe { list::remove(nodes.clone()) };
    for node in nodes.clone() {
        // SAFETY: they are alive by the caller's word.
        unsafe { node.as_ref() }.destroy();
    }
    for node in nodes {
        // SAFETY: the first of a block stays as long as any of it is in use, as this one still is.
        let first = unsafe { node.as_ref() }.first();
        // SAFETY: as above.
        if unsafe { first.as_ref() }.release_one() {
            // SAFETY: no node of the block is in use or in the list, and `destroy` saw the last
            // access of each by way of `release_one`.
            unsafe { free(first) };
        }
    }
}

/// Frees the block of which `first` is the first node.
///
/// # Safety
///
/// Nobody uses any node of it any more.
unsafe fn free(first: NonNull<Node>) {
    // SAFETY: it is there still, and is not used after this line.
    let (locals, count) = unsafe { (first.as_ref().locals(), first.as_ref().allocated()) };
    // SAFETY: the area is the block's own; nobody reaches it but through the nodes.
    unsafe { free_locals(locals) };
    // SAFETY: as above; a node has nothing to drop.
    unsafe { Global::free_meta(first.cast(), Nodes::layout(count)) };
}

/// # Safety
///
/// `locals` is what `alloc_percpu` returned, and nobody uses it any more.
unsafe fn free_locals(locals: PerCpuPtr<i32>) {
    // SAFETY: passed on to the caller.
    let freed = unsafe { free_percpu(locals.cast()) };
    debug_assert!(freed.is_ok(), "the area is the counters' own");
}
