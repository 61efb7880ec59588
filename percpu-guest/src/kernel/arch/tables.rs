//! Descriptor tables: one IDT for all, a GDT and a TSS for each CPU.

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use crate::abi::{CODE0, CpuTables, MAX_CPUS, TSS_LIMIT};

use super::stubs;

/// Present, 64-bit interrupt gate, callable from ring 3 (for `int3`).
const GATE: u64 = 0xee << 40;
const DOUBLE_FAULT: usize = 8;
/// The double fault's own stack, so that it can be reported when the other one is gone.
const IST1: u64 = 1 << 32;

#[repr(C, align(4096))]
pub(super) struct Idt(UnsafeCell<[[u64; 2]; 256]>);
// SAFETY: written by the boot CPU before any other runs; read by hardware only.
unsafe impl Sync for Idt {}
pub(super) static IDT: Idt = Idt(UnsafeCell::new([[0; 2]; 256]));

#[repr(C)]
pub(super) struct Tables(UnsafeCell<[CpuTables; MAX_CPUS]>);
// SAFETY: an entry is written before its CPU is started, and then read by hardware only; the two
// words that change later are atomics.
unsafe impl Sync for Tables {}
// SAFETY: all-zero bytes are valid integers.
pub(super) static TABLES: Tables = Tables(UnsafeCell::new(unsafe { core::mem::zeroed() }));

/// Address of the interrupt descriptor table.
pub const fn idt() -> *const u8 {
    IDT.0.get().cast()
}

/// Address of the first CPU's tables.
pub const fn first() -> *const u8 {
    TABLES.0.get().cast()
}

fn tables(cpu: u32) -> *mut CpuTables {
    // SAFETY: CPU numbers are below `MAX_CPUS`, so the result stays inside the array.
    unsafe { TABLES.0.get().cast::<CpuTables>().add(cpu as usize) }
}

/// Fills the IDT and every CPU's tables.
///
/// # Safety
///
/// The boot CPU calls it once, first of all.
pub unsafe fn init() {
    let stubs = (&raw const stubs::interrupt_stubs).expose_provenance() as u64;
    for vector in 0..256 {
        let stub = stubs + (vector * stubs::STRIDE) as u64;
        let ist = if vector == DOUBLE_FAULT { IST1 } else { 0 };
        let low =
            (stub & 0xffff) | u64::from(CODE0) << 16 | ist | GATE | (stub >> 16 & 0xffff) << 48;
        // SAFETY: the boot CPU is alone, and `vector` is below 256.
        unsafe { (*IDT.0.get())[vector] = [low, stub >> 32] };
    }
    for cpu in 0..MAX_CPUS as u32 {
        // SAFETY: the boot CPU is alone; no other reference to the tables exists.
        unsafe { fill(&mut *tables(cpu)) };
    }
}

fn fill(t: &mut CpuTables) {
    let base = (&raw const *t).expose_provenance() as u64;
    let tss = base + offset_of!(CpuTables, tss) as u64;
    let rsp0 = base + size_of::<CpuTables>() as u64;
    let ist1 = base + (offset_of!(CpuTables, ist1) + size_of_val(&t.ist1)) as u64;
    t.gdt[1] = 0x00af_9b00_0000_ffff; // ring-0 code
    t.gdt[2] = 0x00cf_9300_0000_ffff; // ring-0 data
    t.gdt[4] = 0x00cf_f300_0000_ffff; // ring-3 data
    t.gdt[5] = 0x00af_fb00_0000_ffff; // ring-3 code
    t.gdt[7] =
        u64::from(TSS_LIMIT) | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
    t.gdt[8] = tss >> 32;
    let mut stack = |word: usize, top: u64| {
        t.tss[word] = top as u32;
        t.tss[word + 1] = (top >> 32) as u32;
    };
    stack(1, rsp0 & !15);
    stack(9, ist1 & !15);
    t.tss[25] = (TSS_LIMIT + 1) << 16; // no I/O map
}

/// Says on which stack and with which GS base `cpu` starts.
///
/// # Safety
///
/// The CPU does not run. The stack is its own, the base is its per-CPU offset.
pub unsafe fn set_start(cpu: u32, rsp: u64, gs_base: u64) {
    let t = tables(cpu);
    // SAFETY: the words are atomics inside a static.
    unsafe {
        (*t).start_rsp.store(rsp, Ordering::Release);
        (*t).gs_base.store(gs_base, Ordering::Release);
    }
    // A reused CPU's TSS is marked busy by the load before; `ltr` wants it free.
    // SAFETY: the CPU does not run, so nothing else reads or writes its GDT.
    unsafe { (*t).gdt[7] &= !(0x02 << 40) };
}

/// The stack and the GS base with which `cpu` starts.
#[cfg(percpu_steps)]
pub fn start_of(cpu: u32) -> (u64, u64) {
    let t = tables(cpu);
    // SAFETY: the words are atomics inside a static.
    unsafe { ((*t).start_rsp.load(Ordering::Acquire), (*t).gs_base.load(Ordering::Acquire)) }
}
