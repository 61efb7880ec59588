//! What there is to say when the guest cannot go on: what happened, and where every CPU stood.
//!
//! Every vCPU is parked first, so that registers and stacks are of one moment and stay.

use percpu_guest::abi::{
    ControlBlock, CpuState, ExceptionFrame, HOST_PART, MAX_CPUS, PanicRecord, SHARED, SharedHeader,
    control_block,
};

use std::mem::offset_of;

use crate::diag::{CpuReport, Registers, Symbols, backtrace, log_tail};
use crate::error::Error;
use crate::image::Image;
use crate::judge::Judge;
use crate::memory::GuestMem;
use crate::plain::plain;
use crate::report;
use crate::vm::{self, Crash, Machine};

/// Names of the exceptions, by vector.
const EXCEPTIONS: [&str; 20] = [
    "divide error",
    "debug exception",
    "non-maskable interrupt",
    "breakpoint",
    "overflow",
    "bound range exceeded",
    "invalid opcode",
    "device not available",
    "double fault",
    "coprocessor segment overrun",
    "invalid TSS",
    "segment not present",
    "stack fault",
    "general protection fault",
    "page fault",
    "reserved",
    "x87 error",
    "alignment check",
    "machine check",
    "SIMD error",
];
const PAGE_FAULT: u64 = 14;
/// Events of each CPU in a report.
const EVENTS_SHOWN: usize = 8;

/// Where it happened.
pub(crate) struct Scene<'a> {
    pub vm: &'a dyn Machine,
    pub mem: &'a GuestMem,
    pub image: &'a Image,
    pub judge: Option<&'a Judge>,
    pub possible: u32,
}

/// The report of a vCPU's crash.
pub(crate) fn report(scene: &Scene<'_>, cpu: u32, crash: &Crash) -> Result<report::Crash, Error> {
    scene.vm.stop();
    let mut context = None;
    let text = match crash {
        Crash::Stuck(time) => {
            let text = format!("CPU {cpu} executes without a step, for {} s now", time.as_secs());
            return Ok(hang(scene, &text, &[cpu]));
        }
        Crash::Panic(record) => match scene.mem.read::<PanicRecord>(*record) {
            Ok(record) => {
                context = Some(Context { rip: None, rbp: record.rbp, registers: None });
                let len = record.len.min(record.message.len() as u64) as usize;
                let message = plain(&String::from_utf8_lossy(&record.message[..len]));
                format!("the guest panicked on CPU {cpu}: {message}")
            }
            Err(wild) => format!("the guest panicked on CPU {cpu}, but {wild}"),
        },
        Crash::Exception(frame) => match scene.mem.read::<ExceptionFrame>(*frame) {
            Ok(frame) => {
                let registers = Registers::from(&frame);
                context = Some(Context {
                    rip: Some(frame.rip),
                    rbp: registers.rbp,
                    registers: Some(registers),
                });
                exception_text(scene, cpu, &frame)
            }
            Err(wild) => format!("an exception stopped CPU {cpu}, but {wild}"),
        },
        Crash::TripleFault => format!("CPU {cpu} triple-faulted"),
        Crash::KvmInternal(suberror) => {
            format!("KVM cannot run CPU {cpu} any further (internal error, suberror {suberror})")
        }
        Crash::StrayAccess { addr, write } => format!(
            "CPU {cpu} {} guest-physical address {addr:#x}, where there is neither memory nor a device",
            if *write { "wrote to" } else { "read from" }
        ),
        Crash::BadDoorbell(value) => {
            format!("CPU {cpu} rang the doorbell with {value:#x}, which means nothing")
        }
        Crash::UnexpectedExit(exit) => format!("CPU {cpu} left the guest unexpectedly: {exit}"),
        Crash::Host(error) => format!("vCPU {cpu} could not be run: {error}"),
    };
    let note = match crash {
        Crash::Panic(_) => "panicked",
        Crash::Exception(_) => "stopped by an exception",
        Crash::TripleFault => "triple-faulted",
        _ => "stopped",
    };
    Ok(report::Crash { text, cpus: all_cpus(scene, &[cpu], note, context.as_ref()) })
}

/// The report of a guest that does not go on.
pub(crate) fn hang(scene: &Scene<'_>, text: &str, cpus: &[u32]) -> report::Crash {
    scene.vm.stop();
    let cpus_report = all_cpus(scene, cpus, "stands still", None);
    let masked: Vec<_> = cpus_report
        .iter()
        .filter(|cpu| cpus.contains(&cpu.cpu) && cpu.masked == Some(true))
        .map(|cpu| cpu.cpu.to_string())
        .collect();
    let mut text = format!("hang: {text}");
    if !masked.is_empty() {
        text += &format!("; interrupts are masked on CPU {}", masked.join(", "));
    }
    report::Crash { text, cpus: cpus_report }
}

