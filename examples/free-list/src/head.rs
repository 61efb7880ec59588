//! The head of a CPU's list: what a change of the list exchanges in one instruction.

/// No object: the number below the last one of a list.
pub const NONE: u16 = u16::MAX;

/// The head of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The first object, or [`NONE`].
    pub first: u16,
    /// How many there are.
    pub len: u16,
    /// The CPU, from 1, in the upper 8 bits; below, how often the list has changed.
    tag: u32,
}

/// Bits of a tag that count changes. What is prepared and not done while a list changes 16 million times
/// could then be done by mistake.
const CHANGES: u32 = 0x00ff_ffff;

impl Head {
    /// The head of `cpu`'s list when that first comes up: other than any other CPU's.
    pub const fn empty(cpu: u32) -> Self {
        Self { first: NONE, len: 0, tag: (cpu + 1) << 24 }
    }

    /// The head that follows this one.
    pub const fn changed(self, first: u16, len: u16) -> Self {
        Self { first, len, tag: self.tag & !CHANGES | self.tag.wrapping_add(1) & CHANGES }
    }

    /// As a word in memory.
    pub const fn word(self) -> u64 {
        self.first as u64 | (self.len as u64) << 16 | (self.tag as u64) << 32
    }

    /// What a word in memory says.
    pub const fn of(word: u64) -> Self {
        Self { first: word as u16, len: (word >> 16) as u16, tag: (word >> 32) as u32 }
    }
}
