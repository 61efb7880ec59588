//! What an image and a running guest say at the boundary: the image's header, descriptor tables, the
//! shared header, results of a benchmark, counts for the report.

use std::mem::{offset_of, size_of};
use std::path::Path;

use percpu_guest::abi::{
    self, BenchTable, CpuTables, ImageHeader, MAX_CPUS, SHARED, Shared, SharedHeader, control_block,
};

use super::input::Input;
use super::memory::{Changes, guarded};
use crate::bench::guest_table::Table;
use crate::counts;
use crate::judge::HeaderGuard;
use crate::memory::{GuestMem, view_from_bytes};
use crate::run;

const MEMORY: usize = 48 << 20;
/// Parts that are written, at most.
const MOST_PARTS: u32 = 64;

thread_local! {
    static MEM: GuestMem = guarded(MEMORY);
}

/// The header, then parts of memory: which, where in it, how long, and bytes.
pub(super) fn run(bytes: &[u8]) {
    MEM.with(|mem| attack(Changes::of(mem.clone()), &mut Input::new(bytes)));
}

fn attack(changes: Changes, input: &mut Input<'_>) {
    let mut header = [0; size_of::<ImageHeader>()];
    let given = input.take(header.len());
    header[..given.len()].copy_from_slice(given);
    let image: ImageHeader = view_from_bytes(&header).expect("as many bytes as it has");
    let mem = changes.mem();
    let guard = HeaderGuard::new(mem);
    let mut bench = Table::new(mem, "core", 1000);
    for _ in 0..MOST_PARTS {
        if input.is_empty() {
            break;
        }
        write(&changes, &image, input);
        if let Ok(guard) = &guard {
            guard.check(mem);
        }
        // Rows come while it runs.
        for row in bench.new_rows().unwrap_or_default() {
            assert!(!format!("{row:?}").contains('\u{1b}'), "what a terminal would obey");
        }
    }
    for ring in [0, 3] {
        crate::vm::entries(&image, mem, MAX_CPUS as u32, ring);
    }
    counts::balance(mem);
    counts::trace(mem);
    assert!(counts::checks(mem, MAX_CPUS as u32).count() > 0);
    for cpu in 0..MAX_CPUS as u32 {
        std::hint::black_box(run::cpu_now(mem, cpu));
    }
    let error = crate::error::Error::abi_mismatch(Path::new("x"), image.version, image.header_size);
    assert!(!error.to_string().is_empty());
}

fn write(changes: &Changes, image: &ImageHeader, input: &mut Input<'_>) {
    let (which, offset, len) = (input.byte(), u64::from(input.half()), input.byte());
    let cpu = u32::from(which >> 4);
    let at = match which % 6 {
        0 => SHARED,
        1 => SHARED + offset_of!(SharedHeader, guest_version) as u64,
        2 => SHARED + offset_of!(Shared, bench) as u64,
        3 => control_block(cpu),
        4 => SHARED + (offset_of!(Shared, bench) + offset_of!(BenchTable, rows)) as u64,
        _ => {
            let tables = image.tables.wrapping_add(u64::from(cpu) * size_of::<CpuTables>() as u64);
            tables.wrapping_add(offset_of!(abi::CpuTables, start_rsp) as u64)
        }
    };
    changes.write(at.wrapping_add(offset), input.take(len.into()));
}
