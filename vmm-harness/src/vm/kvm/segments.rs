//! The registers of 64-bit mode: control registers, segments of the chosen ring.

use std::mem::offset_of;

use kvm_bindings::{kvm_segment, kvm_sregs};
use percpu_guest::abi;

use super::super::boot::Entry;

const CR0: u64 = 0x8005_0033; // PG AM WP NE ET MP PE
const CR4: u64 = (1 << 5) | (1 << 9) | (1 << 10) | (1 << 16); // PAE OSFXSR OSXMMEXCPT FSGSBASE
const EFER: u64 = (1 << 8) | (1 << 10); // LME LMA

/// Puts 64-bit mode in the entry's ring over `sregs`, which keeps what it says of the APIC.
pub(in super::super) fn apply(entry: &Entry, sregs: &mut kvm_sregs) {
    let (code_selector, data_selector) = match entry.ring {
        3 => (abi::CODE3, abi::DATA3),
        _ => (abi::CODE0, abi::DATA0),
    };
    let code = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: code_selector,
        type_: 11,
        present: 1,
        dpl: entry.ring,
        db: 0,
        s: 1,
        l: 1,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    let data = kvm_segment { selector: data_selector, type_: 3, db: 1, l: 0, ..code };
    sregs.cs = code;
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.ss = data;
    sregs.gs = kvm_segment { base: entry.gs_base, ..data };
    sregs.tr = kvm_segment {
        base: entry.tables.wrapping_add(offset_of!(abi::CpuTables, tss) as u64),
        limit: abi::TSS_LIMIT,
        selector: abi::TSS,
        dpl: 0,
        s: 0,
        l: 0,
        g: 0,
        ..code
    };
    sregs.gdt.base = entry.tables;
    sregs.gdt.limit = 16 * 8 - 1;
    sregs.idt.base = entry.idt;
    sregs.idt.limit = 256 * 16 - 1;
    sregs.cr0 = CR0;
    sregs.cr3 = abi::PAGE_TABLES;
    sregs.cr4 = CR4;
    sregs.efer = EFER;
}
