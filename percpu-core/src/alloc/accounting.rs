//! Who pays for an area: the groups that a kernel accounts memory to. Linux: the memory controller's
//! hooks in `mm/percpu.c` (`pcpu_memcg_pre_alloc_hook`, `obj_exts`).
//!
//! A kernel gives the allocator its [`Accounting`] once. An area of
//! [`alloc_accounted`](Allocator::alloc_accounted) is charged before it is taken, its group is
//! remembered, and whoever frees it, in whatever context, has the group uncharged: exactly once,
//! since of several frees of one area exactly one is accepted.
//!
//! The charge is the area's size, rounded up to granules, times the number of **possible** CPUs,
//! whether they have a unit yet or not: so a CPU that comes up never makes a group pass its limit.
//! Linux adds the size of the slot that remembers the group; here that memory is the chunk's, not
//! the area's, and is not charged.
//!
//! # Implementation
//!
//! A chunk's groups are in a table with a number for each granule, made when the first accounted
//! area of the chunk is allocated; it goes with the chunk. It takes as much as one CPU's unit of the
//! chunk, four bytes for a granule of four: with n CPUs one n-th of what the chunk itself takes, and
//! nothing where nobody is accounted. (A table of accounted areas alone would be smaller while they
//! are few, but would have to grow, which an allocation in atomic context cannot wait for.) All
//! tables have one size, so one that lies ready serves whichever chunk an atomic allocation needs
//! it for.
//!
//! A free looks at the chunk's pointer to its table, which is null as long as nothing in the chunk
//! was ever accounted.

use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::mem;
use core::num::NonZeroU32;
use core::ptr::{self, NonNull};
use core::slice;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use super::ledger::Ledger;
use super::once::Once;
use super::state::Request;
use super::{AllocError, AllocFlags, Allocator};
use crate::platform::{NoMemory, Platform};
use crate::sync::SpinLock;
use crate::var::PerCpuPtr;
use crate::view::GRANULE;

/// A group that memory is accounted to: a number of the kernel's. Linux: `struct obj_cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(NonZeroU32);

