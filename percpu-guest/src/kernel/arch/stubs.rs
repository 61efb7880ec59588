//! Ring-0 entry of interrupts, exceptions and service calls.
//!
//! An interrupt's stub does little: it acknowledges, and then either notes the vector as pending
//! (interrupts are masked) or masks interrupts and lets the interrupted thread continue in
//! `irq_continue`, at the thread's own privilege level and on its own stack, as a signal handler
//! would. That frame is the same in both rings and is left without `iretq`:
//!
//! ```text
//!   old rsp - RED_ZONE -> +--------------+
//!                         | rip          |   popped by the final `ret`
//!                         | rbp          | <- rbp: a frame like any other to who walks the stack
//!                         | rflags       |
//!                         | vector       | <- rsp at irq_continue
//! ```
//!
//! Stubs touch no register they do not restore and no memory but the stack, the per-CPU flags and
//! the LAPIC.

use core::arch::global_asm;

use super::irq::{IRQ_MASKED, IRQ_PENDING, irq_dispatch, irq_replay_all};
use crate::abi::{DOORBELL, Doorbell};

/// Bytes below the stack pointer that a leaf function may use: none on a bare-metal target, 128
/// where the kernel was built for the host's own.
#[cfg(target_os = "none")]
const RED_ZONE: usize = 0;
#[cfg(not(target_os = "none"))]
const RED_ZONE: usize = 128;

/// Bytes of vector state to save around a handler.
#[cfg(target_os = "none")]
const VECTOR_STATE: usize = 0;
#[cfg(not(target_os = "none"))]
const VECTOR_STATE: usize = 512;

/// Bytes from one entry stub to the next.
pub const STRIDE: usize = 16;

unsafe extern "C" {
    /// The first of 256 entry stubs, [`STRIDE`] bytes each.
    pub static interrupt_stubs: u8;
    /// Where an interrupted thread goes on, on the frame described above.
    pub fn irq_continue() -> !;
}

// Entry stubs: the vector and, where the CPU pushes none, an error code of 0 for exceptions. In the
// other syntax, because there an assembler's symbol is told from a memory operand.
global_asm!(
    ".pushsection .text.stubs, \"ax\", @progbits",
    ".balign 16",
    ".globl interrupt_stubs",
    "interrupt_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if vector == 3",
    "  jmp service_stub",
    ".elseif vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30",
    "  pushq $vector",
    "  jmp exception_stub",
    ".elseif vector < 32",
    "  pushq $0",
    "  pushq $vector",
    "  jmp exception_stub",
    ".else",
    "  pushq $vector",
    "  jmp irq_stub",
    ".endif",
    ".set vector, vector + 1",
    ".endr",
    ".popsection",
    options(att_syntax),
);

