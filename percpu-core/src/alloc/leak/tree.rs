//! Nodes in the order of their keys: a treap, a search tree that is balanced by chance.
//!
//! It needs no memory of its own, since a node carries its links, and no recursion, since kernel
//! stacks are small. A node's rank is a hash of its key and no node ranks above its parent, so the
//! tree's shape depends on what is in it alone, and its depth is that of a random tree: about
//! 2 ln n, whatever the order of insertion.

use core::panic::Location;
use core::ptr::NonNull;

use crate::alloc::{MAX_ALLOC_SIZE, Zeroable};

/// What is known of an area, and the area's place in the tree.
pub(super) struct Node {
    /// The per-CPU pointer.
    pub(super) key: usize,
    /// The scan that has last found a reference to the area, or during which it was allocated.
    pub(super) seen: u64,
    /// Who allocated it.
    pub(super) site: Option<&'static Location<'static>>,
    /// When.
    pub(super) born_ns: u64,
    /// Bytes.
    pub(super) size: u16,
    /// Allocated since the latest scan began, unless a scan has come by since.
    pub(super) newborn: bool,
    /// Referenced, and its contents are still to be searched: on the list of such nodes.
    pub(super) pending: bool,
    /// In the tree.
    pub(super) linked: bool,
    /// The latest scan found no reference.
    pub(super) leaked: bool,
    /// To be taken as referenced, always.
    pub(super) pinned: bool,
    left: Option<NodeRef>,
    right: Option<NodeRef>,
    /// The next one on the list of free or of pending nodes.
    pub(super) next: Option<NodeRef>,
}

const _: () = assert!(MAX_ALLOC_SIZE <= u16::MAX as usize && size_of::<Node>() == 64);

// SAFETY: integers, `bool`s and options of references and of non-null pointers, which are `None` as
// zero.
unsafe impl Zeroable for Node {}

/// A node of a tracker. Valid as long as the pool that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeRef(NonNull<Node>);

// SAFETY: an address; the node behind it is reached through its tree alone, which belongs to one
// thread at a time.
unsafe impl Send for NodeRef {}

impl NodeRef {
    /// The node at `node`.
    ///
    /// # Safety
    ///
    /// It is there, and belongs to one pool, for as long as any copy of this is used; references to
    /// it are made by [`Tree::get`] and [`Tree::get_mut`] alone, on the one tree of that pool.
    pub(super) unsafe fn new(node: NonNull<Node>) -> Self {
        Self(node)
    }
}

/// Where a link to a node is kept.
#[derive(Clone, Copy)]
enum Hook {
    Root,
    Left(NodeRef),
    Right(NodeRef),
}

/// The tree. It stands for the right to look at the nodes of one pool, linked or not.
pub(super) struct Tree {
    root: Option<NodeRef>,
}

impl Tree {
    pub(super) const fn new() -> Self {
        Self { root: None }
    }

    pub(super) fn get(&self, node: NodeRef) -> &Node {
        // SAFETY: by the contract of `NodeRef::new` the node is there, and a reference to it comes
        // from its tree alone, which is borrowed as the reference is.
        unsafe { node.0.as_ref() }
    }

    pub(super) fn get_mut(&mut self, mut node: NodeRef) -> &mut Node {
        // SAFETY: as in `get`; the tree is borrowed uniquely.
        unsafe { node.0.as_mut() }
    }

    /// The node with this key.
    pub(super) fn find(&self, key: usize) -> Option<NodeRef> {
        self.floor(key).filter(|&node| self.get(node).key == key)
    }

    /// The node with the greatest key that is not above `key`.
    pub(super) fn floor(&self, key: usize) -> Option<NodeRef> {
        let (mut best, mut at) = (None, self.root);
        while let Some(node) = at {
            let this = self.get(node);
            at = if this.key <= key {
                best = Some(node);
                this.right
            } else {
                this.left
            };
        }
        best
    }

    /// The node with the smallest key that is not below `key`.
    pub(super) fn ceiling(&self, key: usize) -> Option<NodeRef> {
        let (mut best, mut at) = (None, self.root);
        while let Some(node) = at {
            let this = self.get(node);
            at = if this.key >= key {
                best = Some(node);
                this.left
            } else {
                this.right
            };
        }
        best
    }

