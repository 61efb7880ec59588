//! A platform in ordinary memory that watches over its contract: what is unpopulated must not be
//! touched, pages go by unmap, flush, free, and nothing that sleeps or prints happens with
//! interrupts masked. Its fallible calls can be made to fail one by one.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::ptr::{NonNull, with_exposed_provenance_mut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[cfg(loom)]
use loom::thread::yield_now;
#[cfg(not(loom))]
use std::thread::yield_now;

use percpu_core::platform::{IrqState, NoMemory, Platform};

use super::scale::INTERPRETED;

const PAGE: usize = 4096;
/// Bytes of pages that are not populated.
const POISON: u8 = 0xdd;
/// Bytes of pages that have just been populated.
const GARBAGE: u8 = 0xa5;
const ARENA: usize = if INTERPRETED || cfg!(loom) { 2 << 20 } else { 32 << 20 };
const ARENA_ALIGN: usize = 1 << 20;

/// A CPU without a cache of freed areas: what the calling thread is unless it says otherwise, so
/// that chunks show each free at once.
pub const NO_CACHE: u32 = u32::MAX;

/// Makes the calling thread use `cpu`'s cache.
pub fn use_cache_of(cpu: u32) {
    CACHE_CPU.with(|it| it.set(cpu));
}

/// What may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Meta,
    Reserve,
    Populate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    Populated { cpu: u32 },
    Unmapped,
    Flushed,
}

/// All memory that is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    pub meta: BTreeMap<usize, Layout>,
    pub reserved: BTreeMap<usize, usize>,
    pub pages: BTreeMap<usize, Page>,
}

pub struct State {
    pub usage: Usage,
    pub log: Vec<String>,
    /// Fallible calls so far.
    pub calls: Vec<Call>,
    /// The call that is to fail, and all behind it if `fail_from_then_on`.
    pub fail_at: Option<usize>,
    pub fail_from_then_on: bool,
    /// What somebody else does while the next request for metadata sleeps.
    pub meanwhile: Option<Box<dyn FnOnce() + Send>>,
    /// Bytes that are left free after each reservation.
    pub gap: usize,
    arena: usize,
    /// Metadata that was freed, under loom, where a late look at it is to be found out.
    quarantine: Vec<(usize, Layout)>,
}

#[derive(Clone)]
pub struct FakeHandle(Arc<Mutex<State>>);

std::thread_local! {
    static STATE: RefCell<Option<FakeHandle>> = const { RefCell::new(None) };
}

#[cfg(not(loom))]
std::thread_local! {
    static IRQ_DEPTH: Cell<usize> = const { Cell::new(0) };
    static CACHE_CPU: Cell<u32> = const { Cell::new(NO_CACHE) };
}

// Loom's threads are coroutines of one thread, which share the platform.
#[cfg(loom)]
loom::thread_local! {
    static IRQ_DEPTH: Cell<usize> = Cell::new(0);
    static CACHE_CPU: Cell<u32> = Cell::new(NO_CACHE);
}

/// A new platform for this thread.
pub fn install() -> FakeHandle {
    let arena = new_arena();
    let usage = Usage { meta: BTreeMap::new(), reserved: BTreeMap::new(), pages: BTreeMap::new() };
    let handle = FakeHandle(Arc::new(Mutex::new(State {
        usage,
        log: Vec::new(),
        calls: Vec::new(),
        fail_at: None,
        fail_from_then_on: false,
        meanwhile: None,
        gap: 0,
        arena,
        quarantine: Vec::new(),
    })));
    handle.adopt();
    handle
}

/// The address of a new arena, or under loom, whose executions must all be alike, of the thread's.
fn new_arena() -> usize {
    let new = || {
        // SAFETY: the size is not 0.
        let arena = unsafe { alloc_zeroed(arena_layout()) };
        assert!(!arena.is_null());
        arena.expose_provenance()
    };
    if !cfg!(loom) {
        return new();
    }
    std::thread_local! {
        static ARENA: std::cell::OnceCell<usize> = const { std::cell::OnceCell::new() };
    }
    ARENA.with(|arena| *arena.get_or_init(new))
}

fn arena_layout() -> Layout {
    Layout::from_size_align(ARENA, ARENA_ALIGN).unwrap()
}

