//! A throw-away VM that times instructions in ring 0.
//!
//! On VMX and SVM the guest's ring 0 runs on the bare CPU. Where KVM has no hardware under it
//! (kvm-pvm), each ring-0 instruction is emulated and costs about a microsecond: the guest has to
//! run in ring 3 there. No capability tells; a loop does.

use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::error::Error;

/// Guest memory: page tables, descriptors and a few bytes of code.
const MEMORY: usize = 64 << 10;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const GDT: u64 = 0x4000;
const CODE: u64 = 0x5000;
const STACK: u64 = 0x7000;
/// An address with a translation and no memory: a store exits to the host.
const EXIT: u32 = 0x8_0000;

/// Page-table entry bits: present, writable, and accessed and dirty so that nobody has to set them.
const ENTRY: u64 = 0x63;
/// Entry bit: a 2 MiB page.
const LARGE: u64 = 0x80;

/// Turns of the loop before the clock starts, and in a timed round; a turn is two instructions.
const WARM_UP: u32 = 16;
const TURNS: u32 = 400;
/// Rounds, of which the fastest counts: the host may have other work.
const ROUNDS: u32 = 3;

/// `mov ecx, turns; 1: dec ecx; jnz 1b; mov [EXIT], eax`.
fn round(turns: u32, code: &mut Vec<u8>) {
    code.push(0xb9);
    code.extend(turns.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc]);
    code.extend([0x89, 0x04, 0x25]);
    code.extend(EXIT.to_le_bytes());
}

/// What the scratch VM has shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speed {
    /// Nanoseconds an instruction in ring 0.
    pub(super) ring0_ns: f64,
    /// The guest's TSC frequency, where KVM tells.
    pub(super) tsc_khz: Option<u32>,
}

/// Makes a VM, times ring 0, and lets the VM go on a thread of its own: that takes longer than
/// all the rest.
pub(super) fn measure(kvm: &Kvm) -> Result<Speed, Error> {
    let mut scratch = Scratch::new(kvm)?;
    let speed = scratch.time();
    // Whether the thread can be had or not, the VM is dropped.
    let _ = std::thread::Builder::new().name("scratch-vm".into()).spawn(move || drop(scratch));
    speed
}

/// Fields in the order in which they must go.
struct Scratch {
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: GuestMemoryMmap,
}

impl Scratch {
    fn new(kvm: &Kvm) -> Result<Self, Error> {
        let vm = kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)])
            .map_err(|e| Error::memory(MEMORY as u64, e))?;
        let host = memory.get_host_address(GuestAddress(0)).map_err(Error::guest_memory)?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: host as u64,
        };
        // SAFETY: `userspace_addr` is the mapping just made, the one region. `Scratch` drops it after the
        // vCPU and the VM; before there is a `Scratch` the vCPU does not run.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        fill(&memory).map_err(Error::guest_memory)?;

        let vcpu = vm.create_vcpu(0).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        let mut sregs = vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
        long_mode(&mut sregs);
        vcpu.set_sregs(&sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
        let regs = kvm_regs { rip: CODE, rsp: STACK, rflags: 2, ..Default::default() };
        vcpu.set_regs(&regs).map_err(Error::kvm("KVM_SET_REGS"))?;
        Ok(Self { vcpu, _vm: vm, _memory: memory })
    }

    fn time(&mut self) -> Result<Speed, Error> {
        self.run_round()?;
        let mut best = Duration::MAX;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            self.run_round()?;
            best = best.min(start.elapsed());
        }
        let ring0_ns = best.as_nanos() as f64 / f64::from(2 * TURNS);
        Ok(Speed { ring0_ns, tsc_khz: self.vcpu.get_tsc_khz().ok() })
    }

    /// Runs up to the next store to [`EXIT`].
    fn run_round(&mut self) -> Result<(), Error> {
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::MmioWrite(address, _)) if address == u64::from(EXIT) => return Ok(()),
                Ok(exit) => return Err(Error::ScratchVm(format!("{exit:?}"))),
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(e) => return Err(Error::kvm("KVM_RUN")(e)),
            }
        }
    }
}

/// Writes page tables (identity, the first 2 MiB), descriptors and code.
fn fill(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_obj(PDPT | ENTRY, GuestAddress(PML4))?;
    memory.write_obj(DIRECTORY | ENTRY, GuestAddress(PDPT))?;
    memory.write_obj(ENTRY | LARGE, GuestAddress(DIRECTORY))?;
    // Null, 64-bit code, data.
    let gdt = [0u64, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    for (n, descriptor) in (0u64..).zip(gdt) {
        memory.write_obj(descriptor, GuestAddress(GDT + n * 8))?;
    }
    let mut code = Vec::new();
    round(WARM_UP, &mut code);
    for _ in 0..ROUNDS {
        round(TURNS, &mut code);
    }
    code.push(0xf4);
    memory.write_slice(&code, GuestAddress(CODE))
}

/// Ring 0 of 64-bit mode.
fn long_mode(sregs: &mut kvm_sregs) {
    let code = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 0x08,
        type_: 11,
        present: 1,
        dpl: 0,
        db: 0,
        s: 1,
        l: 1,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    let data = kvm_segment { selector: 0x10, type_: 3, db: 1, l: 0, ..code };
    sregs.cs = code;
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 23;
    sregs.cr3 = PML4;
    // PAE; PE, ET, NE, WP, PG; LME, LMA.
    sregs.cr4 = 0x20;
    sregs.cr0 = 0x8001_0031;
    sregs.efer = 0x500;
}
