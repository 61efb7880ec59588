//! What the crate needs from the kernel it lives in.
//!
//! A kernel implements [`Platform`] once and names that type with
//! [`set_platform!`](crate::set_platform). Everything that is one per system (the current CPU's
//! variables, the masks, the counters, hotplug) then reaches it through [`Global`]. Structures of
//! which a test wants several, such as the allocator, are generic over the platform.
//!
//! # Implementation
//!
//! `Global` calls `extern "Rust"` functions that `set_platform!` defines, in the manner of the
//! `critical-section` crate: the core needs no generic parameter at each `this_cpu` operation, and
//! a kernel that links with LTO pays nothing for the indirection.

use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;

/// The interrupt state that [`Platform::irq_save`] found, to be given back to
/// [`Platform::irq_restore`]. Its meaning is the platform's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqState(pub usize);

/// No memory could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

impl fmt::Display for NoMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the platform has no memory left")
    }
}

impl core::error::Error for NoMemory {}

/// The services of a kernel.
///
/// Addresses are plain numbers with exposed provenance: whoever hands one out has called
/// `expose_provenance` (or made it out of nothing, as a kernel's page tables do), whoever uses one
/// calls `with_exposed_provenance_mut`.
///
/// # Safety
///
/// The implementor guarantees that
/// 1. between `irq_save` and the matching `irq_restore` no interrupt handler and no other thread
///    runs on this CPU, and the calling thread stays on it; pairs nest, and since guards may be
///    dropped in any order, interrupts stay masked until every `irq_save` was matched, whichever
///    comes last (a count does it);
/// 2. memory from `alloc_meta` is zeroed, aligned, unaliased and stays until `free_meta`;
/// 3. a range from `reserve` overlaps no other use of the address space until `release`, and a
///    page of it that `populate` accepted is readable and writable memory from every CPU until
///    `unmap`;
/// 4. a page given to `free_pages` is reused only after that call, not at `unmap`;
/// 5. no call unwinds whose caller kept its contract: one that cannot go on aborts;
/// 6. `run_on_cpu`, and `offer_to_cpu` if it says so, calls its function once and in no other place than it says, after all that the
///    caller did before, and returns after all that the function did;
/// 7. while [`preempt::count`](crate::preempt::count) of a CPU is not 0 the calling thread stays on
///    it and no other thread runs there: a tick does not switch threads then, and neither does
///    [`yield_now`](Self::yield_now), which code may reach that forgot about its guard.
///
/// The calls that get memory or give it back, from `alloc_meta` to `free_pages`, may come with the
/// allocator's growth lock held. So they must not wait for per-CPU memory: an allocation is
/// [`ATOMIC`](crate::alloc::AllocFlags::ATOMIC) there, and nothing is balanced, reported on or
/// scanned.
pub unsafe trait Platform: Sized + 'static {
    /// Masks interrupts on this CPU and returns the state before.
    ///
    /// On machines where per-CPU operations mask interrupts themselves ([`arch`](crate::arch)) they
    /// end up here: mask first, by the machine's own means, and count by
    /// [`unguarded`](crate::var::PerCpu::unguarded) operations only. The same goes for
    /// [`irq_restore`](Self::irq_restore).
    fn irq_save() -> IrqState;

    /// Returns to the state that the matching [`irq_save`](Self::irq_save) found.
    ///
    /// # Safety
    ///
    /// `state` comes from an `irq_save` of this thread that was not restored yet.
    unsafe fn irq_restore(state: IrqState);

    /// Whether the calling thread stays on its CPU without a
    /// [`PreemptGuard`](crate::preempt::PreemptGuard): interrupts are masked, this is an interrupt
    /// handler, or the thread is bound to its CPU. Asked by debug assertions only. Linux:
    /// `irqs_disabled() || is_percpu_thread()`.
    fn is_pinned() -> bool;

    /// Gives the CPU to another thread, because a reschedule was asked for while preemption was
    /// off and the last guard has just been dropped. Linux: `preempt_schedule`.
    fn preempt_schedule();

    /// Waits a moment in a spin loop that has gone round `spins` times. Linux: `cpu_relax`; a guest
    /// may give its host CPU away when `spins` grows.
    fn relax(spins: u32);

    /// Lets other threads of this CPU run; called in loops that sleep, with preemption and interrupts
    /// on. Where the caller has forgotten a guard it must not switch threads; it had best panic.
    fn yield_now();

    /// The number of the CPU that runs this, or near it: which CPU's cache of freed areas an
    /// allocation uses. Another answer is slower but not wrong.
    #[inline]
    fn cache_cpu() -> u32 {
        crate::cpu::this_cpu_raw()
    }

    /// Returns a number that tells the calling thread from every other one that exists, or 0 if the
    /// platform does not tell. With it the crate finds a thread that would wait for itself, and panics
    /// with a sentence; without it such a thread waits for ever. Linux: the address of `current`.
    fn thread_id() -> usize {
        0
    }

    /// Nanoseconds on a clock that all CPUs share and that never goes back.
    fn clock_ns() -> u64;

    /// Allocates zeroed memory for the crate's own tables. May be called with a sleeping lock
    /// held, never with interrupts masked.
    fn alloc_meta(layout: Layout) -> Option<NonNull<u8>>;

    /// Gives back memory of [`alloc_meta`](Self::alloc_meta).
    ///
    /// # Safety
    ///
    /// `ptr` came from `alloc_meta` with this `layout` and is not used again.
    unsafe fn free_meta(ptr: NonNull<u8>, layout: Layout);

    /// Reserves `size` bytes of address space, aligned to `align`, with nothing behind them.
    /// Both are multiples of the page size.
    fn reserve(size: usize, align: usize) -> Option<usize>;

    /// Gives an address range back.
    ///
    /// # Safety
    ///
    /// `addr` and `size` are of one `reserve`, and none of its pages is populated.
    unsafe fn release(addr: usize, size: usize);

    /// Puts memory behind `pages` pages from `addr`, near `cpu` where the machine has a near and a
    /// far. Contents are arbitrary. All or nothing.
    ///
    /// # Safety
    ///
    /// The pages lie in a reserved range and have nothing behind them.
    unsafe fn populate(addr: usize, pages: usize, cpu: u32) -> Result<(), NoMemory>;

    /// Takes the translation of `pages` pages from `addr` away; the memory itself stays until
    /// [`free_pages`](Self::free_pages). No CPU's TLB is flushed yet.
    ///
    /// # Safety
    ///
    /// The pages are populated and no one uses them.
    unsafe fn unmap(addr: usize, pages: usize);

    /// Makes every CPU that runs on these page tables forget translations of `addr..addr + size`: also
    /// one that is not online, because it is on its way up or down.
    ///
    /// The range goes from the lowest to the highest unit: it may be huge and mostly unmapped, so
    /// where it is longer than some pages flush everything rather than page by page. Called with interrupts and preemption on, or while there is one CPU.
    fn flush_tlb(addr: usize, size: usize);

    /// Gives the memory of pages back that were unmapped and flushed.
    ///
    /// # Safety
    ///
    /// The pages went through `unmap` and `flush_tlb`, in this order.
    unsafe fn free_pages(addr: usize, pages: usize);

    /// Calls `f(arg)` on `cpu`, with interrupts masked, and returns when it has returned; if that is
    /// the CPU that runs this, calls it here. Linux: `smp_call_function_single`.
    ///
    /// `cpu` is online, and kept so by a [`CpusReadGuard`](crate::hotplug::CpusReadGuard), or because
    /// the caller is the thread that brings CPUs up and down. Called with interrupts and preemption
    /// on, by a thread that may wait: two CPUs that call each other at once must answer each other.
    /// `f` is short, waits for no more than a spin lock and does not unwind.
    fn run_on_cpu(cpu: u32, f: fn(usize), arg: usize);

    /// As [`run_on_cpu`](Self::run_on_cpu), for what need not be done: where that would have to wait
    /// for more than an interrupt, it may be left out. Whether it was done.
    fn offer_to_cpu(cpu: u32, f: fn(usize), arg: usize) -> bool {
        Self::run_on_cpu(cpu, f, arg);
        true
    }

    /// The physical address behind `addr`, an address in a populated page; `None` if there is no
    /// memory, or if the platform does not tell, which is what it does unless it says otherwise.
    /// May be called in any context.
    fn phys_of(addr: usize) -> Option<usize> {
        let _ = addr;
        None
    }

    /// Prints one line of the crate's log.
    fn log(args: fmt::Arguments<'_>);
}

