//! A guest image as a compiler makes it, and as small: functions with names, lines and others inlined
//! into them, a test, edges, and a header whose numbers the fuzz targets put in.

#![no_std]
#![no_main]
#![allow(dead_code)]

use core::hint::black_box;

#[repr(C)]
struct ImageHeader {
    magic: u64,
    version: u32,
    header_size: u32,
    entry: unsafe extern "C" fn(),
    ap_entry: unsafe extern "C" fn(),
    tables: *const u8,
    boot_stack: *const u8,
    idt: *const u8,
    ring3_only: u64,
    restore: unsafe extern "C" fn(),
}
// SAFETY: nobody changes it.
unsafe impl Sync for ImageHeader {}

static mut TABLES: [u8; 4096 * 3] = [0; 4096 * 3];

#[unsafe(no_mangle)]
#[used]
static PERCPU_GUEST_IMAGE: ImageHeader = ImageHeader {
    magic: 0,
    version: 0,
    header_size: 0,
    entry: _start,
    ap_entry: _start,
    tables: (&raw const TABLES).cast(),
    boot_stack: (&raw const TABLES).cast(),
    idt: (&raw const TABLES).cast(),
    ring3_only: 0,
    restore: _start,
};

#[repr(C)]
struct TestEntry {
    name: &'static str,
    function: fn(u64) -> u64,
    cpus: u64,
}

#[unsafe(link_section = "guest_tests")]
#[used]
static TEST: TestEntry = TestEntry { name: "shapes::sum", function: sum, cpus: 4 << 16 | 2 };

#[repr(C)]
struct WorkloadEntry {
    name: &'static str,
    functions: [fn(u64) -> u64; 4],
    flags: u64,
}

#[unsafe(link_section = "guest_workloads")]
#[used]
static WORKLOAD: WorkloadEntry =
    WorkloadEntry { name: "counter", functions: [sum, choose, sum, choose], flags: 0 };

#[repr(C)]
struct Place(fn(u64) -> u64, u64);

#[unsafe(link_section = "__sancov_pcs")]
#[used]
static PLACES: [Place; 2] = [Place(sum, 1), Place(choose, 1)];

#[unsafe(link_section = "__sancov_bools")]
#[used]
static mut FLAGS: [u8; 2] = [1, 0];

#[inline(always)]
fn square(n: u64) -> u64 {
    black_box(n).wrapping_mul(n)
}

#[inline(always)]
fn odd(n: u64) -> u64 {
    if n & 1 == 0 { square(n) } else { square(n + 1) / 2 }
}

#[inline(never)]
fn sum(n: u64) -> u64 {
    (0..n).fold(0, |sum, n| sum ^ odd(n))
}

#[inline(never)]
fn choose(n: u64) -> u64 {
    match black_box(n) {
        0 => 7,
        1 => sum(3),
        2 => square(n) - 1,
        3 => odd(n) + 5,
        4 => sum(n) ^ 0x55,
        _ => odd(n),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn _start() {
    loop {
        black_box(choose(black_box(4)));
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
