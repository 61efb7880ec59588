//! A chunk's account of its units: which granules are taken, where areas begin and end, which pages
//! have memory. Linux: `struct pcpu_chunk`.
//!
//! A chunk and its maps are one piece of metadata memory. It never looks at the memory that it
//! gives an account of. It belongs to the allocator's short lock, its [ledger](super::ledger)
//! excepted, with the boundary map and the live map: frees use those without that lock.

use core::alloc::{Layout, LayoutError};
use core::mem::{offset_of, size_of};
use core::ptr::NonNull;
use core::slice;

use super::bitmap::{self, Run};
use super::ledger::Ledger;
use super::slot::Link;
use super::survey::{first_free, survey_block, survey_chunk, whole_run};
use crate::atomic::AtomicU64;
use crate::platform::{NoMemory, Platform};
use crate::view::{BLOCK_GRANULES, BlockView, ChunkView, GRANULE, ListView, PAGE};

const WORD_BITS: usize = u64::BITS as usize;
/// Words of a block's part of the allocation map.
const BLOCK_WORDS: usize = BLOCK_GRANULES as usize / WORD_BITS;

/// A chunk, in the layout of [`ChunkView`].
#[repr(C)]
pub(crate) struct Chunk {
    /// Node in the list of the chunk's slot; first, so that a node's address is its chunk's.
    pub(crate) link: Link,
    pub(crate) base: usize,
    alloc_map: *mut u64,
    bound_map: *const AtomicU64,
    live_map: *const AtomicU64,
    ledger: NonNull<Ledger>,
    blocks: *mut BlockView,
    populated: *mut u64,
    md: BlockView,
    pub(crate) free_bytes: u32,
    pub(crate) start_offset: u32,
    pub(crate) end_offset: u32,
    pub(crate) nr_pages: u32,
    pub(crate) nr_populated: u32,
    pub(crate) nr_empty_pop_pages: u32,
    pub(crate) slot: u32,
    pub(crate) flags: u32,
}

const _: () = {
    macro_rules! same_layout {
        ($ty:ty, $view:ty: $($field:ident)*) => {
            assert!(size_of::<$ty>() == size_of::<$view>());
            $(assert!(offset_of!($ty, $field) == offset_of!($view, $field));)*
        };
    }
    same_layout!(Link, ListView: next prev);
    same_layout!(Chunk, ChunkView: link base alloc_map bound_map live_map ledger blocks populated md free_bytes
        start_offset end_offset nr_pages nr_populated nr_empty_pop_pages slot flags);
};

/// A chunk of an allocator, linked or not. Valid from [`Chunk::create`] to [`Chunk::destroy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkRef(NonNull<Chunk>);

impl ChunkRef {
    pub(crate) fn as_ptr(self) -> *mut Chunk {
        self.0.as_ptr()
    }

    /// The chunk whose list node `link` is.
    ///
    /// # Safety
    ///
    /// The node is a chunk's, not a list's head.
    pub(crate) unsafe fn of_link(link: NonNull<Link>) -> Self {
        Self(link.cast())
    }

    pub(crate) fn link(self) -> NonNull<Link> {
        self.0.cast()
    }
}

/// Why an area cannot be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoArea {
    /// The offset lies in a part that the chunk does not manage.
    Hidden,
    /// The offset lies inside an area.
    Interior,
    /// No area is there.
    Free,
}

/// The maps of a chunk, borrowed one by one.
struct Maps<'a> {
    alloc: &'a mut [u64],
    blocks: &'a mut [BlockView],
    populated: &'a [u64],
    md: &'a mut BlockView,
}

/// Where the maps lie behind the chunk.
struct MapsLayout {
    whole: Layout,
    blocks: usize,
    alloc: usize,
    bound: usize,
    live: usize,
    populated: usize,
    ledger: usize,
}

