//! The guest image: an ELF file with an [`ImageHeader`] and, perhaps, guest tests and workloads.

mod workloads;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use linux_loader::loader::{KernelLoader, elf::Elf};
use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol};
use percpu_core::view::View;
use percpu_guest::abi::{self, ImageHeader, TestEntry};
use vm_memory::GuestMemoryMmap;

use crate::coverage::{self, Edges};
use crate::error::Error;
use crate::judge::{Checks, Statics};
use crate::memory::view_from_bytes;
use crate::plain::plain;
pub use workloads::Workloads;

/// An ELF file that was found to be a guest of this ABI.
pub struct Image {
    path: PathBuf,
    bytes: Vec<u8>,
    header: ImageHeader,
    tests: Vec<GuestTest>,
    workloads: Workloads,
    edges: Option<Edges>,
    checks: Checks,
    /// Found when they are first asked for.
    statics: OnceLock<Arc<Statics>>,
}

/// A test that the image declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestTest {
    /// Path-like name, as `statics::worked_example`.
    pub name: String,
    /// Address of its function.
    pub function: u64,
    /// CPUs that are online when it starts.
    pub cpus: u32,
    /// CPUs that are possible.
    pub possible: u32,
    /// Whether it runs only when asked for.
    pub ignored: bool,
}

impl Image {
    /// Reads and checks an image.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|e| Error::image_unreadable(path, e))?;
        Self::from_bytes(path, bytes)
    }

    /// Checks an image that was read from `path`.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, Error> {
        let elf = object::File::parse(&*bytes).map_err(|_| Error::not_elf(path))?;
        let address = elf
            .symbols()
            .find(|s| s.name() == Ok(abi::IMAGE_HEADER_SYMBOL))
            .map(|s| s.address())
            .ok_or_else(|| Error::foreign_elf(path))?;
        let header: ImageHeader = read(&elf, address)
            .filter(|h: &ImageHeader| h.magic == abi::MAGIC)
            .ok_or_else(|| Error::foreign_elf(path))?;
        if header.version != abi::ABI_VERSION
            || header.header_size as usize != size_of::<abi::SharedHeader>()
        {
            return Err(Error::abi_mismatch(path, header.version, header.header_size));
        }
        // Below lie the page tables and the shared region.
        if elf.segments().any(|segment| segment.address() < abi::IMAGE) {
            return Err(Error::image_load(
                path,
                format_args!("it is not linked at {:#x}", abi::IMAGE),
            ));
        }
        let tests = tests(&elf).ok_or_else(|| Error::foreign_elf(path))?;
        let workloads = Workloads::of(&elf).ok_or_else(|| Error::foreign_elf(path))?;
        let edges = Edges::find(&elf).map_err(|why| Error::image_load(path, why))?;
        Ok(Self {
            path: path.into(),
            header,
            tests,
            workloads,
            edges,
            bytes,
            checks: Checks::none(),
            statics: OnceLock::new(),
        })
    }

    /// With checks of its own, by which every run of it is judged besides.
    pub fn with_checks(self, checks: Checks) -> Self {
        Self { checks, ..self }
    }

    /// The checks it has of its own.
    pub fn checks(&self) -> &Checks {
        &self.checks
    }

    /// Its statics, if there are checks that may ask for them.
    pub(crate) fn statics(&self) -> Option<Arc<Statics>> {
        let load = || Arc::new(Statics::load(&self.bytes));
        (!self.checks.is_empty()).then(|| self.statics.get_or_init(load).clone())
    }

    /// Where the image was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The ELF file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the image says of itself.
    pub fn header(&self) -> &ImageHeader {
        &self.header
    }

    /// The guest tests, by name.
    pub fn tests(&self) -> &[GuestTest] {
        &self.tests
    }

    /// The workloads.
    pub fn workloads(&self) -> &Workloads {
        &self.workloads
    }

    /// The edges that the image's code notes for the host, if it was built to.
    pub fn edges(&self) -> Option<&Edges> {
        self.edges.as_ref()
    }

    /// The parts of memory that the image's code may write: also the flags of edges, but not what else
    /// the compiler made for them, which nobody writes.
    pub fn writable(&self) -> Vec<std::ops::Range<u64>> {
        let Ok(elf) = object::File::parse(&*self.bytes) else { return Vec::new() };
        let mut parts: Vec<_> = elf
            .sections()
            .filter(|section| {
                let object::SectionFlags::Elf { sh_flags } = section.flags() else { return false };
                sh_flags & u64::from(object::elf::SHF_WRITE) != 0
                    && !section
                        .name()
                        .is_ok_and(|name| name.starts_with("__sancov") && name != coverage::FLAGS)
            })
            .map(|section| section.address()..section.address().saturating_add(section.size()))
            .filter(|part| part.start >= abi::IMAGE && !part.is_empty())
            .collect();
        parts.sort_by_key(|part| part.start);
        parts
    }

    /// What the image puts into memory: addresses, as bytes, and contents. Neither symbols nor debug
    /// information are part of it.
    pub fn loaded(&self) -> Vec<([u8; 8], &[u8])> {
        let Ok(elf) = object::File::parse(&*self.bytes) else { return Vec::new() };
        elf.segments()
            .filter_map(|segment| Some((segment.address().to_le_bytes(), segment.data().ok()?)))
            .collect()
    }

    /// Copies the image to its place and returns the address after it.
    pub fn load(&self, mem: &GuestMemoryMmap) -> Result<u64, Error> {
        Elf::load(mem, None, &mut Cursor::new(&self.bytes), None)
            .map(|loaded| loaded.kernel_end)
            .map_err(|e| Error::image_load(&self.path, e))
    }
}

/// The bytes that the file has for a range of addresses.
pub(crate) fn content<'a>(elf: &object::File<'a>, range: std::ops::Range<u64>) -> Option<&'a [u8]> {
    bytes(elf, range.start, range.end.checked_sub(range.start)?)
}

/// Reads a structure at a virtual address of the ELF file; `None` where the file has no bytes
/// for it.
fn read<T: View>(elf: &object::File<'_>, address: u64) -> Option<T> {
    view_from_bytes(bytes(elf, address, size_of::<T>() as u64)?)
}

fn bytes<'a>(elf: &object::File<'a>, address: u64, len: u64) -> Option<&'a [u8]> {
    elf.segments().find_map(|segment| segment.data_range(address, len).ok().flatten())
}

/// The entries of a section, which may be missing; `None` if they are no whole entries.
fn section_of<T: View>(elf: &object::File<'_>, name: &str) -> Option<Vec<T>> {
    let Some(section) = elf.section_by_name(name) else { return Some(Vec::new()) };
    let data = section.data().ok()?;
    if !data.len().is_multiple_of(size_of::<T>()) {
        return None;
    }
    data.chunks_exact(size_of::<T>()).map(view_from_bytes).collect()
}

fn tests(elf: &object::File<'_>) -> Option<Vec<GuestTest>> {
    let entries: Vec<TestEntry> = section_of(elf, abi::TEST_SECTION)?;
    let mut tests: Vec<_> = entries
        .into_iter()
        .map(|entry| {
            let name = bytes(elf, entry.name, entry.name_len)?;
            Some(GuestTest {
                name: plain(std::str::from_utf8(name).ok()?),
                function: entry.function,
                cpus: entry.cpus as u32 & 0xffff,
                possible: entry.cpus as u32 >> 16,
                ignored: entry.cpus >> 32 & 1 != 0,
            })
        })
        .collect::<Option<_>>()?;
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    Some(tests)
}
