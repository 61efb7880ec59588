//! Guest memory as signal handlers reach it: no allocation, no lock, no panic.

use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::error::Error;
use crate::memory::{Translation, Why, walk_tables};

/// The memory's own mapping, of which no part is at the guest's addresses. It is valid as long as the
/// [`GuestMemoryMmap`] that it was made of, which whoever has this keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ram {
    base: usize,
    len: u64,
}

impl Ram {
    pub(super) fn new(mem: &GuestMemoryMmap, len: u64) -> Result<Self, Error> {
        let base = mem.get_host_address(GuestAddress(0)).map_err(Error::guest_memory)?;
        Ok(Self { base: base.expose_provenance(), len })
    }

    /// Bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    fn at<T>(&self, phys: u64) -> Option<*mut T> {
        let end = phys.checked_add(size_of::<T>() as u64)?;
        (end <= self.len && phys.is_multiple_of(align_of::<T>() as u64))
            .then(|| with_exposed_provenance_mut(self.base + phys as usize))
    }

    fn word32(&self, phys: u64) -> Option<&AtomicU32> {
        // SAFETY: `at` gives an aligned address inside the mapping, which lives as long as this. While a
        // guest is there, other host threads reach its memory by atomics and by single instructions
        // (`crate::memory`), and the guest reaches it by machine code at other addresses.
        self.at(phys).map(|word| unsafe { AtomicU32::from_ptr(word) })
    }

    fn word64(&self, phys: u64) -> Option<&AtomicU64> {
        // SAFETY: as above.
        self.at(phys).map(|word| unsafe { AtomicU64::from_ptr(word) })
    }

    /// Reads an aligned word.
    pub(super) fn load_u64(&self, phys: u64) -> Option<u64> {
        self.word64(phys).map(|word| word.load(Ordering::Acquire))
    }

    /// Writes an aligned word.
    pub(super) fn store_u64(&self, phys: u64, value: u64) -> Option<()> {
        self.word64(phys).map(|word| word.store(value, Ordering::Release))
    }

    /// The bytes from an address on, as many as there are, up to `into`'s.
    pub(super) fn bytes<'b>(&self, phys: u64, into: &'b mut [u8]) -> &'b [u8] {
        let len = self.len.saturating_sub(phys).min(into.len() as u64) as usize;
        let into = &mut into[..len];
        for (i, byte) in into.iter_mut().enumerate() {
            let Some(at) = self.at::<u8>(phys + i as u64) else { break };
            // SAFETY: inside the mapping, as above. A byte that another CPU writes meanwhile is read as it
            // was or as it is.
            *byte = unsafe { at.read_volatile() };
        }
        into
    }

    /// Where a virtual address leads.
    pub(super) fn translate(&self, virt: u64) -> Result<Translation, Why> {
        walk_tables(|entry| self.load_u64(entry), virt)
    }

    /// Reads an aligned 32-bit word at a virtual address.
    pub(super) fn load_virt_u32(&self, virt: u64) -> Option<u32> {
        let word = self.word32(self.translate(virt).ok()?.phys)?;
        Some(word.load(Ordering::Relaxed))
    }

    /// Writes an aligned 32-bit word at a virtual address.
    pub(super) fn store_virt_u32(&self, virt: u64, value: u32) -> Option<()> {
        let word = self.word32(self.translate(virt).ok()?.phys)?;
        word.store(value, Ordering::Relaxed);
        Some(())
    }

    /// Reads an aligned word at a virtual address.
    pub(super) fn load_virt_u64(&self, virt: u64) -> Option<u64> {
        self.load_u64(self.translate(virt).ok()?.phys)
    }

    /// Sets bits in an aligned word at a virtual address.
    pub(super) fn set_virt_bits(&self, virt: u64, bits: u64) -> Option<()> {
        let word = self.word64(self.translate(virt).ok()?.phys)?;
        word.fetch_or(bits, Ordering::Relaxed);
        Some(())
    }

    /// Writes a word at a virtual address, aligned or not, if the guest may.
    pub(super) fn push(&self, virt: u64, value: u64) -> Option<()> {
        for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
            let to = self.translate(virt.checked_add(i as u64)?).ok().filter(|to| to.writable)?;
            // SAFETY: inside the mapping, as above; it is the guest's stack, which the CPU's own thread
            // writes here on its behalf.
            unsafe { self.at::<u8>(to.phys)?.write_volatile(byte) };
        }
        Some(())
    }
}