impl MapsLayout {
    fn new(nr_pages: u32) -> Result<Self, NoMemory> {
        let bits = nr_pages as usize * BLOCK_GRANULES as usize;
        let mut whole = Layout::new::<Chunk>();
        let mut append = |part: Result<Layout, LayoutError>| {
            let (longer, at) = whole.extend(part.map_err(|_| NoMemory)?).map_err(|_| NoMemory)?;
            whole = longer;
            Ok(at)
        };
        let words = |bits: usize| Layout::array::<u64>(bits.div_ceil(WORD_BITS));
        let ledger = append(Ok(Layout::new::<Ledger>()))?;
        let blocks = append(Layout::array::<BlockView>(nr_pages as usize))?;
        let alloc = append(words(bits))?;
        let bound = append(words(bits + 1))?;
        let live = append(words(bits))?;
        let populated = append(words(nr_pages as usize))?;
        Ok(Self { whole, blocks, alloc, bound, live, populated, ledger })
    }
}

impl Chunk {
    /// Makes the account of `nr_pages` pages from `base`, of which `start_offset` bytes at the
    /// beginning and `end_offset` bytes at the end are somebody else's. No page is populated.
    pub(crate) fn create<P: Platform>(
        base: usize,
        nr_pages: u32,
        start_offset: u32,
        end_offset: u32,
    ) -> Result<ChunkRef, NoMemory> {
        let layout = MapsLayout::new(nr_pages)?;
        let memory = P::alloc_meta(layout.whole).ok_or(NoMemory)?;
        // SAFETY: all offsets lie within the layout of which this memory is.
        let (ledger, blocks, alloc_map, bound_map, live_map, populated) = unsafe {
            (
                memory.add(layout.ledger).cast::<Ledger>(),
                memory.add(layout.blocks).cast::<BlockView>().as_ptr(),
                memory.add(layout.alloc).cast::<u64>().as_ptr(),
                memory.add(layout.bound).cast::<AtomicU64>().as_ptr().cast_const(),
                memory.add(layout.live).cast::<AtomicU64>().as_ptr().cast_const(),
                memory.add(layout.populated).cast::<u64>().as_ptr(),
            )
        };
        let nr_bits = nr_pages * BLOCK_GRANULES;
        let chunk = memory.cast::<Chunk>();
        let maps = (bound_map, live_map);
        // SAFETY: the memory is aligned, large enough and unaliased; the maps have these sizes, are
        // zeroed, and live as long as the chunk.
        unsafe {
            ledger.write(Ledger::new(ChunkRef(chunk), base, nr_bits, maps));
            chunk.write(Chunk {
                link: Link::unlinked(),
                base,
                alloc_map,
                bound_map,
                live_map,
                ledger,
                blocks,
                populated,
                md: BlockView::all_free(nr_bits),
                free_bytes: nr_pages * PAGE,
                start_offset,
                end_offset,
                nr_pages,
                nr_populated: 0,
                nr_empty_pop_pages: 0,
                slot: 0,
                flags: 0,
            });
        }
        let this = ChunkRef(chunk);
        // SAFETY: just made, and nobody else knows of it.
        let chunk = unsafe { &mut *this.as_ptr() };
        chunk.maps().blocks.fill(BlockView::all_free(BLOCK_GRANULES));
        if start_offset != 0 {
            let hidden = start_offset / GRANULE;
            chunk.take(Run { start: 0, end: hidden }, hidden);
        }
        if end_offset != 0 {
            let hidden = end_offset / GRANULE;
            chunk.take(Run { start: nr_bits - hidden, end: nr_bits }, hidden);
        }
        Ok(this)
    }

    /// Gives the account's memory back.
    ///
    /// # Safety
    ///
    /// `chunk` came from `create` with the same platform, is on no list and in no index, and is not
    /// used again.
    pub(crate) unsafe fn destroy<P: Platform>(chunk: ChunkRef) {
        // SAFETY: the caller says that the chunk is still there and its alone.
        let nr_pages = unsafe { (*chunk.as_ptr()).nr_pages };
        // SAFETY: as above; the chunk's table of groups is of the same platform.
        unsafe { (*chunk.as_ptr()).areas().groups.release::<P>() };
        if let Ok(layout) = MapsLayout::new(nr_pages) {
            // SAFETY: the same number of pages made the same layout in `create`.
            unsafe { P::free_meta(chunk.0.cast(), layout.whole) };
        }
    }

