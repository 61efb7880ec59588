//! The layouts through which another address space reads this crate's structures.
//!
//! A debugger, a crash-dump reader or a hypervisor that judges a guest finds everything from
//! [`Roots`]: the masks, the per-CPU offsets, the allocator's chunks with their bitmaps and block
//! metadata, and the list of counters. All fields are plain integers; a field that holds an
//! address is a `u64` in the address space of the kernel.
//!
//! The structures themselves assert at compile time that their `repr(C)` layout equals the view of
//! the same name, so a view never goes stale.

/// Types of which any bytes make a valid value: integers and `repr(C)` structures of integers.
///
/// # Safety
///
/// Every bit pattern of `size_of::<Self>()` bytes is a valid `Self`, and it has no interior
/// mutability and no pointers.
pub unsafe trait View: Copy + 'static {}

macro_rules! view {
    ($($(#[$m:meta])* pub struct $name:ident { $($(#[$fm:meta])* pub $field:ident: $ty:ty,)* })*) => {$(
        $(#[$m])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$fm])* pub $field: $ty,)* }
        // SAFETY: `repr(C)` of integers and of other views only.
        unsafe impl View for $name {}
    )*};
}

// SAFETY: integers take any bits.
unsafe impl View for u8 {}
// SAFETY: integers take any bits.
unsafe impl View for u16 {}
// SAFETY: integers take any bits.
unsafe impl View for u32 {}
// SAFETY: integers take any bits.
unsafe impl View for u64 {}
// SAFETY: integers take any bits.
unsafe impl View for i32 {}
// SAFETY: integers take any bits.
unsafe impl View for i64 {}
// SAFETY: an array of views is their bytes one after the other.
unsafe impl<T: View, const N: usize> View for [T; N] {}

/// Changes whenever a view changes its layout or its meaning.
pub const VIEW_VERSION: u32 = 4;

/// Granule of the allocation map, in bytes. Linux: `PCPU_MIN_ALLOC_SIZE`.
pub const GRANULE: u32 = 4;
/// Bytes of a page, and of a bitmap block's share of a unit. Linux: `PCPU_BITMAP_BLOCK_SIZE`.
pub const PAGE: u32 = 4096;
/// Granules of a block. Linux: `PCPU_BITMAP_BLOCK_BITS`.
pub const BLOCK_GRANULES: u32 = PAGE / GRANULE;

/// Shelves of a CPU's cache.
pub const CACHE_SHELVES: usize = 32;
/// Set in the address of a cached area that is zero on every CPU.
pub const CACHED_ZERO: u64 = 1;
/// Magic number of a counter that lives.
pub const COUNTER_LIVE: u32 = u32::from_le_bytes(*b"pctr");
/// Areas on a full shelf.
pub const SHELF_DEPTH: usize = 15;

/// The chunk's static part is its own affair and its map is immutable (the first chunk and the
/// reserved chunk are never given back nor depopulated).
pub const CHUNK_IMMUTABLE: u32 = 1 << 0;
/// The chunk is taken out of the slots' order for depopulation. Linux: `isolated`.
pub const CHUNK_ISOLATED: u32 = 1 << 1;
/// The chunk serves reserved allocations only and is on no slot list.
pub const CHUNK_RESERVED: u32 = 1 << 2;
/// The chunk failed a fit and was moved to slot 0 although its hint demands another.
pub const CHUNK_DEMOTED: u32 = 1 << 3;

/// Set in the word of a lazy counter that has become per-CPU.
pub const LAZY_PER_CPU: u64 = 1;

/// In a ref's shared word: it was killed.
pub const REF_DEAD: u64 = 1 << 0;
/// In a ref's shared word: it is in per-CPU mode, so that CPUs may open their words.
pub const REF_PERCPU: u64 = 1 << 1;
/// In a ref's shared word: one reference. All bits from here on are the count.
pub const REF_ONE: u64 = 1 << 2;
/// References that are in the shared count beside the real ones from before the first word may be
/// opened until after the last is closed: always in per-CPU mode.
pub const REF_BIAS: i64 = 1 << 60;
/// What an open word is when its CPU has taken as many references as it has given back. A closed
/// word is negative.
pub const REF_OPEN: i64 = 1 << 62;

/// The count in a ref's shared word.
pub const fn ref_count(shared: u64) -> i64 {
    shared as i64 >> REF_ONE.trailing_zeros()
}

view! {
    /// A node of a circular doubly linked list: addresses of other nodes. An empty list's head
    /// points at itself.
    pub struct ListView {
        /// Address of the next node.
        pub next: u64,
        /// Address of the node before.
        pub prev: u64,
    }

    /// Metadata of a block, or of a whole chunk; all in granules. Linux: `struct pcpu_block_md`.
    pub struct BlockView {
        /// Size of a free run that is known to come before `contig_hint` and to be smaller; 0 if none.
        pub scan_hint: u32,
        /// Start of that run, relative to the block (to the chunk).
        pub scan_hint_start: u32,
        /// Size of the longest free run.
        pub contig_hint: u32,
        /// Its start.
        pub contig_hint_start: u32,
        /// Size of the free run at the left edge.
        pub left_free: u32,
        /// Size of the free run at the right edge.
        pub right_free: u32,
        /// Position of the first free granule; `nr_bits` if there is none.
        pub first_free: u32,
        /// Number of granules.
        pub nr_bits: u32,
    }

    /// A chunk. Linux: `struct pcpu_chunk`.
    pub struct ChunkView {
        /// Node in the list of the chunk's slot; first, so a node's address is its chunk's.
        pub link: ListView,
        /// Address of offset 0 of the chunk in unit space: CPU c's copy of offset `o` lies at
        /// `base + unit_offset[c] + o`.
        pub base: u64,
        /// Address of the allocation map: 64-bit words, bit = granule, set = taken.
        pub alloc_map: u64,
        /// Address of the boundary map: one bit more than `alloc_map`; set where an area starts or
        /// the one before it ends.
        pub bound_map: u64,
        /// Address of the live map: one bit a granule; set where an area starts that somebody holds.
        /// A taken area whose bit is clear is on one CPU's cache shelf.
        pub live_map: u64,
        /// Address of what frees read without the lock; nothing that is not here too.
        pub ledger: u64,
        /// Address of the blocks' metadata: `nr_pages` times [`BlockView`].
        pub blocks: u64,
        /// Address of the populated map: 64-bit words, bit = page.
        pub populated: u64,
        /// Metadata of the chunk as a whole.
        pub md: BlockView,
        /// Free bytes.
        pub free_bytes: u32,
        /// Bytes hidden at the start, not managed by this chunk.
        pub start_offset: u32,
        /// Bytes hidden at the end.
        pub end_offset: u32,
        /// Pages that the maps cover, hidden ones included.
        pub nr_pages: u32,
        /// Pages that are populated.
        pub nr_populated: u32,
        /// Populated pages whose block is wholly free.
        pub nr_empty_pop_pages: u32,
        /// The slot whose list the chunk is on.
        pub slot: u32,
        /// `CHUNK_*` bits.
        pub flags: u32,
    }

    /// The allocator.
    pub struct AllocatorView {
        /// The word of the short lock: not 0 while somebody holds it. First, because the lock
        /// owns all the rest.
        pub lock: u32,
        /// Not used, not even initialised.
        pub reserved: u32,
        /// Address of the list heads, one [`ListView`] a slot.
        pub slots: u64,
        /// Number of slots, the three tail slots included.
        pub nr_slots: u32,
        /// Index of the slot of sidelined chunks.
        pub sidelined_slot: u32,
        /// Index of the slot of wholly free chunks.
        pub free_slot: u32,
        /// Index of the slot of chunks to depopulate.
        pub to_depopulate_slot: u32,
        /// Address of the first chunk ([`ChunkView`]) that serves dynamic allocations.
        pub first_chunk: u64,
        /// Address of the reserved chunk, 0 if there is none.
        pub reserved_chunk: u64,
        /// Bytes of a unit.
        pub unit_size: u64,
        /// Address of `unit_offset[nr_cpu_ids]`, 64 bits each: where a CPU's unit lies in a chunk, or
        /// would lie if it had one; all ones where the CPU is not possible.
        pub unit_offset: u64,
        /// What is subtracted from an address of CPU-offset 0 to make a per-CPU pointer:
        /// `pointer = chunk.base + offset - delta`, `address in CPU c = pointer + offset[c]`.
        pub delta: u64,
        /// Populated empty pages in all chunks that are neither reserved nor isolated.
        pub nr_empty_pop_pages: u32,
        /// Number of chunks, the reserved one not counted.
        pub nr_chunks: u32,
        /// Address of `nr_caches` addresses of [`CacheView`], by CPU number; 0 where a CPU has none.
        pub caches: u64,
        /// Number of entries of that table.
        pub nr_caches: u32,
        /// Not used.
        pub reserved2: u32,
    }

    /// A freed area that waits in a cache.
    pub struct CachedView {
        /// Address of its chunk's ledger.
        pub ledger: u64,
        /// Address of the area in unit space, as [`ChunkView::base`], and [`CACHED_ZERO`].
        pub address: u64,
    }

    /// Freed areas of one size.
    pub struct ShelfView {
        /// Granules of each area; of no meaning if there is none.
        pub len: u32,
        /// Number of areas.
        pub count: u32,
        /// The areas: the first `count` count.
        pub areas: [CachedView; SHELF_DEPTH],
    }

    /// A CPU's cache of freed areas.
    pub struct CacheView {
        /// The word of the cache's lock: not 0 while somebody holds it.
        pub lock: u32,
        /// Not used, not even initialised.
        pub reserved: u32,
        /// Granules of all areas here.
        pub held: u32,
        /// Of no interest.
        pub victim: u32,
        /// Areas ever handed out through this cache.
        pub allocs: u64,
        /// Areas ever taken in through this cache.
        pub frees: u64,
        /// The shelves.
        pub shelves: [ShelfView; CACHE_SHELVES],
    }

    /// The static areas.
    pub struct AreasView {
        /// Address of the template: first byte of the linker's section.
        pub template: u64,
        /// Bytes of the template.
        pub static_size: u64,
        /// Bytes of the first chunk's reserved part.
        pub reserved_size: u64,
        /// Bytes of the first chunk's dynamic part.
        pub dynamic_size: u64,
        /// Bytes of a unit.
        pub unit_size: u64,
        /// Address of the lowest unit.
        pub base: u64,
        /// Address of `per_cpu_offset[nr_cpu_ids]`, 64 bits each; 0 where the CPU has no unit (yet):
        /// no memory is behind its part of any chunk.
        pub offset: u64,
    }

    /// A `percpu_counter`.
    pub struct CounterView {
        /// Node in the list of counters; first, so a node's address is its counter's.
        pub link: ListView,
        /// The shared part.
        pub count: i64,
        /// Per-CPU pointer to the `i32` locals.
        pub locals: u64,
        /// Not 0 while somebody folds.
        pub lock: u32,
        /// Every |local| is smaller than this `i32`, or than max(32, 2 x `nr_cpu_ids`), the largest
        /// batch there can have been. Above that only after `add_batch` or `add_local`.
        pub local_bound: u32,
        /// Odd while a local is being folded: count and locals do not add up then.
        pub sequence: u64,
        /// [`COUNTER_LIVE`] until the counter is destroyed.
        pub magic: u32,
        /// In the first one: how many were made together.
        pub allocated: u16,
        /// In the first one: how many of them were not destroyed yet.
        pub in_use: u16,
        /// Address of the first of the counters that were made together with this one.
        pub first: u64,
    }

    /// A lazy counter.
    pub struct LazyView {
        /// Twice the value; or [`LAZY_PER_CPU`] and, in the other bits, a per-CPU pointer to the `i64`
        /// parts that sum to it.
        pub word: u64,
    }

    /// A `percpu_ref`. The references to it are [`ref_count`] of `shared`, less [`REF_BIAS`] in
    /// per-CPU mode, and what each open word is more than [`REF_OPEN`].
    pub struct RefView {
        /// The shared word.
        pub shared: u64,
        /// Per-CPU pointer to the `i64` words.
        pub words: u64,
    }

    /// Where everything is.
    pub struct Roots {
        /// [`VIEW_VERSION`] of the writer.
        pub version: u32,
        /// One more than the highest possible CPU.
        pub nr_cpu_ids: u32,
        /// Address of the masks: possible, present, online, active, dying, booted-once (CPUs that
        /// have a unit), starting, counted (CPUs whose locals belong to a counter's sum), each
        /// `NR_CPUS / 64` 64-bit words.
        pub masks: u64,
        /// Bytes of one mask.
        pub mask_size: u64,
        /// Address of [`AreasView`].
        pub areas: u64,
        /// Address of [`AllocatorView`].
        pub allocator: u64,
        /// Address of the head ([`ListView`]) of the list of counters.
        pub counters: u64,
        /// Address of the counters' batch, an `i32`.
        pub counter_batch: u64,
    }
}

impl CachedView {
    /// Address of the area in unit space.
    pub const fn area(&self) -> u64 {
        self.address & !CACHED_ZERO
    }

    /// Whether every CPU's copy is zero.
    pub const fn is_zero(&self) -> bool {
        self.address & CACHED_ZERO != 0
    }
}

/// Addresses of everything there is to see. Valid once the per-CPU areas are set up.
pub fn roots() -> Roots {
    use crate::{alloc, area, counter, cpu};

    Roots {
        version: VIEW_VERSION,
        nr_cpu_ids: cpu::nr_cpu_ids() as u32,
        masks: (&raw const cpu::MASKS).expose_provenance() as u64,
        mask_size: size_of::<cpu::CpuMask>() as u64,
        areas: area::view_address() as u64,
        allocator: alloc::global().view_address() as u64,
        counters: counter::head_address() as u64,
        counter_batch: counter::batch_address() as u64,
    }
}
