//! The guest's addresses in this process, of which there is one set: who lies there.
//!
//! Guest memory is a file without a name. The host has it mapped wherever the kernel put it, and reads it
//! there; a second mapping of the same pages lies at the addresses that the guest knows, so that its code
//! runs as it is. All addresses that a guest may use are reserved at the first use, for good: what is not
//! mapped there faults, and nothing of this process' can ever come to lie there.
//!
//! A guest that is in nobody's way stays where it is, also while none of its CPUs runs. Another one that
//! is to run waits until they have all left, or until it is gone if it has moved in for life; then that one's
//! memory takes its place.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::without_provenance_mut;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use percpu_guest::abi::{CHUNK_SPACE, DOORBELL, HOST_PART, PAGE_TABLES, SHARED};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::tlb::Tlb;
use crate::error::Error;

/// The lowest address of guest memory that is mapped: what is below is for the real mode and for null
/// pointers, and the kernel keeps it from most processes.
pub(super) const LOWEST: u64 = PAGE_TABLES;
/// The end of the addresses that are mapped one to one.
const END: u64 = 1 << 32;
/// The chunk space: one entry of the top page table.
const CHUNKS: u64 = 1 << 39;

/// The place.
pub(super) struct Place {
    state: Mutex<State>,
    /// Somebody has left, or moved out.
    left: Condvar,
    /// Translations of the guest that lies here.
    pub(super) tlb: Tlb,
}

struct State {
    reserved: bool,
    /// Who lies here, 0 = nobody.
    lodger: u64,
    /// How many use it now: CPUs that run, and the one who has moved in for life.
    users: usize,
    /// Number of the latest lodger.
    numbered: u64,
}

/// The one there is.
pub(super) static PLACE: Place = Place {
    state: Mutex::new(State { reserved: false, lodger: 0, users: 0, numbered: 0 }),
    left: Condvar::new(),
    tlb: Tlb::new(),
};

/// Memory that can lie here. Dropping it moves it out.
#[derive(Debug)]
pub(super) struct Lodger {
    number: u64,
    file: FileOffset,
    bytes: u64,
}

/// The guarantee that a guest lies here.
#[derive(Debug)]
pub(super) struct Stay(());

impl Lodger {
    /// New memory, zeroed.
    pub(super) fn new(bytes: u64) -> Result<(Self, GuestMemoryMmap), Error> {
        let file = memory_file(bytes).map_err(|source| match source.raw_os_error() {
            Some(libc::EFBIG) => Error::Threads(format!(
                "its memory is a file of {} MiB, more than this process may make: raise the limit \
                 of file sizes (ulimit -f)",
                bytes >> 20
            )),
            _ => Error::memory(bytes, source),
        })?;
        let file = FileOffset::from_arc(Arc::new(file), 0);
        let range = (GuestAddress(0), bytes as usize, Some(file.clone()));
        let mem = GuestMemoryMmap::from_ranges_with_files([range])
            .map_err(|e| Error::memory(bytes, e))?;
        let mut state = PLACE.state();
        state.numbered += 1;
        Ok((Self { number: state.numbered, file, bytes }, mem))
    }

