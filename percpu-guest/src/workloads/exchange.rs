//! Areas that change hands between threads and interrupt handlers: what one allocates the other
//! frees, on whatever CPU.

use percpu_core::alloc::AllocFlags;
use percpu_core::sync::SpinLock;
use percpu_guest::abi::EventKind;

use super::areas::Area;
use percpu_guest::kernel::events;
use percpu_guest::kernel::rng::Rng;

/// Areas that wait for a new owner at most.
const ROOM: usize = 32;
/// Largest area in the exchange: a handler looks at every byte of every CPU's copy.
pub(super) const MOST_BYTES: u32 = 64;

struct Exchange {
    areas: [Option<Area>; ROOM],
    len: usize,
}

static EXCHANGE: SpinLock<Exchange> = SpinLock::new(Exchange { areas: [None; ROOM], len: 0 });

impl Exchange {
    fn push(&mut self, area: Area) -> bool {
        let room = self.areas.get_mut(self.len);
        self.len += usize::from(room.is_some());
        room.map(|room| *room = Some(area)).is_some()
    }

    fn last(&self) -> Option<Area> {
        self.areas[..self.len].last().copied().flatten()
    }

    fn pop(&mut self) -> Option<Area> {
        let area = self.last();
        self.len -= usize::from(area.is_some());
        area
    }
}

/// Leaves an area, which the host knows, to whoever comes; false if there is no room.
pub(super) fn leave(area: Area) -> bool {
    EXCHANGE.lock().push(area)
}

/// Takes over an area that somebody has left.
pub(super) fn collect() -> Option<Area> {
    EXCHANGE.lock().pop()
}

/// Frees an area that somebody has left. In an interrupt handler.
pub(super) fn free_one_in_interrupt() {
    let area = {
        let mut exchange = EXCHANGE.lock();
        let Some(area) = exchange.last() else { return };
        // Where there is no room for the event the area stays.
        if !events::emit_now(EventKind::Free, [area.pointer.raw() as u64, 0, 0, 0, 0]) {
            return;
        }
        exchange.pop();
        area
    };
    area.check_in_interrupt();
    area.free();
}

/// Allocates an area without sleeping, fills it, and leaves it to whoever comes. In an interrupt
/// handler.
pub(super) fn alloc_one_in_interrupt(rng: &mut Rng) {
    let size = 4 + rng.below(u64::from(MOST_BYTES) - 3);
    let align = 4 << rng.below(4);
    // Where nothing populated has room, the balance thread is about to see to it.
    let Ok(mut area) = Area::alloc(size as usize, align, AllocFlags::ATOMIC) else { return };
    area.check_in_interrupt();
    area.fill(rng.next_u64() as u32);
    let left = {
        let mut exchange = EXCHANGE.lock();
        exchange.len < ROOM
            && events::emit_now(EventKind::Alloc, area.announcement(align))
            && exchange.push(area)
    };
    if !left {
        // The host has heard nothing of it, and no interrupt is under way when it looks.
        area.free();
    }
}
