//! What the tracker's lock owns: a record of every live area, and the log of calls that came before
//! there was memory for records.

use core::ops::Range;
use core::panic::Location;

use super::pool::{self, NewSlab, Pool};
use super::tree::{Node, NodeRef, Tree};
use crate::platform::Platform;

/// Calls that the early log holds. Linux: `CONFIG_DEBUG_KMEMLEAK_MEM_POOL_SIZE`.
pub const EARLY_CALLS: usize = 200;

/// A live area, as the tracker is told of it.
#[derive(Clone, Copy)]
pub(super) struct Area {
    pub(super) pointer: usize,
    pub(super) size: u16,
    pub(super) site: &'static Location<'static>,
    pub(super) born_ns: u64,
}

/// What happened to areas before the tracker was up.
#[derive(Clone, Copy)]
enum Call {
    Alloc(Area),
    /// The pointer, and the flag of the lock under which the area was taken in.
    Free(usize, bool),
}

/// The log of early calls; full, it only counts.
struct EarlyLog {
    calls: [Option<Call>; EARLY_CALLS],
    len: usize,
    lost: u64,
}

impl EarlyLog {
    fn push(&mut self, call: Call) {
        match self.calls.get_mut(self.len) {
            Some(entry) => {
                *entry = Some(call);
                self.len += 1;
            }
            None => self.lost += 1,
        }
    }
}

/// How far the tracker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// Nothing is recorded.
    Off,
    /// Calls are logged, to be replayed when the tracker starts.
    Early,
    /// Live areas are recorded.
    On,
    /// Nothing is recorded, and a start is refused: too many calls came early.
    Disabled,
}

/// Everything that is recorded.
pub(super) struct Records<P: Platform> {
    pub(super) tracking: Tracking,
    early: EarlyLog,
    pub(super) tree: Tree,
    pool: Pool<P>,
    /// Referenced areas that are still to be searched.
    pending: Option<NodeRef>,
    /// The number of the latest start or early log.
    era: u64,
    /// The number of the latest scan. Does not come again in a lifetime.
    pub(super) scan: u64,
    /// Whether it is searching: what is allocated now may have got the last reference to something.
    searching: bool,
    /// Recorded areas, and their bytes on one CPU.
    pub(super) areas: u64,
    pub(super) bytes: u64,
    /// Areas that were not recorded. While a start adds up what was live before, this may be less.
    pub(super) missed: u64,
    /// Every pointer that was ever recorded lies here, its area's bytes included.
    bounds: Range<usize>,
}

impl<P: Platform> Records<P> {
    pub(super) const fn new() -> Self {
        Self {
            tracking: Tracking::Off,
            early: EarlyLog { calls: [None; EARLY_CALLS], len: 0, lost: 0 },
            tree: Tree::new(),
            pool: Pool::new(),
            pending: None,
            era: 0,
            scan: 0,
            searching: false,
            areas: 0,
            bytes: 0,
            missed: 0,
            bounds: 0..0,
        }
    }

    /// Nodes that are wanted before the tracker can start.
    pub(super) fn early_nodes(&self) -> usize {
        self.early.len
    }

    /// Early calls that found the log full.
    pub(super) fn early_lost(&self) -> u64 {
        self.early.lost
    }

    /// Records what the early log has, and forgets that.
    pub(super) fn replay(&mut self) {
        for n in 0..self.early.len {
            match self.early.calls[n].take() {
                Some(Call::Alloc(area)) => _ = self.record(area),
                Some(Call::Free(pointer, tracked)) => self.forget_freed(pointer, tracked),
                None => {}
            }
        }
        self.early.len = 0;
    }

    /// Begins an era, in which calls are recorded or logged. Returns its number, which is not 0.
    pub(super) fn begin(&mut self, tracking: Tracking) -> u64 {
        self.era += 1;
        (self.tracking, self.missed) = (tracking, 0);
        self.era
    }

    /// Counts the areas that were live when the era began.
    pub(super) fn missed_before(&mut self, live: u64) {
        self.missed = self.missed.wrapping_add(live);
    }

    /// Takes note of an area that was just handed out in the era `era`. Returns whether that was possible.
    pub(super) fn allocated(&mut self, area: Area, era: u64) -> bool {
        if era != self.era {
            // It was live when this era began, or nothing is recorded.
            return true;
        }
        match self.tracking {
            Tracking::On => self.record(area),
            Tracking::Early => {
                self.early.push(Call::Alloc(area));
                true
            }
            Tracking::Off | Tracking::Disabled => true,
        }
    }

