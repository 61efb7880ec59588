//! The host's orders at the head of the shared region, which the guest has no business to change.

use std::mem::offset_of;

use percpu_core::view::Roots;
use percpu_guest::abi::{BootParams, SHARED, SharedHeader};

use super::finding::{Findings, Violation, kind};
use super::layout::Layout;
use crate::memory::{Following, GuestMem, Wild};

/// A copy of what the host wrote, to compare with later.
#[derive(Clone, Debug)]
pub struct HeaderGuard {
    orders: Orders,
    /// The roots as they were when the guest said that it had booted.
    roots: Option<Roots>,
}

/// The fields that only the host writes, before the guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Orders {
    magic: u64,
    version: u32,
    size: u32,
    boot: BootParams,
}

impl Orders {
    fn read(mem: &GuestMem) -> Result<Self, Wild> {
        Ok(Self {
            magic: field(mem, offset_of!(SharedHeader, magic))?,
            version: field(mem, offset_of!(SharedHeader, version))?,
            size: field(mem, offset_of!(SharedHeader, size))?,
            boot: field(mem, offset_of!(SharedHeader, boot))?,
        })
    }
}

fn field<T: percpu_core::view::View>(mem: &GuestMem, offset: usize) -> Result<T, Wild> {
    mem.read(SHARED + offset as u64).following(|| "the shared header")
}

impl HeaderGuard {
    /// Remembers the header that lies in `mem` now.
    pub fn new(mem: &GuestMem) -> Result<Self, Wild> {
        Ok(Self { orders: Orders::read(mem)?, roots: None })
    }

    /// Remembers the roots too, which stay as they are from `Booted` on.
    pub(crate) fn booted(&mut self, roots: Roots) {
        self.roots = Some(roots);
    }

    /// The first field that is not what it was.
    pub fn check(&self, mem: &GuestMem) -> Option<Violation> {
        let now = match Orders::read(mem) {
            Ok(now) => now,
            Err(wild) => return Some(wild.into()),
        };
        let was = &self.orders;
        let changed = if now.magic != was.magic {
            Some(("magic", format!("{:#x}", now.magic), format!("{:#x}", was.magic)))
        } else if now.version != was.version {
            Some(("version", now.version.to_string(), was.version.to_string()))
        } else if now.size != was.size {
            Some(("size", now.size.to_string(), was.size.to_string()))
        } else if now.boot != was.boot {
            Some(("boot parameters", format!("{:?}", now.boot), format!("{:?}", was.boot)))
        } else {
            self.changed_roots(mem)
        };
        let (what, seen, expected) = changed?;
        let detail = format!(
            "the guest overwrote the shared header: {what} is {seen}, the host wrote {expected}"
        );
        Some(Violation::new(kind::HEADER, what, detail).values(seen, expected))
    }

    fn changed_roots(&self, mem: &GuestMem) -> Option<(&'static str, String, String)> {
        let was = self.roots?;
        let now = mem.read::<Roots>(Layout::roots_address()).ok()?;
        (now != was).then(|| ("roots", format!("{now:x?}"), format!("{was:x?}")))
    }

    pub(crate) fn judge(&self, mem: &GuestMem, findings: &mut Findings) {
        findings.checked(kind::HEADER, 1);
        if let Some(violation) = self.check(mem) {
            findings.report(violation);
        }
    }
}
