//! One CPU's part of a crash or hang report.

use std::fmt;

use kvm_bindings::kvm_regs;
use percpu_guest::abi::{CpuState, Event, ExceptionFrame};
use serde::{Deserialize, Serialize};

use super::{Frame, Symbols};
use crate::judge::EventLine;

/// General registers of a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

impl From<&kvm_regs> for Registers {
    fn from(r: &kvm_regs) -> Self {
        Self {
            rax: r.rax,
            rbx: r.rbx,
            rcx: r.rcx,
            rdx: r.rdx,
            rsi: r.rsi,
            rdi: r.rdi,
            rbp: r.rbp,
            rsp: r.rsp,
            r8: r.r8,
            r9: r.r9,
            r10: r.r10,
            r11: r.r11,
            r12: r.r12,
            r13: r.r13,
            r14: r.r14,
            r15: r.r15,
            rip: r.rip,
            rflags: r.rflags,
        }
    }
}

impl From<&ExceptionFrame> for Registers {
    fn from(frame: &ExceptionFrame) -> Self {
        let [rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15] = frame.gpr;
        let ExceptionFrame { rip, rflags, rsp, .. } = *frame;
        Self {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rbp,
            rsp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        }
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self;
        writeln!(
            f,
            "rip {:016x}  rsp {:016x}  rbp {:016x}  rfl {:016x}",
            r.rip, r.rsp, r.rbp, r.rflags
        )?;
        writeln!(
            f,
            "rax {:016x}  rbx {:016x}  rcx {:016x}  rdx {:016x}",
            r.rax, r.rbx, r.rcx, r.rdx
        )?;
        writeln!(
            f,
            "rsi {:016x}  rdi {:016x}  r8  {:016x}  r9  {:016x}",
            r.rsi, r.rdi, r.r8, r.r9
        )?;
        writeln!(
            f,
            "r10 {:016x}  r11 {:016x}  r12 {:016x}  r13 {:016x}",
            r.r10, r.r11, r.r12, r.r13
        )?;
        write!(f, "r14 {:016x}  r15 {:016x}", r.r14, r.r15)
    }
}

/// What a CPU was doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuReport {
    /// The CPU.
    pub cpu: u32,
    /// Its state by its own account, or what can be said instead.
    pub state: String,
    /// Why it is in the report: `panicked`, `stands still`; empty for the others.
    pub note: String,
    /// Whether it had masked interrupts, where that is known.
    pub masked: Option<bool>,
    /// Its registers, where they could be read.
    pub registers: Option<Registers>,
    /// Its call chain, innermost first.
    pub stack: Vec<String>,
    /// Its last events, oldest first.
    pub events: Vec<String>,
    /// What it printed last, line by line.
    pub log: Vec<String>,
}

impl CpuReport {
    /// The report of a CPU of which nothing but its state is known yet.
    pub fn new(cpu: u32, state: Option<CpuState>) -> Self {
        let state = state.map_or_else(|| "unknown".into(), |state| format!("{state:?}"));
        Self { cpu, state, ..Self::default() }
    }

    /// Adds what makes this CPU stand out.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Adds registers.
    pub fn registers(mut self, registers: impl Into<Registers>) -> Self {
        self.registers = Some(registers.into());
        self
    }

    /// Adds a call chain, with names.
    pub fn stack(mut self, frames: &[Frame], symbols: &Symbols) -> Self {
        let line = |(n, frame): (usize, &Frame)| symbols.describe(frame.lookup(n == 0));
        self.stack = frames.iter().enumerate().map(line).collect();
        self
    }

    /// Adds the last events.
    pub fn events(mut self, events: &[Event]) -> Self {
        self.events = events.iter().map(|event| EventLine(event).to_string()).collect();
        self
    }
}

impl fmt::Display for CpuReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPU {}: {}", self.cpu, self.state)?;
        match self.masked {
            Some(true) => write!(f, ", interrupts masked")?,
            Some(false) => write!(f, ", interrupts open")?,
            None => {}
        }
        if !self.note.is_empty() {
            write!(f, ", {}", self.note)?;
        }
        writeln!(f)?;
        if let Some(registers) = &self.registers {
            for line in registers.to_string().lines() {
                writeln!(f, "    {line}")?;
            }
        }
        for (n, line) in self.stack.iter().enumerate() {
            writeln!(f, "    {n:>2}: {line}")?;
        }
        for line in &self.events {
            writeln!(f, "    {line}")?;
        }
        for line in &self.log {
            writeln!(f, "    log: {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exception_frame_gives_each_register_its_value() {
        let mut frame = ExceptionFrame { rip: 100, rsp: 101, rflags: 102, ..Default::default() };
        for (n, value) in frame.gpr.iter_mut().enumerate() {
            *value = n as u64;
        }
        let r = Registers::from(&frame);
        assert_eq!([r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp], [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!([r.r8, r.r15, r.rip, r.rsp, r.rflags], [7, 14, 100, 101, 102]);
    }

    #[test]
    fn report_names_cpu_state_mask_and_note() {
        let mut report = CpuReport::new(3, Some(CpuState::Dying)).note("stands still");
        report.masked = Some(true);
        assert_eq!(report.to_string(), "CPU 3: Dying, interrupts masked, stands still\n");
    }
}