    /// Takes note that an area was taken in under a lock whose flag is `tracked`.
    pub(super) fn freed(&mut self, pointer: usize, tracked: bool) {
        match self.tracking {
            Tracking::On => self.forget_freed(pointer, tracked),
            Tracking::Early => self.early.push(Call::Free(pointer, tracked)),
            Tracking::Off | Tracking::Disabled => {}
        }
    }

    fn forget_freed(&mut self, pointer: usize, tracked: bool) {
        if self.forget(pointer) && !tracked {
            // The sum of what was live before will have this free, and does not have the area.
            self.missed = self.missed.wrapping_add(1);
        }
    }

    /// Records an area. A record that is there already is of one that a late free took in, which
    /// found the record of the area before and no other; nobody has that any more.
    fn record(&mut self, area: Area) -> bool {
        self.forget(area.pointer);
        let Some(node) = self.pool.take(&mut self.tree) else {
            self.missed = self.missed.wrapping_add(1);
            return false;
        };
        let (scan, searching) = (self.scan, self.searching);
        let this = self.tree.get_mut(node);
        (this.key, this.size) = (area.pointer, area.size);
        (this.site, this.born_ns) = (Some(area.site), area.born_ns);
        (this.seen, this.newborn) = (scan, true);
        (this.pinned, this.leaked) = (false, false);
        self.tree.insert(node);
        self.areas += 1;
        self.bytes += u64::from(area.size);
        let end = area.pointer.saturating_add(area.size.into());
        if self.bounds.is_empty() {
            self.bounds = area.pointer..end;
        }
        self.bounds.start = self.bounds.start.min(area.pointer);
        self.bounds.end = self.bounds.end.max(end);
        if searching {
            self.push_pending(node);
        }
        true
    }

    /// Forgets the area at `pointer`. Returns whether there was a record of it.
    fn forget(&mut self, pointer: usize) -> bool {
        let Some(node) = self.tree.remove(pointer) else { return false };
        let Node { size, pending, .. } = *self.tree.get(node);
        self.areas -= 1;
        self.bytes -= u64::from(size);
        // A node on the list of pending ones is taken back when it is its turn there.
        if !pending {
            self.pool.put(node, &mut self.tree);
        }
        true
    }

    /// The nodes of a tracker that is not on, and so has no records; to be given back when
    /// interrupts are on.
    pub(super) fn unused_nodes(&mut self) -> Pool<P> {
        match self.tracking {
            Tracking::On => Pool::new(),
            _ => core::mem::replace(&mut self.pool, Pool::new()),
        }
    }

    /// Forgets everything. Returns the nodes, to be given back when interrupts are on.
    pub(super) fn reset(&mut self) -> Pool<P> {
        self.tracking = Tracking::Off;
        (self.early.len, self.early.lost) = (0, 0);
        (self.tree, self.pending) = (Tree::new(), None);
        (self.areas, self.bytes, self.missed) = (0, 0, 0);
        (self.bounds, self.searching) = (0..0, false);
        self.unused_nodes()
    }

    // Nodes.

    pub(super) fn nr_free(&self) -> usize {
        self.pool.nr_free()
    }

    /// Whether another slab is called for.
    pub(super) fn run_short(&self) -> bool {
        self.tracking == Tracking::On && self.nr_free() < pool::LOW
    }

    pub(super) fn node_bytes(&self) -> usize {
        self.pool.bytes()
    }

    pub(super) fn add_nodes(&mut self, slab: NewSlab<P>) {
        self.pool.add(slab, &mut self.tree);
    }

    // Searching.

    /// Begins a scan: no area counts as referenced, those excepted that are pinned. Returns where
    /// pointers to recorded areas are.
    pub(super) fn begin_search(&mut self) -> Range<usize> {
        self.scan += 1;
        self.searching = true;
        self.bounds.clone()
    }

    /// Ends the search for references. What is not marked now has none.
    pub(super) fn end_search(&mut self) {
        self.searching = false;
    }

    /// Marks the area that `pointer` points into, to be searched itself if this is the first
    /// reference to it.
    pub(super) fn refer(&mut self, pointer: usize) {
        let Some(node) = self.tree.floor(pointer) else { return };
        let this = self.tree.get(node);
        if pointer - this.key < this.size.into() && this.seen != self.scan {
            self.mark(node);
        }
    }