impl Group {
    /// The group with this number; `None` for 0.
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number.
    pub const fn number(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A kernel's accounts.
///
/// The allocator holds no lock when it calls, so either may use the allocator; but a charge comes from
/// the context of an allocation and an uncharge from that of a free, either of which may be an interrupt
/// handler's. Either may panic: after a charge that does, nothing was allocated; before an uncharge that
/// does, the area was freed.
pub trait Accounting: Sync {
    /// Charges `bytes` to `group`. Returns false, and charges nothing, if that would pass a limit of
    /// the group's. Linux: `obj_cgroup_charge`.
    fn charge(&self, group: Group, bytes: usize) -> bool;

    /// Takes a charge of `bytes` back. Linux: `obj_cgroup_uncharge`.
    fn uncharge(&self, group: Group, bytes: usize);
}

/// The groups of a chunk's areas, by the granule at which the area begins; 0 where there is none.
/// The numbers follow the header.
#[repr(C)]
pub(crate) struct GroupTable {
    nr_granules: u32,
    groups: [AtomicU32; 0],
}

impl GroupTable {
    fn layout(nr_granules: u32) -> Result<Layout, NoMemory> {
        let groups = Layout::array::<AtomicU32>(nr_granules as usize).map_err(|_| NoMemory)?;
        let (layout, _) = Layout::new::<Self>().extend(groups).map_err(|_| NoMemory)?;
        Ok(layout)
    }
}

/// A table that no chunk has.
struct LooseTable<P: Platform> {
    table: NonNull<GroupTable>,
    platform: PhantomData<fn() -> P>,
}

// SAFETY: the table is this one's alone.
unsafe impl<P: Platform> Send for LooseTable<P> {}

impl<P: Platform> LooseTable<P> {
    /// A table without groups for a chunk of `nr_granules` granules. Sleeps.
    fn new(nr_granules: u32) -> Result<Self, NoMemory> {
        let table = P::alloc_meta(GroupTable::layout(nr_granules)?).ok_or(NoMemory)?;
        let table = table.cast::<GroupTable>();
        // SAFETY: the memory is aligned and large enough for the header, and nobody else's.
        unsafe { (&raw mut (*table.as_ptr()).nr_granules).write(nr_granules) };
        Ok(Self { table, platform: PhantomData })
    }

    fn into_raw(self) -> *mut GroupTable {
        let table = self.table.as_ptr();
        mem::forget(self);
        table
    }
}

impl<P: Platform> Drop for LooseTable<P> {
    fn drop(&mut self) {
        // SAFETY: `new` wrote the number, and nobody else has the table.
        let nr_granules = unsafe { (*self.table.as_ptr()).nr_granules };
        if let Ok(layout) = GroupTable::layout(nr_granules) {
            // SAFETY: the same number made the same layout in `new`.
            unsafe { P::free_meta(self.table.cast(), layout) };
        }
    }
}

/// A chunk's pointer to its table of groups; null as long as it has none.
pub(crate) struct Groups(AtomicPtr<GroupTable>);

impl Groups {
    pub(super) const fn none() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    fn get(&self) -> Option<&[AtomicU32]> {
        let table = NonNull::new(self.0.load(Ordering::Acquire))?.as_ptr();
        // SAFETY: a table that was installed stays until the chunk goes, which this borrow is of.
        // It was allocated with so many numbers behind the header, as zeroes.
        Some(unsafe {
            let groups = (&raw const (*table).groups).cast::<AtomicU32>();
            slice::from_raw_parts(groups, (*table).nr_granules as usize)
        })
    }

    /// Remembers the group of the area that begins at granule `start`, which is the caller's.
    fn set(&self, start: u32, group: Group) {
        if let Some(slot) = self.get().and_then(|groups| groups.get(start as usize)) {
            // Whoever frees the area has its pointer from the caller, and so sees this.
            slot.store(group.number(), Ordering::Relaxed);
        }
    }

    /// Forgets the group of the area that begins at granule `start` and returns it. For the one who
    /// has taken the area in, before somebody else can have it. One load if the chunk has no table.
    #[inline]
    pub(super) fn take(&self, start: u32) -> Option<Group> {
        let slot = self.get()?.get(start as usize)?;
        match slot.load(Ordering::Relaxed) {
            0 => None,
            _ => Group::new(slot.swap(0, Ordering::Relaxed)),
        }
    }

    /// Gives the table's memory back.
    ///
    /// # Safety
    ///
    /// The table was allocated by `P`, and nobody uses the chunk any more.
    pub(super) unsafe fn release<P: Platform>(&self) {
        if let Some(table) = NonNull::new(self.0.swap(ptr::null_mut(), Ordering::Acquire)) {
            drop(LooseTable::<P> { table, platform: PhantomData });
        }
    }
}

/// An area that was freed, and whom it was charged to: to be taken back when no lock is held.
#[must_use]
#[derive(Clone, Copy)]
pub(super) struct Freed {
    pub(super) group: Option<Group>,
    /// Granules.
    pub(super) len: u32,
}

/// An allocator's part in accounting.
pub(super) struct Accounts<P: Platform> {
    hook: Once<&'static dyn Accounting>,
    /// A table for the next chunk that needs one. Tables are installed with this locked.
    spare: SpinLock<Option<LooseTable<P>>, P>,
}

impl<P: Platform> Accounts<P> {
    pub(super) const fn new() -> Self {
        Self { hook: Once::new(), spare: SpinLock::new(None) }
    }

    /// Whether anything is accounted at all.
    pub(super) fn is_on(&self) -> bool {
        self.hook.get().is_some()
    }

    /// Bytes of the table that lies ready.
    pub(super) fn spare_bytes(&self, nr_granules: u32) -> usize {
        self.spare.lock().as_ref().map_or(0, |_| table_bytes(nr_granules))
    }

    /// Sees to it that a table lies ready. Sleeps; without memory it changes nothing.
    pub(super) fn refill(&self, nr_granules: u32) {
        if !self.is_on() || self.spare.lock().is_some() {
            return;
        }
        if let Ok(table) = LooseTable::new(nr_granules) {
            self.put(table);
        }
    }

    fn put(&self, table: LooseTable<P>) {
        let old = self.spare.lock().replace(table);
        // With interrupts on again.
        drop(old);
    }

    /// Sees to it that a chunk of `nr_granules` granules has a table.
    fn equip(&self, groups: &Groups, nr_granules: u32, may_sleep: bool) -> Result<(), NoMemory> {
        loop {
            if groups.get().is_some() {
                return Ok(());
            }
            {
                let mut spare = self.spare.lock();
                if groups.get().is_some() {
                    return Ok(());
                }
                if let Some(table) = spare.take() {
                    groups.0.store(table.into_raw(), Ordering::Release);
                    return Ok(());
                }
            }
            if !may_sleep {
                return Err(NoMemory);
            }
            self.put(LooseTable::new(nr_granules)?);
        }
    }
}

/// Bytes of the table of a chunk of `nr_granules` granules.
fn table_bytes(nr_granules: u32) -> usize {
    GroupTable::layout(nr_granules).map_or(0, |layout| layout.size())
}

impl Groups {
    /// Bytes of the table, of a chunk of `nr_granules` granules.
    pub(super) fn bytes(&self, nr_granules: u32) -> usize {
        self.get().map_or(0, |_| table_bytes(nr_granules))
    }
}

/// What an area of `size` bytes costs its group, with so many possible CPUs. Linux:
/// `pcpu_obj_full_size`.
fn charge(size: usize, cpus: usize) -> usize {
    size.next_multiple_of(GRANULE as usize) * cpus
}

/// A charge that is taken back unless the area comes about.
struct Charged<'a> {
    hook: &'a dyn Accounting,
    group: Group,
    bytes: usize,
}

impl Drop for Charged<'_> {
    fn drop(&mut self) {
        self.hook.uncharge(self.group, self.bytes);
    }
}