/// A platform's functions as a table, through which [`Global`] reaches them.
#[doc(hidden)]
pub struct Table {
    irq_save: fn() -> IrqState,
    irq_restore: unsafe fn(IrqState),
    is_pinned: fn() -> bool,
    preempt_schedule: fn(),
    relax: fn(u32),
    yield_now: fn(),
    cache_cpu: fn() -> u32,
    thread_id: fn() -> usize,
    clock_ns: fn() -> u64,
    alloc_meta: fn(Layout) -> Option<NonNull<u8>>,
    free_meta: unsafe fn(NonNull<u8>, Layout),
    reserve: fn(usize, usize) -> Option<usize>,
    release: unsafe fn(usize, usize),
    populate: unsafe fn(usize, usize, u32) -> Result<(), NoMemory>,
    unmap: unsafe fn(usize, usize),
    flush_tlb: fn(usize, usize),
    free_pages: unsafe fn(usize, usize),
    run_on_cpu: fn(u32, fn(usize), usize),
    offer_to_cpu: fn(u32, fn(usize), usize) -> bool,
    phys_of: fn(usize) -> Option<usize>,
    log: fn(fmt::Arguments<'_>),
}

impl Table {
    /// The functions of `P`.
    pub const fn of<P: Platform>() -> Self {
        Self {
            irq_save: P::irq_save,
            irq_restore: P::irq_restore,
            is_pinned: P::is_pinned,
            preempt_schedule: P::preempt_schedule,
            relax: P::relax,
            yield_now: P::yield_now,
            cache_cpu: P::cache_cpu,
            thread_id: P::thread_id,
            clock_ns: P::clock_ns,
            alloc_meta: P::alloc_meta,
            free_meta: P::free_meta,
            reserve: P::reserve,
            release: P::release,
            populate: P::populate,
            unmap: P::unmap,
            flush_tlb: P::flush_tlb,
            free_pages: P::free_pages,
            run_on_cpu: P::run_on_cpu,
            offer_to_cpu: P::offer_to_cpu,
            phys_of: P::phys_of,
            log: P::log,
        }
    }
}

/// Names the type whose [`Platform`] serves the whole program. To be
/// used exactly once; the linker reports both a missing and a second one.
#[macro_export]
macro_rules! set_platform {
    ($platform:ty) => {
        const _: () = {
            // SAFETY: the name is this crate's own, and the linker sees to it that it is unique.
            #[cfg(not(miri))]
            #[unsafe(no_mangle)]
            static PERCPU_CORE_PLATFORM: $crate::platform::Table =
                $crate::platform::Table::of::<$platform>();

            // SAFETY: as above. Miri links functions, but not statics.
            #[cfg(miri)]
            #[unsafe(no_mangle)]
            fn percpu_core_platform() -> &'static $crate::platform::Table {
                static TABLE: $crate::platform::Table = $crate::platform::Table::of::<$platform>();
                &TABLE
            }
        };
    };
}

