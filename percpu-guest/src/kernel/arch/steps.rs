//! The guest's side of a machine that runs its CPUs one at a time.
//!
//! In a build with `--cfg percpu_steps` the compiler calls one of the functions below before every
//! load and store and on every edge between basic blocks; percpu-core does so before an atomic
//! read-modify-write and before an operation on a per-CPU copy. Each call is one *step*: it counts,
//! and compares with the step at which something is due. Four instructions, no exit. Those of
//! percpu-core are counted once more by themselves, for a schedule that changes at one of them.
//!
//! When that step has come the CPU stops: what a function must keep is saved on its stack, the scheduler
//! ([`turns`](super::turns)) chooses a CPU, and that one's stack and GS base are put in place. When
//! the CPU goes on it takes the interrupts that are pending, as if they had come at this instruction.
//! Nothing else interrupts such a guest: its timer, its IPIs and the host's doorbell are bits in
//! [`IRQ_PENDING`](super::irq::IRQ_PENDING), set while it stands still or by another CPU.
//!
//! They are functions of the C calling convention, so no register needs to be saved for the caller.
//! They are assembly, or they would be instrumented themselves.

use core::arch::global_asm;
use core::mem::offset_of;

use crate::abi::{DOORBELL, Decision, Doorbell, SHARED, SharedHeader, Steps};

use super::irq::{IRQ_MASKED, IRQ_PENDING, irq_replay_all};
use super::turns;

const STEPS: usize = SHARED as usize + offset_of!(SharedHeader, steps);

unsafe extern "C" {
    /// Copies pages for the host, by the guest's own stores: those to page tables must be seen by a
    /// KVM that shadows them. See [`ImageHeader::restore`](crate::abi::ImageHeader::restore).
    pub fn restore_pages() -> !;
    /// Lets others run: `end` is why, a [`StayEnd`](crate::abi::StayEnd). Afterwards it may do
    /// what an interrupt may do.
    #[link_name = "percpu_give_way"]
    pub(super) safe fn give_way(end: u64, argument: u64);
    static percpu_first_instruction: u8;
}

/// Where a CPU begins.
pub(super) fn first_instruction() -> u64 {
    (&raw const percpu_first_instruction).expose_provenance() as u64
}

global_asm!(
    ".pushsection .text.steps, \"ax\", @progbits",
    ".macro step name",
    ".globl \\name",
    "\\name:",
    ".endm",
    ".balign 16",
    "step percpu_step",
    "  mov rax, qword ptr [{points}]",
    "  inc rax",
    "  mov qword ptr [{points}], rax",
    "  cmp rax, qword ptr [{next_point}]",
    "  jae 6f",
    "step __sanitizer_cov_trace_pc_guard",
    "step __sanitizer_cov_load1",
    "step __sanitizer_cov_load2",
    "step __sanitizer_cov_load4",
    "step __sanitizer_cov_load8",
    "step __sanitizer_cov_load16",
    "step __sanitizer_cov_store1",
    "step __sanitizer_cov_store2",
    "step __sanitizer_cov_store4",
    "step __sanitizer_cov_store8",
    "step __sanitizer_cov_store16",
    "  mov rax, qword ptr [{done}]",
    "  inc rax",
    "  mov qword ptr [{done}], rax",
    "  cmp rax, qword ptr [{next}]",
    "  jae 2f",
    "  ret",
    "6:",
    "  inc qword ptr [{done}]",
    "2:",
    "  xor edi, edi",
    "  xor esi, esi",
    // edi = why, rsi = with what argument.
    "step percpu_give_way",
    "  push rbp",
    "  mov rbp, rsp",
    "  call 7f",
    "3:",
    "  cmp dword ptr gs:[rip + {masked}], 0",
    "  jne 4f",
    "  cmp qword ptr gs:[rip + {pending}], 0",
    "  je 4f",
    "  mov dword ptr gs:[rip + {masked}], 1",
    "  call {replay}",
    // Perhaps on another CPU by now, which is as much masked as the one before was.
    "  mov dword ptr gs:[rip + {masked}], 0",
    "  jmp 3b",
    "4:",
    "  pop rbp",
    "  ret",
    // Saves `SavedRegisters`, and returns when this CPU goes on.
    "7:",
    "  push rbp",
    "  mov rbp, rsp",
    "  push rbx",
    "  push r12",
    "  push r13",
    "  push r14",
    "  push r15",
    "  sub rsp, 8",
    "  mov rdx, rsp",
    "  mov rcx, qword ptr [{done}]",
    "  mov r8, qword ptr [{points}]",
    // Steps of the scheduler itself are not to be noticed, nor to count.
    "  mov qword ptr [{next}], -1",
    "  mov qword ptr [{next_point}], -1",
    "  mov rbx, rcx",
    "  mov r12, r8",
    "  call {next_turn}",
    "  mov qword ptr [{done}], rbx",
    "  mov qword ptr [{points}], r12",
    "  mov rcx, qword ptr [rax + {decision_next}]",
    "  mov qword ptr [{next}], rcx",
    "  mov rcx, qword ptr [rax + {decision_point}]",
    "  mov qword ptr [{next_point}], rcx",
    "  mov rcx, qword ptr [rax + {decision_gs}]",
    "  wrgsbase rcx",
    "  mov rsp, qword ptr [rax + {decision_rsp}]",
    "  add rsp, 8",
    "  pop r15",
    "  pop r14",
    "  pop r13",
    "  pop r12",
    "  pop rbx",
    "  pop rbp",
    "  ret",
    // Where a CPU begins; r12 = its number.
    ".globl percpu_first_instruction",
    "percpu_first_instruction:",
    "  mov edi, r12d",
    "  jmp {ap_start}",
    ".globl restore_pages",
    "restore_pages:",
    "  test r12, r12",
    "  jz 5f",
    "  mov rdi, [rbx]",
    "  mov rsi, [rbx + 8]",
    "  mov ecx, 512",
    "  rep movsq",
    "  add rbx, 16",
    "  dec r12",
    "  jmp restore_pages",
    "5:",
    "  mov eax, {doorbell}",
    "  mov qword ptr [rax], {restored}",
    "  jmp 5b",
    // The constructors that the compiler makes for its tables; nobody calls them.
    ".globl __sanitizer_cov_trace_pc_guard_init",
    "__sanitizer_cov_trace_pc_guard_init:",
    ".globl __sanitizer_cov_bool_flag_init",
    "__sanitizer_cov_bool_flag_init:",
    ".globl __sanitizer_cov_pcs_init",
    "__sanitizer_cov_pcs_init:",
    "  ret",
    ".popsection",
    done = const STEPS + offset_of!(Steps, done),
    next = const STEPS + offset_of!(Steps, next),
    points = const STEPS + offset_of!(Steps, points),
    next_point = const STEPS + offset_of!(Steps, next_point),
    doorbell = const DOORBELL,
    restored = const Doorbell::Restored as u8,
    masked = sym IRQ_MASKED,
    pending = sym IRQ_PENDING,
    replay = sym irq_replay_all,
    next_turn = sym turns::next_turn,
    ap_start = sym super::entry::ap_start,
    decision_next = const offset_of!(Decision, next),
    decision_point = const offset_of!(Decision, next_point),
    decision_gs = const offset_of!(Decision, gs_base),
    decision_rsp = const offset_of!(Decision, rsp),
);
