//! A guest made by hand: page tables, units, chunks, counters and rings in which everything is as
//! it should be, for tests and fuzzers to spoil.

// Tests use all of it, fuzzers some.
#![cfg_attr(not(test), allow(dead_code))]

pub(crate) mod chunk;

use std::mem::{offset_of, size_of};

use percpu_core::view::{
    AllocatorView, AreasView, BLOCK_GRANULES, BlockView, CHUNK_IMMUTABLE, CHUNK_RESERVED,
    COUNTER_LIVE, CacheView, CachedView, ChunkView, CounterView, GRANULE, ListView, PAGE, Roots,
    VIEW_VERSION, View,
};
use percpu_guest::abi::{
    self, AreaContent, BootParams, CpuState, Event, EventKind, SHARED, Shared, SharedHeader,
    SumKind, pattern_word,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::Judge;
use super::events::ring_address;
use crate::memory::{GuestMem, write_view};
use chunk::{Chunk, metadata};

pub(crate) const CPUS: u32 = 4;
/// Bytes of its memory.
pub(crate) const MEMORY: usize = 48 << 20;
/// Page tables beyond the first three.
const TABLES: u64 = 0x2_0000;
pub(crate) const TEMPLATE: u64 = 0x200_1000;
const STATIC: u32 = 64;
const RESERVED: u32 = 1024;
const HEAP: u64 = 0x210_0000;
pub(crate) const FIRST: u64 = 0x240_0000;
const FRAMES: u64 = 0x260_0000;
const UNIT: u32 = 0x8000;
const PAGES: u32 = UNIT / PAGE;
/// Pages of the first chunk that have memory.
const FIRST_PAGES: u32 = 5;
pub(crate) const DELTA: u64 = FIRST - TEMPLATE;
const SIDELINED: u32 = 14;
const FREE: u32 = 15;
const TO_DEPOPULATE: u32 = 16;

/// Addresses of everything a test may want to spoil.
pub(crate) struct Guest {
    pub(crate) mem: GuestMem,
    tables: u64,
    heap: u64,
    frames: u64,
    seq: u64,
    pub(crate) allocator: u64,
    pub(crate) areas: u64,
    pub(crate) offsets: u64,
    pub(crate) units: u64,
    pub(crate) slots: u64,
    pub(crate) masks: u64,
    pub(crate) batch: u64,
    pub(crate) counter_head: u64,
    pub(crate) counters: Vec<u64>,
    /// Table of caches, and the caches of CPUs 0 and 2.
    pub(crate) cache_table: u64,
    pub(crate) caches: Vec<u64>,
    /// The first chunk, the reserved chunk, and one in mapped space.
    pub(crate) chunks: Vec<Chunk>,
}

impl Guest {
    /// A guest with CPUs 0 and 1 online, areas of all kinds, two counters and a sum, which has
    /// announced all of it.
    pub(crate) fn new() -> Self {
        let regions = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        Self::within(GuestMem::new(regions))
    }

    /// The same, in these [`MEMORY`] bytes, which are zero.
    pub(crate) fn within(mem: GuestMem) -> Self {
        let mut guest = Self {
            mem,
            tables: TABLES,
            heap: HEAP,
            frames: FRAMES,
            seq: 0,
            allocator: 0,
            areas: 0,
            offsets: 0,
            units: 0,
            slots: 0,
            masks: 0,
            batch: 0,
            counter_head: 0,
            counters: Vec::new(),
            cache_table: 0,
            caches: Vec::new(),
            chunks: Vec::new(),
        };
        guest.write_header();
        for page in (0..MEMORY as u64).step_by(2 << 20) {
            guest.map(page, page, true);
        }
        guest.make_chunks();
        guest.write_roots();
        guest.boot();
        guest.populate_heap();
        guest.write_chunks();
        guest
    }

    pub(crate) fn judge(&self) -> Judge {
        Judge::new(self.mem.clone(), CPUS).unwrap()
    }

    /// Writes a value at a virtual address.
    pub(crate) fn poke<T: View>(&self, virt: u64, value: T) {
        let phys = self.mem.translate(virt).unwrap();
        write_view(self.mem.regions(), phys, &value).unwrap();
    }

    /// Changes a value at a virtual address.
    pub(crate) fn change<T: View>(&self, virt: u64, f: impl FnOnce(T) -> T) {
        self.poke(virt, f(self.mem.read_virt(virt).unwrap()));
    }

    /// Address of a CPU's copy.
    pub(crate) fn copy(&self, ptr: u64, cpu: u32) -> u64 {
        ptr + DELTA + u64::from(cpu) * u64::from(UNIT)
    }

    /// Announces something.
    pub(crate) fn emit(&mut self, cpu: u32, kind: EventKind, args: [u64; 5]) {
        self.seq += 1;
        self.write_event(cpu, self.seq, kind as u16, cpu as u16, args);
    }

    /// Writes an event as it is told to.
    pub(crate) fn write_event(&self, ring: u32, seq: u64, kind: u16, cpu: u16, args: [u64; 5]) {
        let ring = ring_address(ring);
        let head = self.mem.load_u64(ring).unwrap();
        let slot = ring
            + offset_of!(abi::EventRing, slots) as u64
            + head % abi::EVENT_RING_LEN as u64 * size_of::<Event>() as u64;
        let event = Event { seq, tsc: 1000 * seq, kind, cpu, thread: 7, args };
        write_view(self.mem.regions(), slot, &event).unwrap();
        self.mem.store_u64(ring, head + 1).unwrap();
    }

    /// Events that it has announced.
    pub(crate) fn events(&self) -> u64 {
        self.seq
    }

    /// The number that the next event will have.
    pub(crate) fn skip_seq(&mut self) {
        self.seq += 1;
    }

    /// Where a field of a CPU's control block lies.
    pub(crate) fn control(&self, cpu: u32, field: usize) -> u64 {
        let block = u64::from(cpu) * size_of::<abi::ControlBlock>() as u64;
        SHARED + offset_of!(Shared, control) as u64 + block + field as u64
    }

    /// Where a ledger entry lies.
    pub(crate) fn ledger(&self, row: u32, slot: u32) -> u64 {
        let at = u64::from(row) * size_of::<abi::LedgerRow>() as u64 + u64::from(slot) * 8;
        SHARED + offset_of!(Shared, ledger) as u64 + at
    }

    /// Where a field of the header lies.
    pub(crate) fn header(&self, field: usize) -> u64 {
        SHARED + field as u64
    }

    /// Maps a page, with tables as needed.
    pub(crate) fn map(&mut self, virt: u64, phys: u64, large: bool) {
        let mut table = abi::PAGE_TABLES;
        let last = if large { 1 } else { 0 };
        for level in (last + 1..4).rev() {
            let entry = table + (virt >> (12 + 9 * level) & 511) * 8;
            let mut next = self.mem.load_u64(entry).unwrap();
            if next == 0 {
                next = self.tables | 7;
                self.tables += 4096;
                self.mem.store_u64(entry, next).unwrap();
            }
            table = next & !0xfff;
        }
        let flags = if large { 0x87 } else { 7 };
        let entry = table + (virt >> (12 + 9 * last) & 511) * 8;
        self.mem.store_u64(entry, if phys == u64::MAX { 0 } else { phys | flags }).unwrap();
    }

    /// Takes a page away.
    pub(crate) fn unmap(&mut self, virt: u64) {
        self.map(virt, u64::MAX, false);
    }

    fn write_header(&mut self) {
        let boot = BootParams {
            seed: 1,
            memory_start: HEAP,
            memory_end: MEMORY as u64,
            test: 0,
            operations: 0,
            tsc_mhz: 1000,
            possible: CPUS,
            boot_cpus: 2,
            boot_mode: 0,
            ring: 3,
            workloads: 0,
            fault: 0,
            tick_us: 1000,
            threads: 2,
            reach_kib: 64,
            bench_rounds: 0,
            bench_us: 0,
            emulated: 0,
            smallest_batch: 32,
            bench_group: 0,
            bench_at_once: 1,
        };
        let header = |field: usize| SHARED + field as u64;
        self.mem.store_u64(header(offset_of!(SharedHeader, magic)), abi::MAGIC).unwrap();
        let version = header(offset_of!(SharedHeader, version));
        self.mem.store_u32(version, abi::ABI_VERSION).unwrap();
        let size = header(offset_of!(SharedHeader, size));
        self.mem.store_u32(size, size_of::<SharedHeader>() as u32).unwrap();
        write_view(self.mem.regions(), header(offset_of!(SharedHeader, boot)), &boot).unwrap();
    }

    fn grab(&mut self, size: usize) -> u64 {
        let at = self.heap;
        self.heap += size.next_multiple_of(64) as u64;
        at
    }

    fn make_chunks(&mut self) {
        let hidden = STATIC + RESERVED;
        let tail = (PAGES - FIRST_PAGES) * PAGE;
        self.make_chunk(FIRST, hidden, tail, CHUNK_IMMUTABLE, FIRST_PAGES);
        let reserved_tail = UNIT - hidden;
        let flags = CHUNK_IMMUTABLE | CHUNK_RESERVED;
        self.make_chunk(FIRST, STATIC, reserved_tail, flags, FIRST_PAGES);
        self.make_chunk(abi::CHUNK_SPACE, 0, 0, 0, 0);
        for page in [0, 1, 3] {
            self.chunks[2].populated[page] = true;
            for cpu in 0..u64::from(CPUS) {
                let at = abi::CHUNK_SPACE + cpu * u64::from(UNIT) + page as u64 * 4096;
                let frame = self.frames;
                self.frames += 4096;
                self.map(at, frame, false);
            }
        }
    }

    fn make_chunk(&mut self, base: u64, start: u32, end: u32, flags: u32, populated: u32) {
        let granules = (PAGES * BLOCK_GRANULES) as usize;
        let zero = BlockView {
            scan_hint: 0,
            scan_hint_start: 0,
            contig_hint: 0,
            contig_hint_start: 0,
            left_free: 0,
            right_free: 0,
            first_free: 0,
            nr_bits: 0,
        };
        let address = self.grab(size_of::<ChunkView>());
        let view = ChunkView {
            link: ListView { next: 0, prev: 0 },
            base,
            alloc_map: self.grab(granules / 8),
            bound_map: self.grab(granules / 8 + 8),
            live_map: self.grab(granules / 8),
            ledger: self.grab(64),
            blocks: self.grab(PAGES as usize * size_of::<BlockView>()),
            populated: self.grab(8),
            md: zero,
            free_bytes: 0,
            start_offset: start,
            end_offset: end,
            nr_pages: PAGES,
            nr_populated: 0,
            nr_empty_pop_pages: 0,
            slot: 0,
            flags,
        };
        let mut chunk = Chunk {
            address,
            base,
            taken: vec![false; granules],
            bound: vec![false; granules + 1],
            live: vec![false; granules],
            populated: (0..PAGES).map(|page| page < populated).collect(),
            flags,
            view,
        };
        let (first, last) = (start / GRANULE, granules as u32 - end / GRANULE);
        if start != 0 {
            chunk.take(0, first);
        }
        if end != 0 {
            chunk.take(last, end / GRANULE);
        }
        self.chunks.push(chunk);
    }

    fn write_roots(&mut self) {
        let words = CPUS as usize * 8;
        (self.offsets, self.units) = (self.grab(words), self.grab(words));
        for cpu in 0..u64::from(CPUS) {
            let unit = cpu * u64::from(UNIT);
            self.poke(self.units + 8 * cpu, unit);
            self.poke(self.offsets + 8 * cpu, unit + DELTA);
        }
        self.slots = self.grab(17 * size_of::<ListView>());
        for slot in 0..17 {
            let head = self.slots + slot * size_of::<ListView>() as u64;
            self.poke(head, ListView { next: head, prev: head });
        }
        self.masks = self.grab(8 * 128);
        // As `Roots::masks` names them.
        let masks = [0b1111u64, 0b1111, 0b0011, 0b0011, 0, 0b1111, 0, 0b0011];
        for (mask, cpus) in masks.into_iter().enumerate() {
            self.poke(self.masks + 128 * mask as u64, cpus);
        }
        self.batch = self.grab(8);
        self.poke(self.batch, 32i32);
        self.counter_head = self.grab(size_of::<ListView>());
        let head = self.counter_head;
        self.poke(head, ListView { next: head, prev: head });
        self.areas = self.grab(size_of::<AreasView>());
        self.allocator = self.grab(size_of::<AllocatorView>());
        let areas = AreasView {
            template: TEMPLATE,
            static_size: STATIC.into(),
            reserved_size: RESERVED.into(),
            dynamic_size: u64::from(FIRST_PAGES * PAGE - STATIC - RESERVED),
            unit_size: UNIT.into(),
            base: FIRST,
            offset: self.offsets,
        };
        self.poke(self.areas, areas);
        let roots = Roots {
            version: VIEW_VERSION,
            nr_cpu_ids: CPUS,
            masks: self.masks,
            mask_size: 128,
            areas: self.areas,
            allocator: self.allocator,
            counters: self.counter_head,
            counter_batch: self.batch,
        };
        self.poke(SHARED + offset_of!(SharedHeader, roots) as u64, roots);
        self.cache_table = self.grab(CPUS as usize * 8);
        self.caches = vec![self.grab(size_of::<CacheView>()), self.grab(size_of::<CacheView>())];
        self.poke(self.cache_table, [self.caches[0], 0, self.caches[1], 0]);
        // The judge reads the unit offsets as soon as the guest has booted.
        self.write_allocator(0);
    }

    fn write_allocator(&self, nr_empty_pop_pages: u32) {
        let allocator = AllocatorView {
            lock: 0,
            reserved: 0,
            slots: self.slots,
            nr_slots: 17,
            sidelined_slot: SIDELINED,
            free_slot: FREE,
            to_depopulate_slot: TO_DEPOPULATE,
            first_chunk: self.chunks[0].address,
            reserved_chunk: self.chunks[1].address,
            unit_size: UNIT.into(),
            unit_offset: self.units,
            delta: DELTA,
            nr_empty_pop_pages,
            nr_chunks: 2,
            caches: self.cache_table,
            nr_caches: CPUS,
            reserved2: 0,
        };
        self.poke(self.allocator, allocator);
    }

    fn boot(&mut self) {
        for cpu in 0..2 {
            let state = CpuState::Online;
            let at = self.control(cpu, offset_of!(abi::ControlBlock, state));
            self.poke(at, state as u32);
            self.emit(cpu, EventKind::CpuChanged, [cpu.into(), state as u64, 0, 0, 0]);
        }
        self.emit(0, EventKind::Booted, [0; 5]);
    }

    /// Areas in all three chunks, two counters, sums among the statics and in an area of their own.
    fn populate_heap(&mut self) {
        let any = [
            (0, 300, 96, 8, AreaContent::Zero),
            (0, 400, 10, 4, AreaContent::Pattern),
            (0, 1020, 64, 16, AreaContent::Pattern),
            // Leaves two free runs of four granules.
            (1, 20, 40, 4, AreaContent::Zero),
            (1, 34, 952, 4, AreaContent::Zero),
            (2, 0, 4096, 4096, AreaContent::Zero),
            (2, 1030, 128, 8, AreaContent::Pattern),
            (2, 3 * 1024, 4, 4, AreaContent::Zero),
        ];
        for (n, (chunk, granule, size, align, content)) in (1u32..).zip(any) {
            self.area(chunk, granule, size, align, content, 0x1234_5678 ^ n);
        }
        self.counter(0, 280, 100, (16, None), 7, &[3, -5, 0, 0]);
        self.counter(2, 1028, -50, (48, Some(3)), -2, &[0, 31, 0, 0]);
        self.sum(TEMPLATE + 8, 2, 11, &[5, 6, 7, u64::MAX]);
        self.chunks[0].hold(290, 4);
        let ptr = self.chunks[0].ptr(290);
        self.sum(ptr, 33, 0, &[1, 0, 0, 0]);
        self.sum(ptr + 8, 34, 0, &[0, 2, 0, 0]);
        self.cached(0, 4, &[(0, 500), (2, 1100)]);
        self.cached(0, 20, &[(2, 1200)]);
        self.cached(1, 4, &[(0, 508)]);
    }

    /// Areas of `len` granules, by chunk and granule, that wait in a cache.
    fn cached(&mut self, cache: usize, len: u32, areas: &[(usize, u32)]) {
        let shelf = if len <= 16 { len as usize - 1 } else { 16 };
        for (chunk, at) in areas {
            self.chunks[*chunk].take(*at, len);
            let chunk = &self.chunks[*chunk];
            let area = CachedView {
                ledger: chunk.view.ledger,
                address: chunk.base + u64::from(at * GRANULE),
            };
            self.change(self.caches[cache], |mut cache: CacheView| {
                cache.held += len;
                let shelf = &mut cache.shelves[shelf];
                shelf.len = len;
                shelf.areas[shelf.count as usize] = area;
                shelf.count += 1;
                cache
            });
        }
    }

    fn area(&mut self, chunk: usize, at: u32, size: u32, align: u32, c: AreaContent, seed: u32) {
        self.chunks[chunk].hold(at, size.div_ceil(GRANULE));
        let ptr = self.chunks[chunk].ptr(at);
        if c == AreaContent::Pattern {
            for cpu in 0..CPUS {
                for word in 0..u64::from(size / 4) {
                    self.poke(self.copy(ptr, cpu) + 4 * word, pattern_word(seed, cpu));
                }
            }
        }
        let args = [ptr, size.into(), align.into(), AreaContent::Zero as u64, 0];
        self.emit(0, EventKind::Alloc, args);
        if c == AreaContent::Pattern {
            self.emit(1, EventKind::Filled, [ptr, 0, 0, c as u64, seed.into()]);
        }
    }

    fn counter(
        &mut self,
        chunk: usize,
        at: u32,
        initial: i64,
        (slot, row): (u32, Option<u32>),
        count: i64,
        locals: &[i32],
    ) {
        self.chunks[chunk].hold(at, 1);
        let ptr = self.chunks[chunk].ptr(at);
        for (cpu, local) in (0..).zip(locals) {
            self.poke(self.copy(ptr, cpu), *local);
        }
        let address = self.grab(size_of::<CounterView>());
        let head = self.counter_head;
        let last: ListView = self.mem.read_virt(head).unwrap();
        let link = ListView { next: head, prev: last.prev };
        let view = CounterView {
            link,
            count,
            locals: ptr,
            lock: 0,
            local_bound: 0,
            sequence: 0,
            magic: COUNTER_LIVE,
            allocated: 1,
            in_use: 1,
            first: address,
        };
        self.poke(address, view);
        self.poke(last.prev, address);
        self.poke(head + 8, address);
        let sum = count + locals.iter().map(|l| i64::from(*l)).sum::<i64>();
        // What was added, in one row or spread over two.
        let row_number = row.unwrap_or(5);
        self.poke(self.ledger(row_number, slot), sum - initial - 1000);
        let other = if row.is_none() { 6 } else { row_number };
        self.change(self.ledger(other, slot), |amount: i64| amount + 1000);
        let row = row.map_or(u64::MAX, u64::from);
        self.emit(0, EventKind::CounterInit, [address, initial as u64, slot.into(), row, 0]);
        self.counters.push(address);
    }

    fn sum(&mut self, ptr: u64, slot: u32, initial: u64, copies: &[u64]) {
        let mut sum = 0u64;
        for (cpu, copy) in (0..).zip(copies) {
            self.poke(self.copy(ptr, cpu), *copy);
            sum = sum.wrapping_add(*copy);
        }
        let mut added = sum.wrapping_sub(initial) as i64;
        if slot < 8 {
            let interrupts = offset_of!(abi::ControlBlock, irq_ledger) + slot as usize * 8;
            self.poke(self.control(1, interrupts), 4i64);
            added -= 4;
        }
        self.poke(self.ledger(1, slot), added);
        let args = [SumKind::Word as u64, ptr, slot.into(), initial, 0];
        self.emit(1, EventKind::SumInit, args);
    }

    /// Writes all chunks with exact metadata and puts them on their lists.
    fn write_chunks(&mut self) {
        let mut empty_in_all = 0;
        for n in 0..self.chunks.len() {
            let mut view = self.chunks[n].view;
            let chunk = &self.chunks[n];
            view.md = metadata(&chunk.taken);
            view.free_bytes = GRANULE * chunk.taken.iter().filter(|t| !**t).count() as u32;
            view.nr_populated = chunk.populated.iter().filter(|p| **p).count() as u32;
            let blocks: Vec<_> = chunk.taken.chunks(BLOCK_GRANULES as usize).collect();
            let empty = |(p, block): &(&bool, &&[bool])| **p && block.iter().all(|taken| !taken);
            view.nr_empty_pop_pages =
                chunk.populated.iter().zip(&blocks).filter(empty).count() as u32;
            let reserved = chunk.flags & CHUNK_RESERVED != 0;
            if !reserved {
                empty_in_all += view.nr_empty_pop_pages;
                // 5 KiB or more are free in each: slot of 4 KiB to 8 KiB, and so on.
                view.slot = (u32::BITS - (chunk.longest_free() * GRANULE).leading_zeros()) - 3;
                let head = self.slots + u64::from(view.slot) * size_of::<ListView>() as u64;
                view.link = self.mem.read_virt(head).unwrap();
                // At the front.
                self.poke(view.link.next + 8, chunk.address);
                self.poke(head, chunk.address);
                view.link.prev = head;
            }
            for (block, taken) in (0u64..).zip(&blocks) {
                self.poke(view.blocks + block * size_of::<BlockView>() as u64, metadata(taken));
            }
            self.poke_bits(view.alloc_map, &chunk.taken);
            self.poke_bits(view.bound_map, &chunk.bound);
            self.poke_bits(view.live_map, &chunk.live);
            self.poke_bits(view.populated, &chunk.populated);
            let link: ListView = view.link;
            self.poke(chunk.address, ChunkView { link, ..view });
            self.chunks[n].view = view;
        }
        self.write_allocator(empty_in_all);
    }

    fn poke_bits(&self, at: u64, bits: &[bool]) {
        for (n, word) in (0u64..).zip(bits.chunks(64)) {
            let word =
                word.iter().enumerate().fold(0u64, |w, (bit, set)| w | u64::from(*set) << bit);
            self.poke(at + 8 * n, word);
        }
    }

    /// Flips a bit of a map.
    pub(crate) fn flip(&self, map: u64, bit: u32) {
        self.change(map + u64::from(bit / 64) * 8, |word: u64| word ^ 1 << (bit % 64));
    }
}