#[cfg(not(feature = "host"))]
unsafe extern "Rust" {
    /// Defined by [`set_platform!`](crate::set_platform).
    #[cfg(not(miri))]
    safe static PERCPU_CORE_PLATFORM: Table;
    /// Likewise.
    #[cfg(miri)]
    safe fn percpu_core_platform() -> &'static Table;
}

/// Not by the symbol, for which a plugin's copy of the crate would get the table of a program that
/// exports its own (`-rdynamic`).
#[cfg(feature = "host")]
#[inline(always)]
fn table() -> &'static Table {
    const TABLE: &Table = &Table::of::<crate::host::Host>();
    TABLE
}

#[cfg(not(feature = "host"))]
#[inline(always)]
fn table() -> &'static Table {
    #[cfg(not(miri))]
    return &PERCPU_CORE_PLATFORM;
    #[cfg(miri)]
    return percpu_core_platform();
}

/// The platform that [`set_platform!`](crate::set_platform) named.
#[derive(Clone, Copy, Debug)]
pub struct Global;

// SAFETY: each call goes to the type that `set_platform!` was given, whose `unsafe impl Platform`
// made the promises.
unsafe impl Platform for Global {
    #[inline]
    fn irq_save() -> IrqState {
        (table().irq_save)()
    }

    #[inline]
    unsafe fn irq_restore(state: IrqState) {
        // SAFETY: the caller keeps the trait's contract, passed on as it is.
        unsafe { (table().irq_restore)(state) }
    }

