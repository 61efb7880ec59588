//! What a CPU of the guest has printed last.

use std::mem::{offset_of, size_of};

use percpu_guest::abi::{LOG_RING_LEN, LogRing, SHARED, Shared};

use crate::memory::GuestMem;
use crate::plain::plain;

/// Lines that are told.
const LINES: usize = 20;

/// The last lines in a CPU's log ring, oldest first.
pub(crate) fn log_tail(mem: &GuestMem, cpu: u32) -> Vec<String> {
    let ring =
        SHARED + offset_of!(Shared, logs) as u64 + u64::from(cpu) * size_of::<LogRing>() as u64;
    let mut bytes = vec![0; LOG_RING_LEN];
    let (Ok(head), Ok(())) = (
        mem.load_u64(ring + offset_of!(LogRing, head) as u64),
        mem.read_into(ring + offset_of!(LogRing, bytes) as u64, &mut bytes),
    ) else {
        return Vec::new();
    };
    if head > LOG_RING_LEN as u64 {
        // The oldest byte is the one that would be written next.
        bytes.rotate_left((head % LOG_RING_LEN as u64) as usize);
    } else {
        bytes.truncate(head as usize);
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    let skip = lines.len().saturating_sub(LINES);
    lines[skip..].iter().map(|line| plain(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn guest() -> (GuestMem, u64) {
        let size = SHARED as usize + size_of::<Shared>();
        let regions = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap();
        let ring = SHARED + offset_of!(Shared, logs) as u64 + size_of::<LogRing>() as u64;
        (GuestMem::new(regions), ring)
    }

    fn print(mem: &GuestMem, ring: u64, text: &str) {
        let head = mem.load_u64(ring).unwrap();
        for (at, byte) in (head..).zip(text.bytes()) {
            let at = ring + offset_of!(LogRing, bytes) as u64 + at % LOG_RING_LEN as u64;
            mem.write(at, &[byte]).unwrap();
        }
        mem.store_u64(ring, head + text.len() as u64).unwrap();
    }

    #[test]
    fn the_last_lines_are_told_in_order_even_if_the_ring_has_wrapped() {
        let (mem, ring) = guest();
        assert!(log_tail(&mem, 1).is_empty());
        print(&mem, ring, "one\ntwo\n");
        assert_eq!(log_tail(&mem, 1), ["one", "two"]);
        for n in 0..2000 {
            print(&mem, ring, &format!("line {n}\n"));
        }
        let tail = log_tail(&mem, 1);
        assert_eq!((tail.len(), tail[0].as_str()), (LINES, "line 1980"));
        assert_eq!(tail[LINES - 1], "line 1999");
        assert!(log_tail(&mem, 0).is_empty() && log_tail(&mem, 63).is_empty());
    }

    #[test]
    fn a_head_that_makes_no_sense_tells_nothing_wrong() {
        let (mem, ring) = guest();
        mem.store_u64(ring, u64::MAX).unwrap();
        assert!(log_tail(&mem, 1).len() <= LINES);
    }
}
