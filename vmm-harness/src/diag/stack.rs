//! Guest stacks, followed by frame pointers.

use crate::memory::{AddressSpace, GuestMem};

/// Frames of a trace: enough for any guest thread, few enough to read.
const MAX_FRAMES: usize = 32;
/// How far apart two frames of a stack can be.
const MAX_FRAME: u64 = 64 << 10;

/// A place in a call chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Instruction: the interrupted one first, then return addresses.
    pub rip: u64,
    /// Frame pointer there.
    pub rbp: u64,
}

impl Frame {
    /// The address to look up: a return address may be the first byte after its function.
    pub fn lookup(&self, innermost: bool) -> u64 {
        if innermost { self.rip } else { self.rip.wrapping_sub(1) }
    }
}

/// The call chain of a CPU that stands at `rip`. It ends where a frame cannot be read or does not
/// lie above the one before: a broken stack gives a short trace.
pub fn backtrace(mem: &GuestMem, rip: u64, rbp: u64, rsp: u64) -> Vec<Frame> {
    let space = mem.address_space();
    let mut frames = vec![Frame { rip, rbp }];
    // The first frame lies above the stack pointer, a little at most.
    let mut low = rsp;
    let mut frame = rbp;
    while frames.len() < MAX_FRAMES {
        let plausible = frame >= low && frame - low <= MAX_FRAME && frame.is_multiple_of(8);
        let Some((next, ret)) = plausible.then(|| link(&space, frame)).flatten() else { break };
        if ret == 0 {
            break;
        }
        frames.push(Frame { rip: ret, rbp: next });
        low = frame.saturating_add(16);
        frame = next;
    }
    frames
}

/// Saved frame pointer and return address at `frame`.
fn link(space: &AddressSpace<'_>, frame: u64) -> Option<(u64, u64)> {
    let [next, ret] = space.read::<[u64; 2]>(frame).ok()?;
    Some((next, ret))
}

#[cfg(test)]
mod tests {
    use percpu_guest::abi;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    const STACK: u64 = 0x8_0000;

    /// A megabyte, identity-mapped, with these saved frame pointers and return addresses.
    fn memory(frames: &[(u64, u64, u64)]) -> GuestMem {
        let regions = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mem = GuestMem::new(regions);
        for level in 0..2 {
            let table = abi::PAGE_TABLES + level * 4096;
            mem.store_u64(table, table + 4096 + 7).unwrap();
        }
        mem.store_u64(abi::PAGE_TABLES + 2 * 4096, 0x87).unwrap();
        for (at, next, ret) in frames {
            mem.store_u64(*at, *next).unwrap();
            mem.store_u64(*at + 8, *ret).unwrap();
        }
        mem
    }

    fn trace(frames: &[(u64, u64, u64)], rbp: u64) -> Vec<u64> {
        backtrace(&memory(frames), 1, rbp, STACK).iter().map(|frame| frame.rip).collect()
    }

    #[test]
    fn chain_is_followed_to_its_end() {
        let frames = [(STACK + 16, STACK + 64, 2), (STACK + 64, STACK + 256, 3)];
        let end = [(STACK + 256, 0, 0)];
        let all: Vec<_> = frames.into_iter().chain(end).collect();
        assert_eq!(trace(&all, STACK + 16), [1, 2, 3]);
    }

    #[test]
    fn broken_chains_end_early() {
        // In a circle, downwards, off the stack, outside memory, unaligned.
        assert_eq!(trace(&[(STACK, STACK, 2)], STACK), [1, 2]);
        assert_eq!(trace(&[(STACK + 64, STACK, 2), (STACK, STACK + 64, 3)], STACK + 64), [1, 2]);
        assert_eq!(trace(&[(STACK, STACK + 0x4_0000, 2)], STACK), [1, 2]);
        assert_eq!(trace(&[(STACK, u64::MAX - 7, 2)], STACK), [1, 2]);
        assert_eq!(trace(&[(STACK, STACK + 17, 2)], STACK), [1, 2]);
        assert_eq!(trace(&[], 0), [1]);
        assert_eq!(trace(&[], u64::MAX - 7), [1]);
    }

    #[test]
    fn an_endless_chain_is_cut_off() {
        let frames: Vec<_> =
            (0..100).map(|n| (STACK + 16 * n, STACK + 16 * (n + 1), n + 2)).collect();
        assert_eq!(trace(&frames, STACK).len(), MAX_FRAMES);
    }
}
