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