    /// Marks an area as referenced, to be searched.
    pub(super) fn mark(&mut self, node: NodeRef) {
        let scan = self.scan;
        let this = self.tree.get_mut(node);
        (this.seen, this.newborn, this.leaked) = (scan, false, false);
        self.push_pending(node);
    }

    fn push_pending(&mut self, node: NodeRef) {
        let next = self.pending;
        let this = self.tree.get_mut(node);
        debug_assert!(!this.pending);
        (this.pending, this.next) = (true, next);
        self.pending = Some(node);
    }

    /// An area that is to be searched: its pointer and size.
    pub(super) fn pop_pending(&mut self) -> Option<(usize, u16)> {
        loop {
            let node = self.pending?;
            let this = self.tree.get_mut(node);
            (this.pending, self.pending) = (false, this.next.take());
            if this.linked {
                return Some((this.key, this.size));
            }
            self.pool.put(node, &mut self.tree);
        }
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use std::boxed::Box;

    use super::*;
    use crate::host::Host;

    fn area(pointer: usize, size: u16, born_ns: u64) -> Area {
        Area { pointer, size, site: Location::caller(), born_ns }
    }

    #[test]
    fn the_next_area_at_a_place_has_the_record_of_one_that_a_late_free_took_in() {
        let mut records = Box::new(Records::<Host>::new());
        records.add_nodes(NewSlab::new().unwrap());
        let era = records.begin(Tracking::On);
        let nodes = records.nr_free();
        assert!(records.allocated(area(64, 16, 1), era));
        records.freed(64, true);
        // The second free of it takes the next area at the place in before that is recorded: it looks
        // here in vain.
        records.freed(64, true);
        assert!(records.allocated(area(64, 16, 2), era));
        assert!(records.allocated(area(64, 32, 3), era));
        assert!(records.allocated(area(96, 8, 4), era));
        assert_eq!((records.areas, records.bytes, records.nr_free()), (2, 40, nodes - 2));
        let node = records.tree.find(64).unwrap();
        assert_eq!((records.tree.get(node).born_ns, records.tree.get(node).size), (3, 32));
        // Also while it waits to be searched.
        records.begin_search();
        records.refer(64);
        assert!(records.allocated(area(64, 24, 5), era));
        assert_eq!(records.pop_pending(), Some((64, 24)));
        assert_eq!(records.pop_pending(), None);
        records.end_search();
        assert_eq!((records.areas, records.bytes, records.nr_free()), (2, 32, nodes - 2));
        records.freed(64, true);
        records.freed(96, true);
        assert_eq!((records.areas, records.bytes, records.nr_free()), (0, 0, nodes));
        assert!(records.tree.ceiling(0).is_none());
    }

    #[test]
    fn frees_are_made_up_for_if_the_sum_of_what_was_live_will_have_them() {
        let mut records = Box::new(Records::<Host>::new());
        records.add_nodes(NewSlab::new().unwrap());
        let era = records.begin(Tracking::On);
        // Handed out under a lock whose flag is set, and freed under one that has its turn later, whose
        // counts are -1 then; another one is live since before, and freed under a lock of either kind.
        assert!(records.allocated(area(64, 16, 1), era));
        records.freed(64, false);
        records.freed(96, false);
        records.freed(128, true);
        records.missed_before(0_u64.wrapping_sub(1));
        assert_eq!((records.areas, records.missed), (0, 0));
        // Of an era that is over nothing is recorded.
        let nodes = records.reset();
        assert!(records.allocated(area(64, 16, 1), era));
        drop(nodes);
        records.add_nodes(NewSlab::new().unwrap());
        let next = records.begin(Tracking::Early);
        assert!(records.allocated(area(64, 16, 1), era) && era != next);
        assert!(records.allocated(area(96, 16, 1), next));
        records.freed(96, false);
        assert!(records.allocated(area(128, 16, 1), next));
        records.replay();
        assert_eq!((records.areas, records.missed), (1, 1));
    }

    #[test]
    fn the_number_of_a_scan_does_not_come_again() {
        let mut records = Box::new(Records::<Host>::new());
        records.add_nodes(NewSlab::new().unwrap());
        let era = records.begin(Tracking::On);
        assert!(records.allocated(area(64, 16, 1), era));
        records.scan = u32::MAX.into();
        records.begin_search();
        records.refer(64);
        assert_eq!(records.pop_pending(), Some((64, 16)), "it was taken as searched");
    }
}
