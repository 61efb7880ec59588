//! What CPUs find when they begin: the page tables of the identity map, and where they execute.

use std::mem::offset_of;

use kvm_bindings::kvm_regs;
use percpu_guest::abi::{self, ImageHeader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::Error;

const PAGE: u64 = 4096;
pub(super) const LARGE_PAGE: u64 = 2 << 20;

/// Present, writable, reachable from ring 3: ring 0 and ring 3 run on the same tables.
const PTE: u64 = 1 | 2 | 4;
const PTE_WRITABLE: u64 = 1 << 1;
const PTE_LARGE: u64 = 1 << 7;
const PTE_UNCACHED: u64 = 1 << 4;

/// The page of the local APIC's registers.
pub(super) const LAPIC: u64 = 0xfee0_0000;

/// Interrupts enabled; the guest masks them in software.
const RFLAGS: u64 = 0x202;

/// Writes the identity map: RAM by 2 MiB pages (the first 2 MiB by 4 KiB pages, page 0 left out so
/// that a null pointer faults, the host's part of the shared header read-only), the doorbell page
/// and the local APIC. Everything else faults.
pub(super) fn write_page_tables(mem: &GuestMemoryMmap, memory: u64) -> Result<(), Error> {
    let pml4 = abi::PAGE_TABLES;
    let pdpt = pml4 + PAGE;
    let directory = |gib: u64| pdpt + PAGE + gib * PAGE;
    let low = directory(4);
    let put = |table: u64, index: u64, entry: u64| {
        mem.write_obj(entry, GuestAddress(table + index * 8)).map_err(Error::guest_memory)
    };

    put(pml4, 0, pdpt | PTE)?;
    for gib in 0..4 {
        put(pdpt, gib, directory(gib) | PTE)?;
    }
    put(directory(0), 0, low | PTE)?;
    for page in 1..512 {
        put(low, page, (page * PAGE) | PTE)?;
    }
    for addr in (abi::SHARED..abi::SHARED + abi::HOST_PART as u64).step_by(PAGE as usize) {
        put(low, addr / PAGE, addr | (PTE & !PTE_WRITABLE))?;
    }
    for addr in (LARGE_PAGE..memory).step_by(LARGE_PAGE as usize) {
        put(directory(addr >> 30), (addr >> 21) & 511, addr | PTE | PTE_LARGE)?;
    }
    for addr in [abi::DOORBELL, LAPIC] {
        let entry = addr | PTE | PTE_LARGE | PTE_UNCACHED;
        put(directory(addr >> 30), (addr >> 21) & 511, entry)?;
    }
    Ok(())
}

/// Where a CPU begins to execute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// First instruction.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// First argument (`rdi`).
    pub arg: u64,
    /// GS base.
    pub gs_base: u64,
    /// The CPU's [`abi::CpuTables`].
    pub tables: u64,
    /// Interrupt descriptor table.
    pub idt: u64,
    /// 0 or 3.
    pub ring: u8,
}

impl Entry {
    /// Of the CPU that boots, by what the image says of itself.
    pub(super) fn of_boot_cpu(image: &ImageHeader, ring: u8) -> Self {
        Self {
            rip: image.entry,
            rsp: image.boot_stack,
            arg: abi::SHARED,
            gs_base: 0,
            tables: image.tables,
            idt: image.idt,
            ring,
        }
    }

    /// Of a CPU that the host starts. That comes from the guest's own tables; whatever they hold, the
    /// engine is what runs it.
    ///
    /// # Errors
    /// The image's tables are not in guest memory.
    pub(super) fn of_ap(
        image: &ImageHeader,
        mem: &GuestMemoryMmap,
        cpu: u32,
        ring: u8,
    ) -> Result<Self, Error> {
        let tables = image.tables.wrapping_add(u64::from(cpu) * size_of::<abi::CpuTables>() as u64);
        let word = |offset: usize| {
            let at = GuestAddress(tables.wrapping_add(offset as u64));
            mem.read_obj::<u64>(at).map_err(Error::guest_memory)
        };
        Ok(Self {
            rip: image.ap_entry,
            rsp: word(offset_of!(abi::CpuTables, start_rsp))?,
            arg: u64::from(cpu),
            gs_base: word(offset_of!(abi::CpuTables, gs_base))?,
            tables,
            idt: image.idt,
            ring,
        })
    }

    /// The general registers at the first instruction.
    pub(super) fn regs(&self) -> kvm_regs {
        kvm_regs {
            rip: self.rip,
            // As after a call: the stack is aligned to 16 before the return address.
            rsp: self.rsp.wrapping_sub(8),
            rdi: self.arg,
            rflags: RFLAGS,
            ..Default::default()
        }
    }
}