    /// Waits until nobody else is here, moves in if need be, and stays.
    pub(super) fn stay(&self) -> Result<Stay, Error> {
        let mut state = PLACE.state();
        while state.users > 0 && state.lodger != self.number {
            state = PLACE.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.lodger != self.number {
            self.move_in(&mut state)?;
        }
        state.users += 1;
        Ok(Stay(()))
    }

    /// Maps the page of memory at `phys` to the page at `virt`, in the chunk space. To be called by the
    /// [`Tlb`], of the lodger that lies here. Async-signal-safe.
    pub(super) fn map(&self, virt: u64, phys: u64) -> bool {
        let access = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE;
        let (fd, offset) = (self.file.file().as_raw_fd(), phys as libc::off_t);
        // SAFETY: the page lies in the addresses that were reserved for this.
        let at = unsafe { libc::mmap(address(virt), 4096, access, flags, fd, offset) };
        at != libc::MAP_FAILED
    }

    /// Whether this is who lies here.
    pub(super) fn is_here(&self) -> bool {
        PLACE.state().lodger == self.number
    }

    fn move_in(&self, state: &mut State) -> Result<(), Error> {
        if !state.reserved {
            reserve(LOWEST..END)?;
            reserve(CHUNK_SPACE..CHUNK_SPACE + CHUNKS)?;
            state.reserved = true;
        }
        // If what follows fails, nobody is here.
        state.lodger = 0;
        PLACE.tlb.clear();
        let access = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let refused = |call| {
            let source = io::Error::last_os_error();
            Error::Threads(format!(
                "its memory cannot be mapped at {LOWEST:#x} ({call}: {source}); it must be executable, \
                 which this host may forbid"
            ))
        };
        // What is beyond a smaller one's end was the one's before.
        unmap(LOWEST, DOORBELL - LOWEST);
        let (len, fd) = ((self.bytes - LOWEST) as usize, self.file.file().as_raw_fd());
        // SAFETY: the addresses were reserved for this, and no CPU of the guest runs that used them so
        // far.
        let at =
            unsafe { libc::mmap(address(LOWEST), len, access, flags, fd, LOWEST as libc::off_t) };
        if at == libc::MAP_FAILED {
            return Err(refused("mmap"));
        }
        // As in the page tables.
        // SAFETY: as above.
        if unsafe { libc::mprotect(address(SHARED), HOST_PART, libc::PROT_READ) } != 0 {
            return Err(refused("mprotect"));
        }
        state.lodger = self.number;
        Ok(())
    }
}

impl Drop for Lodger {
    fn drop(&mut self) {
        let mut state = PLACE.state();
        if state.lodger == self.number {
            state.lodger = 0;
            PLACE.tlb.clear();
            unmap(LOWEST, self.bytes - LOWEST);
        }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        PLACE.state().users -= 1;
        PLACE.left.notify_all();
    }
}

impl Place {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a virtual address belongs to the chunk space.
pub(super) fn is_chunk(virt: u64) -> bool {
    virt.wrapping_sub(CHUNK_SPACE) < CHUNKS
}

/// An address of the place as the kernel takes it: no memory that Rust knows of is there.
fn address(at: u64) -> *mut libc::c_void {
    without_provenance_mut(at as usize)
}

/// Flags of a mapping that holds nothing but its addresses.
const EMPTY: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Makes addresses of the place empty again. Async-signal-safe.
pub(super) fn unmap(at: u64, bytes: u64) {
    // SAFETY: the caller names addresses that were reserved. Over a part of a mapping it may need memory
    // of the kernel's; where there is none, what was mapped stays.
    unsafe {
        libc::mmap(address(at), bytes as usize, libc::PROT_NONE, EMPTY | libc::MAP_FIXED, -1, 0)
    };
}

/// Takes addresses for good, if nobody has any of them.
fn reserve(range: std::ops::Range<u64>) -> Result<(), Error> {
    let flags = EMPTY | libc::MAP_FIXED_NOREPLACE;
    let bytes = (range.end - range.start) as usize;
    // SAFETY: a new mapping, which replaces none.
    let at = unsafe { libc::mmap(address(range.start), bytes, libc::PROT_NONE, flags, -1, 0) };
    let source = io::Error::last_os_error();
    if at == address(range.start) {
        return Ok(());
    }
    if at != libc::MAP_FAILED {
        // A kernel that does not know the flag takes the address as a wish.
        // SAFETY: the mapping was just made.
        unsafe { libc::munmap(at, bytes) };
    }
    let why = match source.raw_os_error() {
        _ if at != libc::MAP_FAILED => "something is there, in a kernel before 4.17".to_owned(),
        Some(libc::EEXIST) => {
            "something of this process' is there: it must be a position-independent executable"
                .into()
        }
        Some(libc::EPERM) => {
            format!("{source}: lower vm.mmap_min_addr to {LOWEST:#x} at most")
        }
        Some(libc::ENOMEM) => format!("{source}: raise the limit of address space (ulimit -v)"),
        _ => source.to_string(),
    };
    Err(Error::Threads(format!(
        "its addresses {:#x}..{:#x} cannot be had ({why})",
        range.start, range.end
    )))
}

/// A file in memory without a name.
fn memory_file(bytes: u64) -> io::Result<std::fs::File> {
    use std::os::fd::FromRawFd;
    const EXECUTABLE: libc::c_uint = 0x10; // MFD_EXEC
    let create = |flags: libc::c_uint| {
        // SAFETY: the name is a C string, and the result a new descriptor that nobody else has.
        unsafe {
            match libc::memfd_create(c"percpu-guest".as_ptr(), flags) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(std::fs::File::from_raw_fd(fd)),
            }
        }
    };
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes `limit`.
    if unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) } == 0 && limit.rlim_cur < bytes {
        // To try would end the process by a signal.
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    // Kernels before 6.3 do not know that it may be asked for.
    let file = create(libc::MFD_CLOEXEC | EXECUTABLE).or_else(|_| create(libc::MFD_CLOEXEC))?;
    file.set_len(bytes)?;
    Ok(file)
}
