//! Where CPUs begin: the boot CPU, APs started by the host, APs started by SIPI.

use core::arch::global_asm;
use core::mem::offset_of;

use crate::abi::{
    BootParams, CODE0, CODE3, CpuTables, DATA0, DATA3, DOORBELL, Doorbell, PAGE_TABLES, SHARED,
    SharedHeader, TRAMPOLINE, TSS,
};

pub use super::stubs::irq_continue;
use super::tables;

const BOOT_STACK_SIZE: usize = 64 << 10;

#[repr(C, align(16))]
struct Stack(core::cell::UnsafeCell<[u8; BOOT_STACK_SIZE]>);
// SAFETY: only the boot CPU's first thread uses it, as its stack.
unsafe impl Sync for Stack {}
static BOOT_STACK: Stack = Stack(core::cell::UnsafeCell::new([0; BOOT_STACK_SIZE]));

/// End of the boot CPU's first stack.
pub const fn boot_stack_top() -> *const u8 {
    // SAFETY: one past the end of the array is still a valid address of it.
    unsafe { BOOT_STACK.0.get().cast::<u8>().add(BOOT_STACK_SIZE) }
}

unsafe extern "C" {
    /// First instruction of the boot CPU.
    pub fn _start() -> !;
    /// First 64-bit instruction of an AP in its own ring; rdi = CPU.
    pub fn ap_start() -> !;
    static trampoline_start: u8;
    static trampoline_end: u8;
}

/// Copies the real-mode trampoline to the page that SIPI names.
pub fn install_trampoline() {
    let start = &raw const trampoline_start;
    let len = (&raw const trampoline_end).addr() - start.addr();
    let page = core::ptr::with_exposed_provenance_mut::<u8>(TRAMPOLINE as usize);
    // SAFETY: the page is RAM that the memory map keeps for this, and the code is smaller than it.
    unsafe { core::ptr::copy_nonoverlapping(start, page, len) };
}

global_asm!(
    ".pushsection .text.entry, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "  mov eax, {doorbell}",
    "  mov qword ptr [rax], {hello}",
    "  xor ebp, ebp",
    "  and rsp, -16",
    "  call {boot_main}",
    "  ud2",

    ".globl ap_start",
    "ap_start:",
    "  xor ebp, ebp",
    "  and rsp, -16",
    "  call {ap_main}",
    "  ud2",

    // From real mode to 64-bit mode. Runs as a copy at TRAMPOLINE: every address in it is either
    // absolute or relative to that page.
    ".balign 16",
    ".globl trampoline_start",
    "trampoline_start:",
    ".code16",
    "  cli",
    "  xor ax, ax",
    "  mov ds, ax",
    // lgdt [disp16]: 0f 01 /2.
    "  .byte 0x0f, 0x01, 0x16",
    "  .word {page} + 7f - trampoline_start",
    "  mov eax, 0x10620",                 // PAE OSFXSR OSXMMEXCPT FSGSBASE
    "  mov cr4, eax",
    "  mov eax, {page_tables}",
    "  mov cr3, eax",
    "  mov ecx, 0xc0000080",              // EFER
    "  xor edx, edx",
    "  mov eax, 0x100",                   // LME
    "  wrmsr",
    "  mov eax, 0x80050033",              // PG AM WP NE ET MP PE
    "  mov cr0, eax",
    // Far jump to CODE0: 66 ea off32 sel16.
    "  .byte 0x66, 0xea",
    "  .long {page} + 5f - trampoline_start",
    "  .word {code0}",
    ".code64",
    "5:",
    "  mov eax, {data0}",
    "  mov ss, eax",
    "  mov eax, 0xfee00020",              // LAPIC ID
    "  mov edi, [rax]",
    "  shr edi, 24",
    "  mov edx, edi",
    "  shl rdx, 12",                      // size of CpuTables
    "  movabs rax, offset {tables}",
    "  add rdx, rax",
    "  mov rsp, [rdx + {start_rsp}]",
    "  sub rsp, 16",
    "  mov word ptr [rsp + 6], 127",
    "  mov [rsp + 8], rdx",
    "  lgdt [rsp + 6]",
    "  mov word ptr [rsp + 6], 4095",
    "  movabs rax, offset {idt}",
    "  mov [rsp + 8], rax",
    "  lidt [rsp + 6]",
    "  add rsp, 16",
    "  mov eax, {data3}",
    "  mov ds, eax",
    "  mov es, eax",
    "  mov fs, eax",
    "  mov gs, eax",
    "  mov eax, {tss}",
    "  ltr ax",
    "  mov ecx, 0xc0000101",              // GS base
    "  mov esi, edx",
    "  mov eax, [rdx + {gs_base}]",
    "  mov edx, [rdx + {gs_base} + 4]",
    "  wrmsr",
    "  mov eax, {ring}",
    "  cmp dword ptr [rax], 3",
    "  movabs rax, offset ap_start",
    "  je 6f",
    "  sti",
    "  jmp rax",
    "6:",
    "  mov rsi, rsp",
    "  push {data3}",
    "  push rsi",
    "  push 0x202",
    "  push {code3}",
    "  push rax",
    "  iretq",
    ".balign 8",
    "7:",
    "  .word 23",
    "  .long {page} + 8f - trampoline_start",
    ".balign 8",
    "8:",
    "  .quad 0",
    "  .quad 0x00af9b000000ffff",
    "  .quad 0x00cf93000000ffff",
    ".globl trampoline_end",
    "trampoline_end:",
    ".popsection",
    doorbell = const DOORBELL,
    hello = const Doorbell::Hello as u8,
    boot_main = sym crate::kernel::boot::boot_main,
    ap_main = sym crate::kernel::cpus::ap_main,
    page = const TRAMPOLINE,
    page_tables = const PAGE_TABLES,
    code0 = const CODE0,
    code3 = const CODE3,
    data0 = const DATA0,
    data3 = const DATA3,
    tss = const TSS,
    tables = sym tables::TABLES,
    idt = sym tables::IDT,
    start_rsp = const offset_of!(CpuTables, start_rsp),
    gs_base = const offset_of!(CpuTables, gs_base),
    ring = const SHARED as usize + offset_of!(SharedHeader, boot) + offset_of!(BootParams, ring),
);