global_asm!(
    ".pushsection .text.stubs, \"ax\", @progbits",
    // [rsp] = vector, rip, cs, rflags, rsp, ss
    ".balign 16",
    "irq_stub:",
    "  push rax",
    "  push rcx",
    "  push rdx",
    "  mov eax, {eoi}",
    "  mov dword ptr [rax], 0",
    "  mov rcx, [rsp + 24]",              // vector
    "  cmp dword ptr gs:[rip + {masked}], 0",
    "  jne 2f",
    "  mov dword ptr gs:[rip + {masked}], 1",
    // Build the frame on the interrupted stack. In ring 0 it overlaps what the CPU pushed, which
    // is therefore in registers by then; the saved registers lie below it.
    "  mov rax, [rsp + 56]",              // old rsp
    "  sub rax, {red_zone} + 32",
    "  mov rdx, [rsp + 48]",              // rflags
    "  test byte ptr [rsp + 40], 3",      // cs
    "  jz 1f",
    "  mov [rax], rcx",
    "  mov [rax + 8], rdx",
    "  mov [rax + 16], rbp",
    "  mov rcx, [rsp + 32]",              // rip
    "  mov [rax + 24], rcx",
    "  lea rcx, [rip + irq_continue]",
    "  mov [rsp + 32], rcx",
    "  mov [rsp + 56], rax",
    "  pop rdx",
    "  pop rcx",
    "  pop rax",
    "  add rsp, 8",
    "  iretq",
    "1:",
    "  push [rsp + 32]",                  // rip, out of the way of the frame
    "  mov [rax], rcx",
    "  mov [rax + 8], rdx",
    "  mov [rax + 16], rbp",
    "  pop qword ptr [rax + 24]",
    "  mov [rsp + 24], rax",              // in place of the vector: popped into rsp
    "  pop rdx",
    "  pop rcx",
    "  pop rax",
    "  sti",
    "  pop rsp",
    "  jmp irq_continue",
    "2:",
    "  sub ecx, 0x40",
    "  mov eax, 1",
    "  shl rax, cl",
    "  or qword ptr gs:[rip + {pending}], rax",
    "  pop rdx",
    "  pop rcx",
    "  pop rax",
    "  add rsp, 8",
    "  iretq",

    // In the interrupted thread's ring and on its stack, interrupts masked.
    ".balign 16",
    ".globl irq_continue",
    "irq_continue:",
    "  lea rbp, [rsp + 16]",
    "  push rax",
    "  push rcx",
    "  push rdx",
    "  push rsi",
    "  push rdi",
    "  push r8",
    "  push r9",
    "  push r10",
    "  push r11",
    "  mov edi, [rbp - 16]",
    "  and rsp, -16",
    ".if {vector_state}",
    "  sub rsp, {vector_state}",
    "  fxsave64 [rsp]",
    ".endif",
    "  cld",
    "  call {dispatch}",
    "3:",
    "  mov dword ptr gs:[rip + {masked}], 0",
    // What came while interrupts were masked is handled before the thread goes on.
    "  cmp qword ptr gs:[rip + {pending}], 0",
    "  je 4f",
    "  mov dword ptr gs:[rip + {masked}], 1",
    "  call {replay}",
    "  jmp 3b",
    "4:",
    ".if {vector_state}",
    "  fxrstor64 [rsp]",
    ".endif",
    "  lea rsp, [rbp - 88]",
    "  pop r11",
    "  pop r10",
    "  pop r9",
    "  pop r8",
    "  pop rdi",
    "  pop rsi",
    "  pop rdx",
    "  pop rcx",
    "  pop rax",
    "  add rsp, 8",
    "  popfq",
    "  pop rbp",
    ".if {red_zone}",
    "  ret {red_zone}",
    ".else",
    "  ret",
    ".endif",
    ".globl irq_continue_end",
    "irq_continue_end:",

    // From ring 3 by `int3`.
    ".balign 16",
    "service_stub:",
    "  call service",
    "  iretq",

    // In ring 0, real interrupts off: eax says which service, rdi is its argument and may change.
    ".balign 16",
    ".globl service",
    "service:",
    "  test eax, eax",
    "  jnz 5f",
    // Idle. No interrupt can come between the look and the halt.
    "  cmp qword ptr gs:[rip + {pending}], 0",
    "  jne 6f",
    "  sti",
    "  hlt",
    "  cli",
    "6:",
    "  ret",
    "5:",
    "  cmp eax, 1",
    "  jne 8f",
    "  mov rdi, cr3",
    "  mov cr3, rdi",
    "  ret",
    // A triple fault: an interrupt table without entries.
    "8:",
    "  push 0",
    "  push 0",
    "  lidt [rsp]",
    "  ud2",

    // [rsp] = vector, error, rip, cs, rflags, rsp, ss: the rest of an ExceptionFrame goes below.
    ".balign 16",
    "exception_stub:",
    "  push r15",
    "  push r14",
    "  push r13",
    "  push r12",
    "  push r11",
    "  push r10",
    "  push r9",
    "  push r8",
    "  push rbp",
    "  push rdi",
    "  push rsi",
    "  push rdx",
    "  push rcx",
    "  push rbx",
    "  push rax",
    "  mov rax, rsp",
    "  shl rax, 8",
    "  or rax, {exception}",
    "  mov ecx, {doorbell}",
    "  mov [rcx], rax",
    "1:",
    "  cli",
    "  hlt",
    "  jmp 1b",
    ".popsection",
    eoi = const super::lapic::EOI,
    masked = sym IRQ_MASKED,
    pending = sym IRQ_PENDING,
    dispatch = sym irq_dispatch,
    replay = sym irq_replay_all,
    red_zone = const RED_ZONE,
    vector_state = const VECTOR_STATE,
    exception = const Doorbell::Exception as u8,
    doorbell = const DOORBELL,
);
