//! Guest memory as the host reads it: copies only, every address checked.
//!
//! The guest writes while we read, and a broken guest leaves anything behind: whatever is read
//! here is a copy of bytes that may be torn, stale or nonsense. An address that leads nowhere is a
//! [`Wild`], which the judge turns into a finding.
//!
//! # Implementation
//!
//! `vm-memory`'s own rules are: no reference to guest memory, volatile accesses only. Its `copy_to` and
//! `copy_from` keep them up to eight bytes; more of them is a `memcpy`, of which the compiler may read the
//! source again where the copy is used. A value that was checked would then be another one when it is
//! used. So copies are made here by an instruction that the compiler neither repeats nor leaves out, and
//! that moves a word at a time: every aligned word of a copy is one that was there.

use std::arch::asm;
use std::cell::RefCell;
use std::collections::HashMap;
use std::mem::{MaybeUninit, size_of};
use std::ptr;
use std::sync::atomic::Ordering;

use percpu_core::view::View;
use percpu_guest::abi;
use vm_memory::{
    AtomicAccess, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    VolatileSlice,
};

use crate::error::Error;

/// Bytes of a small page.
const PAGE: u64 = 4096;
/// Bits of a page-table entry that hold a physical address.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Entry bits: present, writable, and "this entry maps a large page".
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;

/// Why an address is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The physical range has no memory behind it.
    #[error("no guest memory there")]
    NoMemory,
    /// The range wraps around the end of the address space.
    #[error("it wraps around the end of the address space")]
    Wraps,
    /// An atomic access to an address that is no multiple of the size.
    #[error("it is not aligned")]
    Unaligned,
    /// Bits 48..64 are not copies of bit 47.
    #[error("it is not canonical")]
    NotCanonical,
    /// The page tables have no entry for it.
    #[error("the guest's page tables do not map it")]
    NotMapped,
    /// A page-table entry points outside guest memory.
    #[error("a page table on the way to it lies outside guest memory")]
    WildTable,
    /// The image has no symbol of this name.
    #[error("the image has no symbol of this name (#[unsafe(no_mangle)] keeps one)")]
    NoSymbol,
    /// The image has several symbols of this name.
    #[error("the image has several symbols of this name")]
    ManySymbols,
}

/// An address that leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} leads to {addr:#x} ({len} bytes): {why}")]
pub struct Wild {
    /// The address.
    pub addr: u64,
    /// Bytes that were wanted there.
    pub len: u64,
    /// What was being followed.
    pub what: String,
    /// What is wrong with it.
    pub why: Why,
}

impl Wild {
    pub(crate) fn new(addr: u64, len: usize, why: Why) -> Self {
        Self { addr, len: len as u64, what: "an address".into(), why }
    }
}

/// Says what was being followed when an address turned out to be wild.
pub trait Following<T> {
    /// Names what led here; `what` is asked only in case of failure.
    fn following<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Wild>;
}

impl<T> Following<T> for Result<T, Wild> {
    fn following<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Wild> {
        self.map_err(|wild| Wild { what: what().into(), ..wild })
    }
}

/// The guest's physical memory. Cloning is cheap: all clones are the same memory.
#[derive(Clone, Debug)]
pub struct GuestMem {
    regions: GuestMemoryMmap,
}

impl GuestMem {
    /// The memory behind `regions`.
    pub fn new(regions: GuestMemoryMmap) -> Self {
        Self { regions }
    }

    /// The regions, for KVM and loaders.
    pub fn regions(&self) -> &GuestMemoryMmap {
        &self.regions
    }

    /// Bytes there are.
    pub fn size(&self) -> u64 {
        self.regions.iter().fold(0, |size, region| size.saturating_add(region.len()))
    }

    /// Copies a value out of physical memory. The copy may be torn where the guest writes at the
    /// same time.
    pub fn read<T: View>(&self, phys: u64) -> Result<T, Wild> {
        read_value(|bytes| self.read_into(phys, bytes))
    }

    /// Copies bytes out of physical memory.
    pub fn read_into(&self, phys: u64, bytes: &mut [u8]) -> Result<(), Wild> {
        copy_out(&self.slice(phys, bytes.len())?, bytes);
        Ok(())
    }

    /// Writes bytes into physical memory.
    pub fn write(&self, phys: u64, bytes: &[u8]) -> Result<(), Wild> {
        copy_in(bytes, &self.slice(phys, bytes.len())?);
        Ok(())
    }

    /// Reads a word in one access, with acquire ordering: what the guest wrote before it is seen.
    pub fn load_u64(&self, phys: u64) -> Result<u64, Wild> {
        self.load(phys)
    }