    /// Adds a node whose key is set and not in the tree.
    pub(super) fn insert(&mut self, node: NodeRef) {
        let key = self.get(node).key;
        let (mut hook, mut at) = (Hook::Root, self.root);
        while let Some(next) = at.filter(|&next| rank(self.get(next).key) >= rank(key)) {
            hook = if key < self.get(next).key { Hook::Left(next) } else { Hook::Right(next) };
            at = self.hooked(hook);
        }
        self.set(hook, Some(node));
        // What was there is split in two: below the key and above it.
        let (mut below, mut above) = (Hook::Left(node), Hook::Right(node));
        while let Some(next) = at {
            if self.get(next).key < key {
                self.set(below, at);
                below = Hook::Right(next);
                at = self.hooked(below);
            } else {
                self.set(above, at);
                above = Hook::Left(next);
                at = self.hooked(above);
            }
        }
        self.set(below, None);
        self.set(above, None);
        self.get_mut(node).linked = true;
    }

    /// Takes the node with this key out.
    pub(super) fn remove(&mut self, key: usize) -> Option<NodeRef> {
        let mut hook = Hook::Root;
        let node = loop {
            let node = self.hooked(hook)?;
            match self.get(node).key {
                found if found == key => break node,
                found if key < found => hook = Hook::Left(node),
                _ => hook = Hook::Right(node),
            }
        };
        // Its subtrees become one, in its place.
        let (mut left, mut right) = (self.get(node).left, self.get(node).right);
        while let (Some(l), Some(r)) = (left, right) {
            if rank(self.get(l).key) >= rank(self.get(r).key) {
                self.set(hook, left);
                hook = Hook::Right(l);
                left = self.hooked(hook);
            } else {
                self.set(hook, right);
                hook = Hook::Left(r);
                right = self.hooked(hook);
            }
        }
        self.set(hook, left.or(right));
        let this = self.get_mut(node);
        (this.left, this.right, this.linked) = (None, None, false);
        Some(node)
    }

    fn hooked(&self, hook: Hook) -> Option<NodeRef> {
        match hook {
            Hook::Root => self.root,
            Hook::Left(node) => self.get(node).left,
            Hook::Right(node) => self.get(node).right,
        }
    }

    fn set(&mut self, hook: Hook, to: Option<NodeRef>) {
        match hook {
            Hook::Root => self.root = to,
            Hook::Left(node) => self.get_mut(node).left = to,
            Hook::Right(node) => self.get_mut(node).right = to,
        }
    }
}

/// The rank of a key: its bits well mixed.
fn rank(key: usize) -> u64 {
    let mixed = (key as u64 ^ key as u64 >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::scale::{cases, scaled};

    fn node(key: usize) -> NodeRef {
        // SAFETY: zero bytes are a valid node.
        let node: &'static mut Node = Box::leak(unsafe { Box::new(core::mem::zeroed()) });
        node.key = key;
        // SAFETY: never given back, and known to nobody else.
        unsafe { NodeRef::new(NonNull::from(node)) }
    }

    fn depth(tree: &Tree) -> usize {
        let mut deepest = 0;
        let mut todo: Vec<(NodeRef, usize)> = tree.root.map(|root| (root, 1)).into_iter().collect();
        while let Some((node, depth)) = todo.pop() {
            deepest = deepest.max(depth);
            let this = tree.get(node);
            let children = [this.left, this.right].into_iter().flatten();
            children.clone().for_each(|child| {
                assert!(rank(tree.get(child).key) <= rank(this.key), "a child ranks above");
            });
            todo.extend(children.map(|child| (child, depth + 1)));
        }
        deepest
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: cases(64), ..Default::default() })]

        #[test]
        fn it_answers_as_an_ordered_set(
            ops in prop::collection::vec((any::<bool>(), 0usize..64), 1..scaled(150)),
        ) {
            let mut tree = Tree::new();
            let mut model = BTreeSet::new();
            for (insert, key) in ops {
                if insert && model.insert(key) {
                    tree.insert(node(key));
                } else {
                    let removed = tree.remove(key).map(|node| tree.get(node).key);
                    prop_assert_eq!(removed, model.take(&key));
                }
                let key_of = |node: Option<NodeRef>| node.map(|node| tree.get(node).key);
                for at in 0..64 {
                    prop_assert_eq!(key_of(tree.floor(at)), model.range(..=at).next_back().copied());
                    prop_assert_eq!(key_of(tree.ceiling(at)), model.range(at..).next().copied());
                    prop_assert_eq!(tree.find(at).is_some(), model.contains(&at));
                }
                depth(&tree);
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes minutes")]
    fn it_stays_shallow_whatever_the_order() {
        const COUNT: usize = 20_000;
        let orders: [fn(usize) -> usize; 3] =
            [|n| n * 8, |n| (COUNT - n) * 4096, |n| n.wrapping_mul(0x1_0001) << 16];
        for key in orders {
            let mut tree = Tree::new();
            (0..COUNT).for_each(|n| tree.insert(node(key(n))));
            // 2 ln n is 20; a random tree of this size is not twice as deep.
            assert!(depth(&tree) <= 45, "depth {}", depth(&tree));
        }
    }
}
