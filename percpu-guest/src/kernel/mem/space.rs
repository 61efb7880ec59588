//! Addresses of the chunk space: which are reserved, and which were and may be again.

use crate::abi::CHUNK_SPACE;
use percpu_core::sync::SpinLock;

/// Bytes of the chunk space: one entry of the top table.
const SIZE: usize = 1 << 39;
/// Ranges that are remembered.
const MOST_RANGES: usize = 256;

/// A range that was reserved once.
#[derive(Clone, Copy)]
struct Range {
    addr: usize,
    size: usize,
    /// It is reserved now.
    taken: bool,
}

struct Space {
    ranges: [Range; MOST_RANGES],
    len: usize,
    /// First address that was never reserved.
    next: usize,
    /// There were more ranges than are remembered. Those cost addresses only, of which there are
    /// plenty; but whether an address is reserved is not known any more.
    forgot: bool,
}

static SPACE: SpinLock<Space> = SpinLock::new(Space {
    ranges: [Range { addr: 0, size: 0, taken: false }; MOST_RANGES],
    len: 0,
    next: CHUNK_SPACE as usize,
    forgot: false,
});

impl Space {
    fn ranges(&mut self) -> &mut [Range] {
        &mut self.ranges[..self.len]
    }

    fn remember(&mut self, range: Range) {
        match self.ranges.get_mut(self.len) {
            Some(place) => {
                *place = range;
                self.len += 1;
            }
            None => self.forgot = true,
        }
    }
}

/// Whether `addr` lies in the chunk space.
pub fn contains(addr: usize) -> bool {
    addr.wrapping_sub(CHUNK_SPACE as usize) < SIZE
}

/// Reserves `size` bytes of addresses aligned to `align`.
pub fn reserve(size: usize, align: usize) -> Option<usize> {
    let mut space = SPACE.lock();
    let fits =
        |range: &&mut Range| !range.taken && range.size == size && range.addr.is_multiple_of(align);
    if let Some(range) = space.ranges().iter_mut().find(fits) {
        range.taken = true;
        return Some(range.addr);
    }
    let addr = space.next.checked_next_multiple_of(align)?;
    let end = addr.checked_add(size)?;
    if end > CHUNK_SPACE as usize + SIZE {
        return None;
    }
    space.next = end;
    space.remember(Range { addr, size, taken: true });
    Some(addr)
}

/// Gives a reserved range back.
pub fn release(addr: usize, size: usize) {
    let mut space = SPACE.lock();
    let same = |range: &&mut Range| range.addr == addr && range.size == size;
    if let Some(range) = space.ranges().iter_mut().find(same) {
        range.taken = false;
    }
}

/// Whether all of the `size` bytes from `addr` lie in one range that is reserved, as far as that is
/// known.
pub fn is_reserved(addr: usize, size: usize) -> bool {
    let mut space = SPACE.lock();
    let within = |range: &Range| {
        let offset = addr.wrapping_sub(range.addr);
        range.taken && offset < range.size && size <= range.size - offset
    };
    space.forgot || space.ranges().iter().any(within)
}
