//! The registers of interrupted code: what the kernel gives to a signal handler, and takes back from it.

use kvm_bindings::kvm_regs;

/// General registers, instruction pointer and flags: the first of the kernel's array.
const REGISTERS: usize = libc::REG_EFL as usize + 1;
/// x87 and vector state, of which the kernel's frame begins with the one that FXSAVE writes; up to what
/// is free for software there.
const VECTORS: usize = 416;
/// Offset of the vector unit's control word, and what it is at the beginning.
const MXCSR: usize = 24;
const MXCSR_DEFAULT: u32 = 0x1f80;
/// The x87 unit's.
const FCW_DEFAULT: u16 = 0x37f;
/// In that frame: where the kernel says by a number that an XSAVE header follows, which begins with a
/// mask of the parts that hold anything; the first two are those above.
const XSAVE_MARK_AT: usize = 464;
const XSAVE_MARK: u32 = 0x4650_5853;
const XSAVE_HEADER: usize = 512;
const XSAVE_LEGACY: u64 = 3;

/// All of a flow of execution that has stopped: the guest's while the host executes, or the host's while
/// the guest does.
#[derive(Clone, Copy)]
pub(super) struct Flow {
    registers: [i64; REGISTERS],
    vectors: [u8; VECTORS],
    /// Signals that are blocked, by number less one.
    blocked: u64,
}

impl Flow {
    /// One that begins with these registers and this signal mask.
    pub(super) fn new(regs: &kvm_regs, blocked: u64) -> Self {
        let mut flow = Self { registers: [0; REGISTERS], vectors: [0; VECTORS], blocked };
        flow.vectors[..2].copy_from_slice(&FCW_DEFAULT.to_le_bytes());
        flow.vectors[MXCSR..MXCSR + 4].copy_from_slice(&MXCSR_DEFAULT.to_le_bytes());
        flow.set(regs);
        flow
    }

    /// Puts other registers in place; vector registers stay.
    pub(super) fn set(&mut self, regs: &kvm_regs) {
        for (register, value) in numbered(&mut regs.clone()) {
            self.registers[register as usize] = value.cast_signed();
        }
    }

    /// The registers.
    pub(super) fn get(&self) -> kvm_regs {
        let mut regs = kvm_regs::default();
        for (register, value) in numbered(&mut regs) {
            *value = self.registers[register as usize].cast_unsigned();
        }
        regs
    }
}

/// The registers in KVM's words, each with the kernel's number of it.
fn numbered(regs: &mut kvm_regs) -> [(libc::c_int, &mut u64); REGISTERS] {
    [
        (libc::REG_R8, &mut regs.r8),
        (libc::REG_R9, &mut regs.r9),
        (libc::REG_R10, &mut regs.r10),
        (libc::REG_R11, &mut regs.r11),
        (libc::REG_R12, &mut regs.r12),
        (libc::REG_R13, &mut regs.r13),
        (libc::REG_R14, &mut regs.r14),
        (libc::REG_R15, &mut regs.r15),
        (libc::REG_RDI, &mut regs.rdi),
        (libc::REG_RSI, &mut regs.rsi),
        (libc::REG_RBP, &mut regs.rbp),
        (libc::REG_RBX, &mut regs.rbx),
        (libc::REG_RDX, &mut regs.rdx),
        (libc::REG_RAX, &mut regs.rax),
        (libc::REG_RCX, &mut regs.rcx),
        (libc::REG_RSP, &mut regs.rsp),
        (libc::REG_RIP, &mut regs.rip),
        (libc::REG_EFL, &mut regs.rflags),
    ]
}

/// The flow that a signal has interrupted, and that goes on when the handler returns.
pub(super) struct Context {
    frame: *mut libc::ucontext_t,
}

impl Context {
    /// # Safety
    ///
    /// `frame` is the third argument of a signal handler that has not returned, and nobody else uses it
    /// meanwhile.
    pub(super) unsafe fn new(frame: *mut libc::c_void) -> Self {
        Self { frame: frame.cast() }
    }

    /// The kernel's word of a number, `libc::REG_...`.
    pub(super) fn get(&self, register: libc::c_int) -> u64 {
        // SAFETY: the frame is there by the contract of `new`. Only the word itself is touched, for the
        // kernel's frame is shorter than the C library's type.
        unsafe { (&raw const (*self.frame).uc_mcontext.gregs[register as usize]).read() }
            .cast_unsigned()
    }

    pub(super) fn set(&mut self, register: libc::c_int, value: u64) {
        // SAFETY: as above.
        unsafe {
            (&raw mut (*self.frame).uc_mcontext.gregs[register as usize]).write(value.cast_signed())
        }
    }

    pub(super) fn rip(&self) -> u64 {
        self.get(libc::REG_RIP)
    }

    pub(super) fn set_rip(&mut self, rip: u64) {
        self.set(libc::REG_RIP, rip);
    }

    pub(super) fn rsp(&self) -> u64 {
        self.get(libc::REG_RSP)
    }

    /// Lets the other flow go on in place of this one, which is kept in its stead.
    pub(super) fn exchange(&mut self, other: &mut Flow) {
        for (number, kept) in other.registers.iter_mut().enumerate() {
            let register = number as libc::c_int;
            let interrupted = self.get(register);
            self.set(register, kept.cast_unsigned());
            *kept = interrupted.cast_signed();
        }
        // SAFETY: the mask is the frame's last part. Its type here is longer than the kernel's 64 bits, so
        // that the pointer is made of those only.
        unsafe {
            let blocked = (&raw mut (*self.frame).uc_sigmask).cast::<u64>();
            std::ptr::swap(blocked, &raw mut other.blocked);
        }
        // SAFETY: as above; the kernel sets the pointer, or to null where nothing was saved.
        let vectors = unsafe { (&raw const (*self.frame).uc_mcontext.fpregs).read() }.cast::<u8>();
        if vectors.is_null() {
            return;
        }
        // SAFETY: what the kernel has saved begins with an FXSAVE area of 512 bytes, which lies on the
        // signal's stack as long as the frame, and has no other reference. If it says so, a header
        // follows; the part of it that is set tells the kernel to load what is swapped in.
        unsafe {
            std::ptr::swap_nonoverlapping(vectors, other.vectors.as_mut_ptr(), VECTORS);
            if vectors.add(XSAVE_MARK_AT).cast::<u32>().read_unaligned() == XSAVE_MARK {
                let parts = vectors.add(XSAVE_HEADER).cast::<u64>();
                parts.write_unaligned(parts.read_unaligned() | XSAVE_LEGACY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_has_a_place_of_its_own() {
        let mut regs = kvm_regs::default();
        for (n, (_, value)) in numbered(&mut regs).into_iter().enumerate() {
            *value = n as u64 + 1;
        }
        let flow = Flow::new(&regs, 0);
        assert!(flow.registers.iter().all(|&value| value != 0));
        assert_eq!(flow.get(), regs);
    }
}