    /// Bytes of the account of `nr_pages` pages.
    pub(crate) fn account_bytes(nr_pages: u32) -> usize {
        MapsLayout::new(nr_pages).map_or(0, |layout| layout.whole.size())
    }

    /// The areas that somebody holds.
    pub(crate) fn live_areas(&self) -> impl Iterator<Item = Run> + '_ {
        self.areas().live_areas()
    }

    /// Bytes of the table of groups, if there is one.
    pub(crate) fn group_bytes(&self) -> usize {
        self.areas().groups.bytes(self.nr_bits())
    }

    fn nr_bits(&self) -> u32 {
        self.md.nr_bits
    }

    fn maps(&mut self) -> Maps<'_> {
        let (pages, bits) = (self.nr_pages as usize, self.nr_bits() as usize);
        // SAFETY: `create` laid out these four arrays of these lengths one behind the other,
        // zeroed or filled, and they live as long as the chunk. `&mut self` is the only way to
        // them, and they do not overlap the chunk itself.
        unsafe {
            Maps {
                alloc: slice::from_raw_parts_mut(self.alloc_map, bits / WORD_BITS),
                blocks: slice::from_raw_parts_mut(self.blocks, pages),
                populated: slice::from_raw_parts(self.populated, pages.div_ceil(WORD_BITS)),
                md: &mut self.md,
            }
        }
    }

    pub(crate) fn alloc_map(&self) -> &[u64] {
        // SAFETY: as in `maps`, shared for as long as `self` is.
        unsafe { slice::from_raw_parts(self.alloc_map, self.nr_bits() as usize / WORD_BITS) }
    }

    /// The ledger, which whoever asks may keep for as long as the chunk lives.
    #[inline]
    pub(crate) fn ledger(&self) -> NonNull<Ledger> {
        self.ledger
    }

    /// The ledger, for as long as the chunk is borrowed.
    #[inline]
    fn areas(&self) -> &Ledger {
        // SAFETY: written by `create`, never changed, and it lives as long as the chunk.
        unsafe { self.ledger.as_ref() }
    }

    fn blocks(&self) -> &[BlockView] {
        // SAFETY: as in `maps`, shared for as long as `self` is.
        unsafe { slice::from_raw_parts(self.blocks, self.nr_pages as usize) }
    }

    fn populated(&self) -> &[u64] {
        // SAFETY: as in `maps`, shared for as long as `self` is.
        unsafe {
            slice::from_raw_parts(self.populated, (self.nr_pages as usize).div_ceil(WORD_BITS))
        }
    }

    /// Granules of the longest free run.
    pub(crate) fn contig_hint(&self) -> u32 {
        self.md.contig_hint
    }

    /// Whether the chunk has no area and hides nothing.
    pub(crate) fn is_all_free(&self) -> bool {
        self.md.is_all_free()
    }

    pub(crate) fn is_populated(&self, page: u32) -> bool {
        bitmap::is_set(self.populated(), page)
    }

    /// Whether no granule of `page` is taken.
    pub(crate) fn is_free_page(&self, page: u32) -> bool {
        self.blocks()[page as usize].is_all_free()
    }

    /// Finds the first place for `len` granules at an alignment of `align` granules, a power of two
    /// up to a block's; with `populated_only`, on populated pages alone.
    ///
    /// Costs a look at a block's hints for each block from the search's beginning, and at the bits
    /// of those blocks that have room.
    pub(crate) fn find(&self, len: u32, align: u32, populated_only: bool) -> Option<u32> {
        if len > self.md.contig_hint {
            return None;
        }
        let first_block = self.md.search_start(len) / BLOCK_GRANULES;
        // The free run that reaches the end of the block before.
        let mut carry = Run::EMPTY;
        for page in first_block..self.nr_pages {
            let start = page * BLOCK_GRANULES;
            let end = start + BLOCK_GRANULES;
            if populated_only && !self.is_populated(page) {
                carry = Run::EMPTY;
                continue;
            }
            let block = &self.blocks()[page as usize];
            let edge = Run {
                start: if carry.is_empty() { start } else { carry.start },
                end: start + block.left_free,
            };
            if edge.end > edge.start
                && let Some(place) = edge.fit(len, align)
            {
                return Some(place);
            }
            if block.is_all_free() {
                carry = edge;
                continue;
            }
            if block.contig_hint >= len {
                let from = start + block.search_start(len);
                let place = bitmap::find_clear(self.alloc_map(), from, end, len, align);
                if place.is_some() {
                    return place;
                }
            }
            carry = Run { start: end - block.right_free, end };
        }
        None
    }

    /// The free run from `area` on, made longer for up to `count` areas of its length, as far as the
    /// granules are free and have memory like those of `area`.
    pub(crate) fn extend(&self, area: Run, count: u32) -> Run {
        let len = area.len();
        let limit = (area.start + len * count).min(self.nr_bits());
        let mut end = bitmap::next_set(self.alloc_map(), area.end, limit);
        let pages = area.end.div_ceil(BLOCK_GRANULES)..end.div_ceil(BLOCK_GRANULES);
        if let Some(page) = pages.into_iter().find(|&page| !self.is_populated(page)) {
            end = page * BLOCK_GRANULES;
        }
        Run { start: area.start, end: area.start + (end - area.start) / len * len }
    }

    /// Takes the free granules `area` out, and marks them as areas of `len` granules each. Returns
    /// the number of populated pages that were free before.
    pub(crate) fn take(&mut self, area: Run, len: u32) -> u32 {
        let mut no_longer_empty = 0;
        self.free_bytes -= area.len() * GRANULE;
        self.areas().mark(area, len);
        let Maps { alloc, blocks, populated, md } = self.maps();
        debug_assert!(bitmap::next_set(alloc, area.start, area.end) == area.end);
        bitmap::set(alloc, area.start, area.end);
        for (page, part) in parts(area) {
            let block = &mut blocks[page as usize];
            let words = block_words(alloc, page);
            if block.is_all_free() && bitmap::is_set(populated, page) {
                no_longer_empty += 1;
            }
            block.take(
                part,
                || bitmap::next_clear(words, part.end, BLOCK_GRANULES),
                || survey_block(words),
            );
        }
        md.take(area, || first_free(blocks, area.end), || survey_chunk(blocks));
        self.nr_empty_pop_pages -= no_longer_empty;
        no_longer_empty
    }

    /// Takes in the area that begins at byte `offset` of the chunk: from now on it is the caller's,
    /// to be given back or put into a cache.
    pub(crate) fn take_in(&self, offset: u32) -> Result<Run, NoArea> {
        let end = self.nr_pages * PAGE - self.end_offset;
        if offset < self.start_offset || offset >= end {
            return Err(NoArea::Hidden);
        }
        let start = offset / GRANULE;
        if offset.is_multiple_of(GRANULE) && self.areas().take_in(start) {
            return Ok(self.areas().area_at(start));
        }
        let is_taken = bitmap::is_set(self.alloc_map(), start);
        if is_taken && (!offset.is_multiple_of(GRANULE) || !self.areas().is_bound(start)) {
            Err(NoArea::Interior)
        } else {
            Err(NoArea::Free)
        }
    }

    /// Gives `area`, which was taken in, back. Returns the number of populated pages that are free
    /// now and were not before.
    pub(crate) fn give_back(&mut self, area: Run) -> u32 {
        let mut emptied = 0;
        self.free_bytes += area.len() * GRANULE;
        let Maps { alloc, blocks, populated, md } = self.maps();
        bitmap::clear(alloc, area.start, area.end);
        let mut whole = area;
        let mut reaches_edge = false;
        for (page, part) in parts(area) {
            let block = &mut blocks[page as usize];
            let run = whole_run(block, block_words(alloc, page), part);
            block.give_back(run);
            if run.start == 0 || run.end == BLOCK_GRANULES {
                reaches_edge = true;
                emptied += u32::from(block.is_all_free() && bitmap::is_set(populated, page));
            }
            let run = run.shifted(page * BLOCK_GRANULES);
            whole = Run { start: whole.start.min(run.start), end: whole.end.max(run.end) };
        }
        if reaches_edge {
            whole = across_blocks(whole, blocks, md);
        }
        md.give_back(whole);
        self.nr_empty_pop_pages += emptied;
        emptied
    }

    /// Records that the pages `pages` have memory now. Returns how many of them are free.
    pub(crate) fn mark_populated(&mut self, pages: Run) -> u32 {
        let empty = self.free_pages_in(pages);
        // SAFETY: as in `maps`; no other borrow of the map is alive.
        let map = unsafe { slice::from_raw_parts_mut(self.populated, self.populated().len()) };
        bitmap::set(map, pages.start, pages.end);
        self.nr_populated += pages.len();
        self.nr_empty_pop_pages += empty;
        empty
    }

    /// Records that the pages `pages`, populated and free, are about to lose their memory.
    pub(crate) fn mark_unpopulated(&mut self, pages: Run) {
        debug_assert!(self.free_pages_in(pages) == pages.len());
        // SAFETY: as in `maps`; no other borrow of the map is alive.
        let map = unsafe { slice::from_raw_parts_mut(self.populated, self.populated().len()) };
        bitmap::clear(map, pages.start, pages.end);
        self.nr_populated -= pages.len();
        self.nr_empty_pop_pages -= pages.len();
    }

    /// The first run of populated pages that begins at page `from` or later.
    pub(crate) fn next_populated(&self, from: u32) -> Option<Run> {
        self.next_pages(from, |page| self.is_populated(page))
    }

    /// The first run of populated pages, all of them free, that begins at page `from` or later.
    pub(crate) fn next_empty_populated(&self, from: u32) -> Option<Run> {
        self.next_pages(from, |page| self.is_populated(page) && self.is_free_page(page))
    }

    /// The first run of free pages without memory that begins at page `from` or later.
    pub(crate) fn next_unpopulated(&self, from: u32) -> Option<Run> {
        self.next_pages(from, |page| !self.is_populated(page) && self.is_free_page(page))
    }

    fn next_pages(&self, from: u32, wanted: impl Fn(u32) -> bool) -> Option<Run> {
        let start = (from..self.nr_pages).find(|&page| wanted(page))?;
        let end = (start..self.nr_pages).find(|&page| !wanted(page)).unwrap_or(self.nr_pages);
        Some(Run { start, end })
    }

    fn free_pages_in(&self, pages: Run) -> u32 {
        (pages.start..pages.end).filter(|&page| self.is_free_page(page)).count() as u32
    }
}

