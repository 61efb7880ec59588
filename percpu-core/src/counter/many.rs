//! [`PercpuCounters`]: as many counters as the program says when it runs.

use core::alloc::Layout;
use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

use super::memory::{self, Nodes};
use super::percpu::PercpuCounter;
use crate::alloc::AllocError;
use crate::platform::{Global, Platform};

/// Counters that are made and destroyed together, to be used as a slice. Linux:
/// `percpu_counter_init_many` and `percpu_counter_destroy_many`.
///
/// One area holds the local parts of all, one block of memory all counters.
/// [`PercpuCounter::new_many`] makes a number of them that the compiler knows.
///
/// ```
/// use percpu_core::{counter::PercpuCounters, host};
///
/// host::boot(2).unwrap();
/// let _cpu = host::enter_any().unwrap();
/// let queues = PercpuCounters::new(5, 100).unwrap();
/// queues[3].add(7);
/// let sums: Vec<i64> = queues.iter().map(|queue| queue.sum()).collect();
/// assert_eq!(sums, [100, 100, 100, 107, 100]);
/// ```
pub struct PercpuCounters {
    nodes: Nodes,
    /// A handle for each, in the order of the nodes; never dropped.
    handles: NonNull<PercpuCounter>,
}

// SAFETY: it owns its counters, which are `Send` and `Sync`.
unsafe impl Send for PercpuCounters {}
// SAFETY: as above.
unsafe impl Sync for PercpuCounters {}

impl PercpuCounters {
    /// `count` counters that each stand at `amount`. May sleep.
    ///
    /// # Errors
    ///
    /// As [`PercpuCounter::new_many`].
    pub fn new(count: usize, amount: i64) -> Result<Self, AllocError> {
        if count == 0 {
            let nodes = Nodes { first: NonNull::dangling(), count };
            return Ok(Self { nodes, handles: NonNull::dangling() });
        }
        let nodes = Nodes::new(count, amount)?;
        let Some(memory) = Global::alloc_meta(Self::layout(count)) else {
            // SAFETY: just made, and told to nobody.
            unsafe { memory::destroy(nodes.iter()) };
            return Err(AllocError::NoMemory);
        };
        let handles = memory.cast::<PercpuCounter>();
        for (n, node) in nodes.iter().enumerate() {
            // SAFETY: the memory is for `count` handles. The nodes live until `drop`, and these are
            // their only handles.
            unsafe { handles.add(n).write(PercpuCounter::from_node(node)) };
        }
        Ok(Self { nodes, handles })
    }

    fn layout(count: usize) -> Layout {
        Layout::array::<PercpuCounter>(count).expect("fewer than fit an area")
    }
}

impl Deref for PercpuCounters {
    type Target = [PercpuCounter];

    #[inline]
    fn deref(&self) -> &[PercpuCounter] {
        // SAFETY: `new` wrote as many handles, or there is none. Nobody gets more than a shared
        // reference to them.
        unsafe { core::slice::from_raw_parts(self.handles.as_ptr(), self.nodes.count) }
    }
}

impl Drop for PercpuCounters {
    /// Takes the counters out of the list, all at once, and frees them. Linux:
    /// `percpu_counter_destroy_many`.
    fn drop(&mut self) {
        let count = self.nodes.count;
        if count == 0 {
            return;
        }
        // SAFETY: the handles are not used any more, and nobody else has one.
        unsafe { memory::destroy(self.nodes.iter()) };
        // SAFETY: the memory of `new`; the handles are not dropped, the counters are gone already.
        unsafe { Global::free_meta(self.handles.cast(), Self::layout(count)) };
    }
}

impl fmt::Debug for PercpuCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