    /// As [`load_u64`](Self::load_u64).
    pub fn load_u32(&self, phys: u64) -> Result<u32, Wild> {
        self.load(phys)
    }

    /// Writes a word in one access, with release ordering: who sees it sees what was written before.
    pub fn store_u64(&self, phys: u64, value: u64) -> Result<(), Wild> {
        self.store(phys, value)
    }

    /// As [`store_u64`](Self::store_u64).
    pub fn store_u32(&self, phys: u64, value: u32) -> Result<(), Wild> {
        self.store(phys, value)
    }

    /// A bounds-checked window on physical memory for volatile access.
    pub fn slice(&self, phys: u64, len: usize) -> Result<VolatileSlice<'_>, Wild> {
        if phys.checked_add(len as u64).is_none() {
            return Err(Wild::new(phys, len, Why::Wraps));
        }
        self.regions
            .get_slice(GuestAddress(phys), len)
            .map_err(|_| Wild::new(phys, len, Why::NoMemory))
    }

    fn load<T: AtomicAccess>(&self, phys: u64) -> Result<T, Wild> {
        let word = self.slice(phys, size_of::<T>())?;
        word.load(0, Ordering::Acquire).map_err(|_| Wild::new(phys, size_of::<T>(), Why::Unaligned))
    }

    fn store<T: AtomicAccess>(&self, phys: u64, value: T) -> Result<(), Wild> {
        let word = self.slice(phys, size_of::<T>())?;
        word.store(value, 0, Ordering::Release)
            .map_err(|_| Wild::new(phys, size_of::<T>(), Why::Unaligned))
    }

    /// The guest's virtual addresses, with a translation cache: make one for each look, so that a
    /// page that was unmapped since is not found any more.
    pub fn address_space(&self) -> AddressSpace<'_> {
        AddressSpace { mem: self, pages: RefCell::default() }
    }

    /// Physical address of a virtual one.
    pub fn translate(&self, virt: u64) -> Result<u64, Wild> {
        walk(self, virt)
    }

    /// Copies a value from a virtual address.
    pub fn read_virt<T: View>(&self, virt: u64) -> Result<T, Wild> {
        self.address_space().read(virt)
    }

    /// Copies `len` bytes from a virtual address. The caller bounds `len`.
    pub fn bytes_virt(&self, virt: u64, len: usize) -> Result<Vec<u8>, Wild> {
        self.address_space().bytes(virt, len)
    }
}

/// Virtual addresses of the guest as the page tables say, remembered page by page.
#[derive(Debug)]
pub struct AddressSpace<'m> {
    mem: &'m GuestMem,
    /// Physical page of each virtual page that was looked up.
    pages: RefCell<HashMap<u64, u64>>,
}