    fn is_pinned() -> bool {
        (table().is_pinned)()
    }

    #[inline]
    fn preempt_schedule() {
        (table().preempt_schedule)()
    }

    #[inline]
    fn relax(spins: u32) {
        (table().relax)(spins)
    }

    #[inline]
    fn yield_now() {
        (table().yield_now)()
    }

    #[inline]
    fn cache_cpu() -> u32 {
        (table().cache_cpu)()
    }

    #[inline]
    fn thread_id() -> usize {
        (table().thread_id)()
    }

    #[inline]
    fn clock_ns() -> u64 {
        (table().clock_ns)()
    }

    fn alloc_meta(layout: Layout) -> Option<NonNull<u8>> {
        (table().alloc_meta)(layout)
    }

    unsafe fn free_meta(ptr: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller keeps the trait's contract, passed on as it is.
        unsafe { (table().free_meta)(ptr, layout) }
    }

    fn reserve(size: usize, align: usize) -> Option<usize> {
        (table().reserve)(size, align)
    }

    unsafe fn release(addr: usize, size: usize) {
        // SAFETY: the caller keeps the trait's contract, passed on as it is.
        unsafe { (table().release)(addr, size) }
    }

    unsafe fn populate(addr: usize, pages: usize, cpu: u32) -> Result<(), NoMemory> {
        // SAFETY: the caller keeps the trait's contract, passed on as it is.
        unsafe { (table().populate)(addr, pages, cpu) }
    }

    unsafe fn unmap(addr: usize, pages: usize) {
        // SAFETY: the caller keeps the trait's contract, passed on as it is.
        unsafe { (table().unmap)(addr, pages) }
    }

    fn flush_tlb(addr: usize, size: usize) {
        (table().flush_tlb)(addr, size)
    }

    unsafe fn free_pages(addr: usize, pages: usize) {
        // SAFETY: the caller keeps the trait's contract, passed on as it is.
        unsafe { (table().free_pages)(addr, pages) }
    }

    fn run_on_cpu(cpu: u32, f: fn(usize), arg: usize) {
        (table().run_on_cpu)(cpu, f, arg)
    }

    fn offer_to_cpu(cpu: u32, f: fn(usize), arg: usize) -> bool {
        (table().offer_to_cpu)(cpu, f, arg)
    }

    fn phys_of(addr: usize) -> Option<usize> {
        (table().phys_of)(addr)
    }

    fn log(args: fmt::Arguments<'_>) {
        (table().log)(args)
    }
}
