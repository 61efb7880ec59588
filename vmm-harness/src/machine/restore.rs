//! Putting a guest back to a moment, in less time than it takes to boot one.
//!
//! Copied back is what the guest can have written ([`Contents`]): the image's writable part, the shared
//! region as far as it was used, page frames up to the highest that was handed out. Frames above were
//! never written; those that were handed out since the moment are zero again.
//!
//! Page tables are different. A KVM without nested paging keeps shadows of them and learns of changes
//! from the guest's own stores and flushes only. So those that differ are put back by the guest, by a
//! few instructions of it that are there for this; and the vCPU is made to forget all translations
//! by being given another CR3 and then its own.

use std::ops::Range;
use std::time::{Duration, Instant};

use percpu_guest::abi::Doorbell;

use super::contents::{Contents, PAGE, Table};
use crate::error::Error;
use crate::image::Image;
use crate::memory::GuestMem;
use crate::vm::{Saved, SerialVm};

/// The guest at a moment.
pub(super) struct Snapshot {
    mem: GuestMem,
    vcpu: Saved,
    contents: Contents,
    /// Code of the image that copies pages.
    restore_code: u64,
    /// Memory of ours at the end of the guest's: a list, then pages.
    kept: Range<u64>,
}

impl Snapshot {
    /// The guest as it is now; `kept` is memory of ours, in which nothing is.
    pub(super) fn take(
        vm: &mut SerialVm,
        image: &Image,
        mem: &GuestMem,
        possible: u32,
        kept: Range<u64>,
    ) -> Result<Self, Error> {
        Ok(Self {
            vcpu: vm.save()?,
            contents: Contents::take(mem, &image.writable(), possible, vm.memory_size())?,
            mem: mem.clone(),
            restore_code: image.header().restore,
            kept,
        })
    }

    /// Puts everything back; how long that took.
    pub(super) fn restore(&mut self, vm: &mut SerialVm) -> Result<Duration, Error> {
        let began = Instant::now();
        let (now, differ) = self.contents.tables_that_differ()?;
        self.restore_tables(vm, &differ)?;
        self.contents.put_back(&now)?;
        vm.restore(&self.vcpu)?;
        Ok(began.elapsed())
    }

    /// Lets the guest put back the page tables that differ.
    fn restore_tables(&self, vm: &mut SerialVm, tables: &[Table]) -> Result<(), Error> {
        if tables.is_empty() {
            return Ok(());
        }
        let list = self.kept.start;
        for (n, (table, contents)) in (0..).zip(tables) {
            let page = list + PAGE * (1 + n);
            assert!(page < self.kept.end, "room for as many tables as there can be");
            self.mem.write(page, contents)?;
            self.mem.store_u64(list + 16 * n, *table)?;
            self.mem.store_u64(list + 16 * n + 8, page)?;
        }
        match vm.call(&self.vcpu, self.restore_code, list, tables.len() as u64) {
            Ok((Doorbell::Restored, _)) => Ok(()),
            other => {
                Err(Error::GuestBoot(format!("it does not put its page tables back: {other:?}")))
            }
        }
    }
}