impl AddressSpace<'_> {
    /// The memory below.
    pub fn mem(&self) -> &GuestMem {
        self.mem
    }

    /// Physical address of a virtual one.
    pub fn translate(&self, virt: u64) -> Result<u64, Wild> {
        let page = virt & !(PAGE - 1);
        if let Some(phys) = self.pages.borrow().get(&page) {
            return Ok(phys | (virt - page));
        }
        let phys = walk(self.mem, page).map_err(|wild| Wild { addr: virt, ..wild })?;
        self.pages.borrow_mut().insert(page, phys);
        Ok(phys | (virt - page))
    }

    /// Copies a value.
    pub fn read<T: View>(&self, virt: u64) -> Result<T, Wild> {
        read_value(|bytes| self.read_into(virt, bytes))
    }

    /// Copies bytes, page by page.
    pub fn read_into(&self, virt: u64, bytes: &mut [u8]) -> Result<(), Wild> {
        let len = bytes.len();
        if virt.checked_add(len as u64).is_none() {
            return Err(Wild::new(virt, len, Why::Wraps));
        }
        let mut at = virt;
        let mut rest = bytes;
        while !rest.is_empty() {
            let in_page = (PAGE - at % PAGE) as usize;
            let (part, tail) = rest.split_at_mut(in_page.min(rest.len()));
            let phys = self.translate(at).map_err(|wild| Wild { len: len as u64, ..wild })?;
            self.mem.read_into(phys, part).map_err(|wild| Wild {
                addr: at,
                len: len as u64,
                ..wild
            })?;
            at += part.len() as u64;
            rest = tail;
        }
        Ok(())
    }

    /// Copies `len` bytes. The caller bounds `len`.
    pub fn bytes(&self, virt: u64, len: usize) -> Result<Vec<u8>, Wild> {
        let mut bytes = vec![0; len];
        self.read_into(virt, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies `len` 64-bit words. The caller bounds `len`.
    pub fn words(&self, virt: u64, len: usize) -> Result<Vec<u64>, Wild> {
        let bytes = self.bytes(virt, len * 8)?;
        Ok(bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
            .collect())
    }
}

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// Returns the size of the largest aligned access, of at most half a word, at `address` for `len` bytes.
fn part_of_word(address: usize, len: usize) -> usize {
    let aligned = 1 << address.trailing_zeros().min(2);
    // The largest power of two that `len` has room for.
    aligned.min(1 << len.ilog2())
}

/// Copies a part of a word, each aligned 4, 2 or 1 bytes of it by one access.
///
/// # Safety
///
/// `from` is mapped memory of this length.
unsafe fn copy_part_out(mut from: *const u8, mut into: &mut [u8]) {
    while !into.is_empty() {
        let size = part_of_word(from.addr(), into.len());
        let (part, rest) = into.split_at_mut(size);
        // SAFETY: inside of the memory, and aligned to `size`.
        unsafe {
            match size {
                4 => part.copy_from_slice(&from.cast::<u32>().read_volatile().to_ne_bytes()),
                2 => part.copy_from_slice(&from.cast::<u16>().read_volatile().to_ne_bytes()),
                _ => part[0] = from.read_volatile(),
            }
            from = from.add(size);
        }
        into = rest;
    }
}

/// As [`copy_part_out`], into guest memory.
///
/// # Safety
///
/// `into` is mapped memory of this length.
unsafe fn copy_part_in(mut from: &[u8], mut into: *mut u8) {
    while !from.is_empty() {
        let size = part_of_word(into.addr(), from.len());
        let (part, rest) = from.split_at(size);
        // SAFETY: inside of the memory, and aligned to `size`.
        unsafe {
            match *part {
                [a, b, c, d] => {
                    into.cast::<u32>().write_volatile(u32::from_ne_bytes([a, b, c, d]));
                }
                [a, b] => into.cast::<u16>().write_volatile(u16::from_ne_bytes([a, b])),
                _ => into.write_volatile(part[0]),
            }
            into = into.add(size);
        }
        from = rest;
    }
}

/// Copies guest memory that may change meanwhile: each aligned word by one access, and of what is before
/// and behind them each aligned part of a word, so that no value of the guest's is seen half changed.
fn copy_out(from: &VolatileSlice<'_>, into: &mut [u8]) {
    assert_eq!(from.len(), into.len());
    let guard = from.ptr_guard();
    let mut from = guard.as_ptr();
    let (head, rest) = into.split_at_mut(from.align_offset(WORD).min(into.len()));
    let (words, tail) = rest.as_chunks_mut::<WORD>();
    // SAFETY: `from` advances by as many bytes as are written of `into`, so it stays inside of the slice,
    // which is mapped memory as long. It is aligned to a word from the end of `head` on.
    unsafe {
        let aligned = from.add(head.len());
        copy_part_out(from, head);
        from = aligned;
        let to = words.as_mut_ptr();
        asm!(
            "rep movsq",
            inout("rcx") words.len() => _,
            inout("rsi") from,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
        copy_part_out(from, tail);
    }
}

/// Copies into guest memory, likewise.
fn copy_in(from: &[u8], into: &VolatileSlice<'_>) {
    assert_eq!(from.len(), into.len());
    let guard = into.ptr_guard_mut();
    let mut into = guard.as_ptr();
    let (head, rest) = from.split_at(into.align_offset(WORD).min(from.len()));
    let (words, tail) = rest.as_chunks::<WORD>();
    // SAFETY: as in `copy_out`, with the directions exchanged.
    unsafe {
        copy_part_in(head, into);
        into = into.add(head.len());
        let from = words.as_ptr();
        asm!(
            "rep movsq",
            inout("rcx") words.len() => _,
            inout("rsi") from => _,
            inout("rdi") into,
            options(nostack, preserves_flags)
        );
        copy_part_in(tail, into);
    }
}

/// A value out of the bytes of a file; `None` where their number is not its size.
pub fn view_from_bytes<T: View>(bytes: &[u8]) -> Option<T> {
    if bytes.len() != size_of::<T>() {
        return None;
    }
    read_value(|value| {
        value.copy_from_slice(bytes);
        Ok(())
    })
    .ok()
}

/// Writes a value into physical memory while no CPU of the guest executes.
pub fn write_view<T: View>(mem: &GuestMemoryMmap, phys: u64, value: &T) -> Result<(), Error> {
    let slice = mem
        .get_slice(GuestAddress(phys), size_of::<T>())
        .map_err(|_| Wild::new(phys, size_of::<T>(), Why::NoMemory))?;
    let guard = slice.ptr_guard_mut();
    // SAFETY: the slice is `size_of::<T>()` bytes of mapped memory, to which `vm-memory` gives no
    // reference, so it does not overlap `value`. Copying bytes does not mind padding.
    unsafe {
        ptr::copy_nonoverlapping(ptr::from_ref(value).cast::<u8>(), guard.as_ptr(), size_of::<T>())
    };
    Ok(())
}

/// Where a virtual address leads, and whether all tables on the way there let it be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Translation {
    pub phys: u64,
    pub writable: bool,
}

fn walk(mem: &GuestMem, virt: u64) -> Result<u64, Wild> {
    match walk_tables(|entry| mem.load_u64(entry).ok(), virt) {
        Ok(translation) => Ok(translation.phys),
        Err(why) => Err(Wild::new(virt, 1, why)),
    }
}

/// Walks the four levels of page tables below [`abi::PAGE_TABLES`], of which `load` reads an entry if
/// there is memory. Async-signal-safe if `load` is.
pub(crate) fn walk_tables(
    load: impl Fn(u64) -> Option<u64>,
    virt: u64,
) -> Result<Translation, Why> {
    if (virt as i64) << 16 >> 16 != virt as i64 {
        return Err(Why::NotCanonical);
    }
    let mut table = abi::PAGE_TABLES;
    let mut writable = true;
    let mut shift = 12 + 9 * 3;
    loop {
        let entry = load(table + (virt >> shift & 511) * 8).ok_or(Why::WildTable)?;
        if entry & PRESENT == 0 {
            return Err(Why::NotMapped);
        }
        writable &= entry & WRITABLE != 0;
        let large = shift == 12 || (shift < 39 && entry & LARGE != 0);
        if large {
            let in_page = (1 << shift) - 1;
            return Ok(Translation { phys: entry & FRAME & !in_page | virt & in_page, writable });
        }
        table = entry & FRAME;
        shift -= 9;
    }
}

/// Makes a value out of the bytes that `fill` supplies.
fn read_value<T: View>(fill: impl FnOnce(&mut [u8]) -> Result<(), Wild>) -> Result<T, Wild> {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the slice covers exactly `value`, which nothing else refers to while it lives, and
    // whose bytes are all initialised (to zero).
    let bytes =
        unsafe { std::slice::from_raw_parts_mut(value.as_mut_ptr().cast::<u8>(), size_of::<T>()) };
    fill(bytes)?;
    // SAFETY: all bytes are initialised, and `View` promises that any bytes make a value.
    Ok(unsafe { value.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;
    const VIRT: u64 = abi::CHUNK_SPACE;
    /// Page tables of `VIRT`, behind those of the identity map.
    const TABLES: u64 = 0x2_0000;

    /// The first megabyte mapped one to one, and two pages of `VIRT` in reverse order.
    fn memory() -> GuestMem {
        let regions = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE as usize)]).unwrap();
        let mem = GuestMem::new(regions);
        let table = |n: u64| abi::PAGE_TABLES + n * PAGE;
        for (at, entry) in [
            (table(0), table(1) | 7),
            (table(1), table(2) | 7),
            (table(2), 0x87),
            (table(0) + 8, TABLES | 7),
            (TABLES, (TABLES + PAGE) | 7),
            (TABLES + PAGE, (TABLES + 2 * PAGE) | 7),
            (TABLES + 2 * PAGE, 0x5_1000 | 7),
            (TABLES + 2 * PAGE + 8, 0x8000_0000_0005_0000 | 7),
            // A table outside memory.
            (TABLES + PAGE + 8, (SIZE * 4) | 7),
        ] {
            mem.store_u64(at, entry).unwrap();
        }
        mem
    }

    fn why<T: std::fmt::Debug>(result: Result<T, Wild>) -> Why {
        result.unwrap_err().why
    }

    #[test]
    fn large_and_small_pages_are_translated() {
        let mem = memory();
        assert_eq!(mem.translate(0x1_2345), Ok(0x1_2345));
        assert_eq!(mem.translate(VIRT + 0x123), Ok(0x5_1123));
        // The no-execute bit is no part of the address.
        assert_eq!(mem.translate(VIRT + 0x1fff), Ok(0x5_0fff));
    }

    #[test]
    fn bytes_are_read_page_by_page() {
        let mem = memory();
        mem.write(0x5_1ffe, &[1, 2]).unwrap();
        mem.write(0x5_0000, &[3, 4]).unwrap();
        assert_eq!(mem.read_virt::<u32>(VIRT + 0xffe), Ok(0x0403_0201));
        assert_eq!(mem.bytes_virt(VIRT + 0xfff, 2), Ok(vec![2, 3]));
        assert_eq!(why(mem.bytes_virt(VIRT + 0x1ffe, 4)), Why::NotMapped);
    }

    #[test]
    fn wild_addresses_say_what_is_wrong_with_them() {
        let mem = memory();
        assert_eq!(why(mem.translate(VIRT + 0x2000)), Why::NotMapped);
        assert_eq!(why(mem.translate(VIRT + 0x20_0000)), Why::WildTable);
        assert_eq!(why(mem.translate(1 << 47)), Why::NotCanonical);
        assert_eq!(mem.translate((1 << 47) | 0xffff << 48).unwrap_err().why, Why::NotMapped);
        assert_eq!(why(mem.read_virt::<u64>(u64::MAX - 3)), Why::Wraps);
        assert_eq!(why(mem.read::<u64>(SIZE - 4)), Why::NoMemory);
        assert_eq!(why(mem.read::<u64>(u64::MAX - 4)), Why::Wraps);
        assert_eq!(why(mem.load_u64(0x1001)), Why::Unaligned);
        assert_eq!(why(mem.store_u32(SIZE, 1)), Why::NoMemory);
        // Mapped, but beyond the end of memory.
        assert_eq!(why(mem.read_virt::<u64>(SIZE)), Why::NoMemory);
        let wild = mem.load_u64(SIZE).following(|| "the head of slot 3").unwrap_err();
        assert_eq!(
            wild.to_string(),
            "the head of slot 3 leads to 0x100000 (8 bytes): no guest memory there"
        );
    }

    #[test]
    fn an_address_space_remembers_pages_for_one_look_only() {
        let mem = memory();
        let space = mem.address_space();
        assert_eq!(space.translate(VIRT + 8), Ok(0x5_1008));
        mem.store_u64(TABLES + 2 * PAGE, 0).unwrap();
        assert_eq!(space.translate(VIRT + 16), Ok(0x5_1010));
        assert_eq!(why(mem.address_space().translate(VIRT)), Why::NotMapped);
    }

    #[test]
    fn copies_are_whole_wherever_they_begin_and_end() {
        let mem = memory();
        let of = |start: usize, len: usize| -> Vec<u8> {
            (start..start + len).map(|n| n as u8 ^ 0x5a).collect()
        };
        for start in 0..10 {
            for len in [0, 1, 2, 7, 8, 9, 15, 16, 17, 64, 100] {
                let at = 0x3_0000;
                mem.write(at, &[0xee; 128]).unwrap();
                mem.write(at + start as u64, &of(start, len)).unwrap();
                let mut around = [0; 128];
                mem.read_into(at, &mut around).unwrap();
                let mut expected = [0xee; 128];
                expected[start..start + len].copy_from_slice(&of(start, len));
                assert_eq!(around, expected, "{len} bytes from {start} on");
                let mut again = vec![0; len];
                mem.read_into(at + start as u64, &mut again).unwrap();
                assert_eq!(again, of(start, len), "{len} bytes from {start} on");
            }
        }
    }

    /// The guest goes on while the host reads.
    #[test]
    fn an_aligned_word_of_a_copy_is_one_that_was_there() {
        use std::sync::atomic::AtomicBool;
        const AT: u64 = 0x3_0000;
        const WORDS: u64 = 64;
        let mem = memory();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0_u64.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let value = [0, u64::MAX][(round % 2) as usize];
                    (0..WORDS).for_each(|n| mem.store_u64(AT + n * 8, value).unwrap());
                }
            });
            let torn = [0, 1, 5].into_iter().cycle().take(6000).find_map(|from| {
                let mut bytes = vec![0; (WORDS * 8) as usize - 7];
                mem.read_into(AT + from, &mut bytes).unwrap();
                let words = &bytes[(8 - from as usize) % 8..];
                let whole = |word: &&[u8]| *word == [0; 8] || *word == [0xff; 8];
                words.chunks_exact(8).find(|word| !whole(word)).map(<[u8]>::to_vec)
            });
            // Values that are smaller than a word, wherever they lie in one.
            let parts = [(4, 4), (0, 4), (2, 2), (6, 2), (4, 2)];
            let torn_part = parts.into_iter().cycle().take(200_000).find_map(|(at, len)| {
                let mut bytes = vec![0; len];
                mem.read_into(AT + at, &mut bytes).unwrap();
                let whole = bytes.iter().all(|&byte| byte == bytes[0]);
                (!whole).then_some((at, bytes))
            });
            done.store(true, Ordering::Relaxed);
            assert_eq!(torn, None);
            assert_eq!(torn_part, None);
        });
    }
}