impl FakeHandle {
    /// Makes this the platform of the calling thread.
    pub fn adopt(&self) {
        STATE.with(|state| *state.borrow_mut() = Some(self.clone()));
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn usage(&self) -> Usage {
        self.lock().usage.clone()
    }

    /// Makes the `n`th fallible call from now on fail.
    pub fn fail_nth(&self, n: usize) {
        let mut state = self.lock();
        state.fail_at = Some(state.calls.len() + n);
    }

    /// Makes calls succeed again; returns how many there were since `fail_nth`'s.
    pub fn stop_failing(&self) {
        self.lock().fail_at = None;
    }

    pub fn is_populated(&self, addr: usize) -> bool {
        matches!(self.lock().usage.pages.get(&addr), Some(Page::Populated { .. }))
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if !cfg!(loom) {
            // SAFETY: allocated in `new_arena` with this layout, and the last user is gone.
            unsafe { dealloc(with_exposed_provenance_mut(self.arena), arena_layout()) };
        }
        for (addr, layout) in self.quarantine.drain(..) {
            // SAFETY: freed by `free_meta`, and the last user is gone.
            unsafe { dealloc(with_exposed_provenance_mut(addr), layout) };
        }
    }
}

impl State {
    fn call(&mut self, call: Call) -> Result<(), NoMemory> {
        let n = self.calls.len();
        self.calls.push(call);
        let from_then_on = self.fail_from_then_on;
        match self.fail_at {
            Some(at) if at == n || from_then_on && n > at => Err(NoMemory),
            _ => Ok(()),
        }
    }

    fn is_reserved(&self, addr: usize) -> bool {
        let below = self.usage.reserved.range(..=addr).next_back();
        below.is_some_and(|(&start, &size)| addr < start + size)
    }
}

fn state() -> FakeHandle {
    STATE.with(|state| state.borrow().clone()).expect("the thread has a platform")
}

fn may_sleep(what: &str) {
    assert_eq!(IRQ_DEPTH.with(Cell::get), 0, "{what} with interrupts masked");
}

/// Asserts that the thread may sleep: it holds no short lock.
pub fn assert_may_sleep(what: &str) {
    may_sleep(what);
}

fn bytes(addr: usize, size: usize) -> &'static mut [u8] {
    // SAFETY: a range of the arena that this module has handed out or is about to; tests look at it
    // from one thread at a time while it is not populated.
    unsafe { std::slice::from_raw_parts_mut(with_exposed_provenance_mut(addr), size) }
}

fn page_addresses(addr: usize, pages: usize) -> impl Iterator<Item = usize> {
    (0..pages).map(move |i| addr + i * PAGE)
}

fn assert_poisoned(addr: usize) {
    assert!(
        *bytes(addr, PAGE) == [POISON; PAGE],
        "the page at {addr:#x} was written while it was not populated"
    );
}

pub enum Fake {}

// SAFETY:
// 1. There are no interrupts, and threads stand for CPUs.
// 2. The standard library's allocator promises it.
// 3. and 4. The tables see to it.
// 5. It panics only where a caller has broken its part, which ends the test.
// 6. Nothing is ever run elsewhere.
unsafe impl Platform for Fake {
    fn irq_save() -> IrqState {
        let depth = IRQ_DEPTH.with(Cell::get);
        IRQ_DEPTH.with(|it| it.set(depth + 1));
        IrqState(depth)
    }

    unsafe fn irq_restore(state: IrqState) {
        assert_eq!(IRQ_DEPTH.with(Cell::get), state.0 + 1, "interrupt guards do not nest");
        IRQ_DEPTH.with(|it| it.set(state.0));
    }

    fn is_pinned() -> bool {
        true
    }

    fn preempt_schedule() {}

    fn relax(_spins: u32) {
        yield_now();
    }

    fn yield_now() {
        yield_now();
    }

    fn cache_cpu() -> u32 {
        CACHE_CPU.with(Cell::get)
    }

    /// Under loom all threads are one.
    fn thread_id() -> usize {
        #[cfg(loom)]
        return 0;
        #[cfg(not(loom))]
        IRQ_DEPTH.with(|depth| std::ptr::from_ref(depth).addr())
    }

    fn clock_ns() -> u64 {
        0
    }