/// The free run that `run` is part of, which is whole as far as its own blocks go. Where it meets the
/// chunk's longest run, that is the rest of it.
fn across_blocks(mut run: Run, blocks: &[BlockView], md: &BlockView) -> Run {
    let contig = md.contig();
    while run.start.is_multiple_of(BLOCK_GRANULES) && run.start != 0 {
        if run.start == contig.end {
            run.start = contig.start;
            break;
        }
        let right_free = blocks[(run.start / BLOCK_GRANULES) as usize - 1].right_free;
        run.start -= right_free;
        if right_free < BLOCK_GRANULES {
            break;
        }
    }
    while run.end.is_multiple_of(BLOCK_GRANULES) && run.end != md.nr_bits {
        if !contig.is_empty() && run.end == contig.start {
            run.end = contig.end;
            break;
        }
        let left_free = blocks[(run.end / BLOCK_GRANULES) as usize].left_free;
        run.end += left_free;
        if left_free < BLOCK_GRANULES {
            break;
        }
    }
    run
}

/// The blocks that `area` lies in, each with the part of the area that it has, relative to it.
#[inline]
fn parts(area: Run) -> impl Iterator<Item = (u32, Run)> {
    let mut at = area.start;
    core::iter::from_fn(move || {
        if at >= area.end {
            return None;
        }
        let (page, start) = (at / BLOCK_GRANULES, at % BLOCK_GRANULES);
        let len = (area.end - at).min(BLOCK_GRANULES - start);
        at += len;
        Some((page, Run { start, end: start + len }))
    })
}

#[inline]
fn block_words(alloc_map: &[u64], page: u32) -> &[u64] {
    &alloc_map[page as usize * BLOCK_WORDS..][..BLOCK_WORDS]
}
