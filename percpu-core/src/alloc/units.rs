//! A unit for a CPU that comes up for the first time.
//!
//! From set-up on there is address space for every possible CPU's unit in every chunk. Memory is
//! put behind a CPU's units when the CPU is first brought up: a machine with 16 CPUs of 1024
//! possible ones pays for 16.

use core::iter;
use core::ptr::with_exposed_provenance_mut;

use super::Allocator;
use super::grow::Growth;
use super::memory::{UnitPages, take_away};
use crate::area::Unit;
use crate::platform::{NoMemory, Platform};
use crate::view::PAGE;

impl<P: Platform> Allocator<P> {
    /// Puts memory behind `cpu`'s units, as much as every other unit has: the template in the
    /// static part, zero everywhere else. Does nothing if the unit has memory already; once there,
    /// it stays, with its contents, also while the CPU is down. Linux has all units from the start.
    ///
    /// Takes the growth lock, so it may sleep. Costs as much as the memory: a call of
    /// [`Platform::populate`] and the clearing of its pages for each run of populated pages in each
    /// chunk.
    ///
    /// # Errors
    ///
    /// What had been got has been given back then, and nothing has changed.
    ///
    /// # Panics
    ///
    /// Before [`init`](Self::init), or if the CPU is not possible.
    pub fn add_unit(&self, cpu: u32) -> Result<(), NoMemory> {
        let first = self.first.get().expect("the per-CPU areas are not set up yet");
        let unit = first.place(cpu).expect("a unit is for a possible CPU");
        let growth = self.growth.lock();
        if first.has_memory(cpu) {
            return Ok(());
        }
        // SAFETY: the unit is not listed, so it has no memory: only this function gives it any,
        // under the growth lock. Until it is listed nobody knows of its memory.
        unsafe {
            first.populate_unit(unit)?;
            first.zero_unit(unit);
        }
        let grown = PopulatedPages { allocator: self, _growth: &growth, unit, entry: 0, from: 0 };
        let mut done = 0;
        let mut result = grown.clone().try_for_each(|pages| {
            // SAFETY: in units that are not listed these pages have no memory, and the growth lock
            // keeps it so; each run comes once.
            unsafe { P::populate(pages.addr, pages.count, cpu)? };
            done += 1;
            let start = with_exposed_provenance_mut::<u8>(pages.addr);
            // Areas in these pages may be live, and promise zero.
            // SAFETY: populated by the lines above, and nobody else knows of it.
            unsafe { start.write_bytes(0, pages.count * PAGE as usize) };
            Ok(())
        });
        // Last of what can fail, because it stays.
        if result.is_ok()
            && let Some(caches) = self.caches()
        {
            result = caches.add(cpu, self.leaks.is_active());
        }
        if let Err(error) = result {
            let undo = grown.take(done).chain(iter::once(first.pages_of(unit)));
            // SAFETY: exactly what was populated above. The growth lock keeps the chunks and their
            // populated pages as they are, so the walk goes the same way again.
            unsafe { take_away::<P>(undo) };
            return Err(error);
        }
        // SAFETY: every page that is populated in listed units is so in this one, and stays so,
        // since pages get and lose memory under the growth lock only. That lock also makes this
        // the only one to list a unit, and the unit was not listed above.
        unsafe { first.publish_unit(unit) };
        Ok(())
    }
}

/// The populated pages of all chunks but the first, as they lie in one unit. Each step takes the
/// short lock for one entry of the index.
struct PopulatedPages<'a, P: Platform> {
    allocator: &'a Allocator<P>,
    /// Held, so that the chunks and their populated pages stay as they are.
    _growth: &'a Growth,
    unit: Unit,
    /// Where the walk stands in the index, and in that chunk.
    entry: usize,
    from: u32,
}

impl<P: Platform> Clone for PopulatedPages<'_, P> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<P: Platform> Iterator for PopulatedPages<'_, P> {
    type Item = UnitPages;

    fn next(&mut self) -> Option<UnitPages> {
        loop {
            let state = self.allocator.state.lock();
            if let Some(ledger) = self.allocator.index.nth(self.entry)? {
                // SAFETY: the index names chunks that exist, and the growth lock keeps them.
                let chunk = state.chunk(unsafe { ledger.as_ref() }.chunk());
                if let Some(run) = chunk.next_populated(self.from) {
                    self.from = run.end;
                    return Some(UnitPages::new(chunk.base, &self.unit, run));
                }
            }
            self.entry += 1;
            self.from = 0;
        }
    }
}