    fn alloc_meta(layout: Layout) -> Option<NonNull<u8>> {
        may_sleep("alloc_meta");
        let handle = state();
        let meanwhile = handle.lock().meanwhile.take();
        meanwhile.into_iter().for_each(|meanwhile| meanwhile());
        let mut state = handle.lock();
        state.call(Call::Meta).ok()?;
        assert_ne!(layout.size(), 0);
        // SAFETY: the size is not 0.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        state.usage.meta.insert(ptr.as_ptr().expose_provenance(), layout);
        Some(ptr)
    }

    unsafe fn free_meta(ptr: NonNull<u8>, layout: Layout) {
        may_sleep("free_meta");
        let known = state().lock().usage.meta.remove(&ptr.as_ptr().addr());
        assert_eq!(known, Some(layout), "free_meta of something else");
        #[cfg(loom)]
        {
            percpu_core::model::freed(ptr.as_ptr().addr(), layout.size());
            state().lock().quarantine.push((ptr.as_ptr().addr(), layout));
        }
        #[cfg(not(loom))]
        // SAFETY: allocated above with this layout.
        unsafe {
            dealloc(ptr.as_ptr(), layout)
        };
    }

    fn reserve(size: usize, align: usize) -> Option<usize> {
        may_sleep("reserve");
        assert!(size != 0 && size.is_multiple_of(PAGE));
        assert!(align.is_multiple_of(PAGE) && align.is_power_of_two());
        let handle = state();
        let mut state = handle.lock();
        state.call(Call::Reserve).ok()?;
        let mut addr = state.arena.next_multiple_of(align);
        for (&start, &len) in &state.usage.reserved {
            if addr + size <= start {
                break;
            }
            addr = addr.max((start + len + state.gap).next_multiple_of(align));
        }
        if addr + size > state.arena + ARENA {
            return None;
        }
        bytes(addr, size).fill(POISON);
        state.usage.reserved.insert(addr, size);
        Some(addr)
    }

    unsafe fn release(addr: usize, size: usize) {
        may_sleep("release");
        let handle = state();
        let mut state = handle.lock();
        let known = state.usage.reserved.remove(&addr);
        assert_eq!(known, Some(size), "release of something else");
        let left = state.usage.pages.range(addr..addr + size).next();
        assert_eq!(left, None, "release of a range with pages");
        page_addresses(addr, size / PAGE).for_each(assert_poisoned);
    }

    unsafe fn populate(addr: usize, pages: usize, cpu: u32) -> Result<(), NoMemory> {
        may_sleep("populate");
        let handle = state();
        let mut state = handle.lock();
        state.call(Call::Populate)?;
        assert_ne!(pages, 0);
        for page in page_addresses(addr, pages) {
            assert!(state.is_reserved(page), "populate of {page:#x}, which is not reserved");
            let before = state.usage.pages.insert(page, Page::Populated { cpu });
            assert_eq!(before, None, "populate of {page:#x} twice");
            assert_poisoned(page);
            bytes(page, PAGE).fill(GARBAGE);
        }
        Ok(())
    }

    unsafe fn unmap(addr: usize, pages: usize) {
        may_sleep("unmap");
        let handle = state();
        let mut state = handle.lock();
        for page in page_addresses(addr, pages) {
            let before = state.usage.pages.insert(page, Page::Unmapped);
            assert!(
                matches!(before, Some(Page::Populated { .. })),
                "unmap of {page:#x}: {before:?}"
            );
            bytes(page, PAGE).fill(POISON);
        }
    }

    fn flush_tlb(addr: usize, size: usize) {
        may_sleep("flush_tlb");
        let handle = state();
        let mut state = handle.lock();
        for page in state.usage.pages.range_mut(addr..addr + size).map(|(_, page)| page) {
            if *page == Page::Unmapped {
                *page = Page::Flushed;
            }
        }
    }

    unsafe fn free_pages(addr: usize, pages: usize) {
        may_sleep("free_pages");
        let handle = state();
        let mut state = handle.lock();
        for page in page_addresses(addr, pages) {
            let before = state.usage.pages.remove(&page);
            assert_eq!(before, Some(Page::Flushed), "free of {page:#x} before the flush");
        }
    }

    fn run_on_cpu(_cpu: u32, _f: fn(usize), _arg: usize) {
        unreachable!("an allocator runs nothing elsewhere");
    }

    fn log(args: fmt::Arguments<'_>) {
        may_sleep("log");
        state().lock().log.push(args.to_string());
    }
}