/// Every CPU at the end of a run in which an invariant was broken.
pub(crate) fn cpus(scene: &Scene<'_>) -> Vec<CpuReport> {
    scene.vm.stop();
    all_cpus(scene, &[], "", None)
}

fn exception_text(scene: &Scene<'_>, cpu: u32, frame: &ExceptionFrame) -> String {
    let name = EXCEPTIONS.get(frame.vector as usize).unwrap_or(&"unknown exception");
    let mut text =
        format!("{name} (vector {}, error {:#x}) on CPU {cpu}", frame.vector, frame.error);
    if frame.vector == PAGE_FAULT
        && let Some((_, Some(registers))) =
            scene.vm.registers().into_iter().find(|(n, _)| *n == cpu)
    {
        let addr = registers.cr2;
        let what = if frame.error & 2 != 0 { "store to" } else { "load from" };
        text += &format!(": {what} {addr:#x}");
        if (SHARED..SHARED + HOST_PART as u64).contains(&addr) {
            text += ", the host's part of the shared header, which the guest must not write";
        } else if addr < 4096 {
            text += ", in page 0: a null pointer";
        }
    }
    text
}

/// What is known of the CPU that stopped better than its vCPU's registers tell, since those are
/// inside the stub that reports.
struct Context {
    rip: Option<u64>,
    rbp: u64,
    registers: Option<Registers>,
}

fn all_cpus(
    scene: &Scene<'_>,
    marked: &[u32],
    note: &str,
    context: Option<&Context>,
) -> Vec<CpuReport> {
    let symbols = Symbols::load(scene.image.bytes());
    let registers = scene.vm.registers();
    let mut reports: Vec<_> = (0..scene.possible.min(MAX_CPUS as u32))
        .filter_map(|cpu| {
            let state = state_of(scene.mem, cpu);
            let seen = registers.iter().find(|(n, _)| *n == cpu).map(|(_, registers)| registers);
            // A CPU that was never there has nothing to say.
            if seen.is_none() && matches!(state, None | Some(CpuState::Offline)) {
                return None;
            }
            let mut report = CpuReport::new(cpu, state);
            if marked.contains(&cpu) {
                report = report.note(note);
            }
            let own = context.filter(|_| marked.contains(&cpu));
            if let Some(Some(registers)) = seen {
                report = with_registers(scene, report, registers, own, &symbols);
            }
            report.log = log_tail(scene.mem, cpu);
            if let Some(judge) = scene.judge {
                let history = judge.history(cpu);
                let skip = history.len().saturating_sub(EVENTS_SHOWN);
                report = report.events(&history[skip..]);
            }
            Some(report)
        })
        .collect();
    // Those that it is about come first.
    reports.sort_by_key(|report| !marked.contains(&report.cpu));
    reports
}

fn with_registers(
    scene: &Scene<'_>,
    mut report: CpuReport,
    registers: &vm::Registers,
    own: Option<&Context>,
    symbols: &Symbols,
) -> CpuReport {
    let r = &registers.regs;
    let (rip, rbp, rsp) = match own {
        Some(own) => (own.rip.unwrap_or(r.rip), own.rbp, r.rsp),
        None => (r.rip, r.rbp, r.rsp),
    };
    let frames = backtrace(scene.mem, rip, rbp, rsp);
    report.masked = masked(scene.mem, registers.gs_base);
    let shown = own.and_then(|own| own.registers).unwrap_or_else(|| Registers::from(r));
    report.registers(shown).stack(&frames, symbols)
}

/// The CPU's count of masked interrupts, through its own GS base.
fn masked(mem: &GuestMem, gs_base: u64) -> Option<bool> {
    let template = mem.load_u64(SHARED + offset_of!(SharedHeader, irq_masked) as u64).ok()?;
    if template == 0 {
        return None;
    }
    let count: u32 = mem.address_space().read(template.wrapping_add(gs_base)).ok()?;
    Some(count != 0)
}

fn state_of(mem: &GuestMem, cpu: u32) -> Option<CpuState> {
    let state = control_block(cpu) + offset_of!(ControlBlock, state) as u64;
    mem.load_u32(state).ok().and_then(CpuState::from_code)
}