impl<P: Platform> Allocator<P> {
    /// Sets who keeps the accounts, for good. Sleeps. Returns whether it was the first to: a second
    /// call changes nothing.
    pub fn set_accounting(&self, hook: &'static dyn Accounting) -> bool {
        let is_first = self.accounts.hook.set(hook).is_ok();
        if let Some(first) = self.first_chunk() {
            self.accounts.refill(first.nr_granules());
        }
        is_first
    }

    /// As [`alloc`](Self::alloc), charged to `group`: the size, rounded up to [`GRANULE`], times the
    /// number of possible CPUs, until it is freed. Linux: `__GFP_ACCOUNT`.
    ///
    /// Without [accounting](Self::set_accounting) nobody is charged. Costs a search for the chunk
    /// more than `alloc`, under the short lock; the first one in a chunk makes the chunk's table of
    /// groups, as large as a unit. The area is freed like any other.
    ///
    /// # Errors
    ///
    /// [`OverLimit`](AllocError::OverLimit) if the charge was refused,
    /// [`NoMemory`](AllocError::NoMemory) also if there is no memory for the table of groups, in
    /// atomic context if none lies ready, and those of `alloc`. Nothing is charged then, and a
    /// refused charge has changed nothing at all.
    #[track_caller]
    pub fn alloc_accounted(
        &self,
        size: usize,
        align: usize,
        flags: AllocFlags,
        group: Group,
    ) -> Result<PerCpuPtr<u8>, AllocError> {
        let (Some(&hook), Some(first)) = (self.accounts.hook.get(), self.first_chunk()) else {
            return self.alloc(size, align, flags);
        };
        if Request::new(size, align).is_err() {
            // Refused and logged there, and nothing is charged.
            return self.alloc(size, align, flags);
        }
        let bytes = charge(size, first.possible_units());
        if !hook.charge(group, bytes) {
            return Err(AllocError::OverLimit);
        }
        let charged = Charged { hook, group, bytes };
        let ptr = self.alloc(size, align, flags)?;
        if let Err(error) = self.remember(ptr, group, first.nr_granules(), flags) {
            // SAFETY: nobody else knows of it yet.
            let freed = unsafe { self.free(ptr) };
            debug_assert!(freed.is_ok(), "the area is live");
            return Err(error.into());
        }
        mem::forget(charged);
        Ok(ptr)
    }

    /// Takes back what an area of `len` granules that has been freed was charged.
    #[cold]
    pub(super) fn uncharge(&self, group: Group, len: u32) {
        if let (Some(hook), Some(first)) = (self.accounts.hook.get(), self.first_chunk()) {
            hook.uncharge(group, charge((len * GRANULE) as usize, first.possible_units()));
        }
    }

    /// Remembers the group of a live area of the caller's.
    fn remember(
        &self,
        ptr: PerCpuPtr<u8>,
        group: Group,
        nr_granules: u32,
        flags: AllocFlags,
    ) -> Result<(), NoMemory> {
        let may_sleep = !flags.contains(AllocFlags::ATOMIC);
        let (ledger, start) =
            self.state.lock().ledger_at(ptr.raw(), &self.index).ok_or(NoMemory)?;
        // SAFETY: the chunk has an area that is the caller's, and so it stays.
        let ledger: &Ledger = unsafe { ledger.as_ref() };
        let equipped = self.accounts.equip(&ledger.groups, nr_granules, may_sleep);
        if may_sleep {
            self.accounts.refill(nr_granules);
        } else if self.accounts.spare.lock().is_none() {
            self.want_balance();
        }
        equipped?;
        ledger.groups.set(start, group);
        Ok(())
    }
}
