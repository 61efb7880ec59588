//! What the benchmarks measure: sequences of allocations and frees, and what can replay them.
//!
//! A load has a prologue, which brings the allocator into the state of interest, and a timed part.
//! Both programs of this directory use it: `alloc.rs` (criterion, for whoever changes the
//! allocator) and `report.rs` (`cargo xtask bench alloc`: one table, and the same as JSON).

// Each program uses a part of this.
#![allow(dead_code)]

pub mod arena;
pub mod baseline;
pub mod flat;
pub mod random;
pub mod subject;
pub mod trace;

use random::Random;

/// One call of the allocator. `id` stands for the area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Alloc { id: u32, size: u16, align: u16 },
    Free { id: u32 },
}

/// The first chunk's sizes, which decide the size of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Those of an x86 server kernel: units of 256 KiB.
    Server,
    /// The smallest there are, units of 32 KiB: many chunks in little memory.
    Small,
}

/// A sequence of calls, of which the first part is not timed.
#[derive(Clone, Debug)]
pub struct Load {
    pub name: String,
    pub shape: Shape,
    pub prologue: Vec<Operation>,
    pub timed: Vec<Operation>,
    /// Timed calls that are counted as one operation.
    pub calls_per_op: usize,
    /// Whether the timed part ends where it began, so that it can be done again.
    pub repeats: bool,
}

impl Load {
    /// One more than the highest id.
    pub fn ids(&self) -> usize {
        let all = self.prologue.iter().chain(&self.timed);
        all.map(|op| match *op {
            Operation::Alloc { id, .. } | Operation::Free { id } => id as usize + 1,
        })
        .max()
        .unwrap_or(0)
    }

    /// Timed operations.
    pub fn ops(&self) -> usize {
        self.timed.len() / self.calls_per_op
    }

    /// Bytes that are live at the end, on one CPU.
    pub fn live_bytes(&self) -> u64 {
        let mut live = vec![0; self.ids()];
        for op in self.prologue.iter().chain(&self.timed) {
            match *op {
                Operation::Alloc { id, size, .. } => live[id as usize] = u64::from(size),
                Operation::Free { id } => live[id as usize] = 0,
            }
        }
        live.iter().sum()
    }

    /// A recorded trace, of which the first lines, where memory is got, are not timed.
    pub fn trace() -> Self {
        let all = trace::linux_containers();
        let (prologue, timed) = all.split_at(all.len() * 4 / 9);
        Self {
            name: "trace of containers".into(),
            shape: Shape::Server,
            prologue: prologue.to_vec(),
            timed: timed.to_vec(),
            calls_per_op: 1,
            repeats: false,
        }
    }

    /// `live` areas, of which a random one is freed and allocated anew, `ops` times.
    fn steady(name: String, live: usize, ops: usize, size: impl Fn(&mut Random) -> u16) -> Self {
        let mut random = Random::new(live as u64);
        let alloc = |id: usize, random: &mut Random| {
            let size = size(random);
            Operation::Alloc { id: id as u32, size, align: size.min(64) }
        };
        let prologue = (0..live).map(|id| alloc(id, &mut random)).collect();
        let mut timed = Vec::with_capacity(2 * ops);
        for _ in 0..ops {
            let id = random.below(live);
            timed.push(Operation::Free { id: id as u32 });
            timed.push(alloc(id, &mut random));
        }
        Self { name, shape: Shape::Server, prologue, timed, calls_per_op: 2, repeats: true }
    }

    /// One size.
    pub fn fixed(size: u16, live: usize, ops: usize) -> Self {
        Self::steady(format!("{size} B, {live} live"), live, ops, |_| size)
    }

    /// Sizes from 4 bytes to a page.
    pub fn mixed(live: usize, ops: usize) -> Self {
        Self::steady(format!("mixed sizes, {live} live"), live, ops, mixed_size)
    }

    /// Allocates `count` areas of 8 bytes.
    pub fn fill(count: usize) -> Self {
        let alloc = |id| Operation::Alloc { id, size: 8, align: 8 };
        Self {
            name: format!("fill with {count}"),
            shape: Shape::Server,
            prologue: Vec::new(),
            timed: (0..count as u32).map(alloc).collect(),
            calls_per_op: 1,
            repeats: false,
        }
    }

    /// Frees what [`fill`](Self::fill) has allocated, in random order.
    pub fn drain(count: usize) -> Self {
        let mut ids: Vec<u32> = (0..count as u32).collect();
        Random::new(count as u64).shuffle(&mut ids);
        Self {
            name: format!("free {count} in random order"),
            prologue: Self::fill(count).timed,
            timed: ids.into_iter().map(|id| Operation::Free { id }).collect(),
            ..Self::fill(0)
        }
    }

    /// Areas of `size` bytes in a chunk in which every other granule is taken, for good.
    ///
    /// With 4 bytes a hole has to be found among many, with more there is none that fits and the
    /// chunk must not be searched again and again.
    pub fn holes(size: u16, ops: usize) -> Self {
        const LIVE: usize = 1000;
        // More than the dynamic part of the first chunk has.
        const GRANULES: u32 = 64 << 10;
        let granule = |id| Operation::Alloc { id, size: 4, align: 4 };
        let mut prologue: Vec<Operation> = (0..GRANULES).map(granule).collect();
        prologue.extend((0..GRANULES).step_by(2).map(|id| Operation::Free { id }));
        // The holes' ids serve again.
        let id = |n: usize| 2 * n as u32;
        let area = |n| Operation::Alloc { id: id(n), size, align: 4 };
        prologue.extend((0..LIVE).map(area));
        let mut random = Random::new(u64::from(size));
        let timed = (0..ops).flat_map(|_| {
            let n = random.below(LIVE);
            [Operation::Free { id: id(n) }, area(n)]
        });
        Self {
            name: format!("holes of 4 B, areas of {size} B"),
            timed: timed.collect(),
            prologue,
            calls_per_op: 2,
            repeats: true,
            ..Self::fill(0)
        }
    }

    /// Mixed sizes in about `chunks` chunks, all of them a tenth free. The timed operations are on
    /// a thousand areas anywhere, so that the chunks cost their searches rather than cache misses.
    pub fn chunks(chunks: usize, ops: usize) -> Self {
        const UNIT: usize = 32 << 10;
        const MOVING: usize = 1000;
        let mut random = Random::new(chunks as u64);
        let mut prologue = Vec::new();
        let mut bytes = 0;
        while bytes < chunks * UNIT {
            let size = mixed_size(&mut random);
            bytes += usize::from(size);
            prologue.push(Operation::Alloc {
                id: prologue.len() as u32,
                size,
                align: size.min(64),
            });
        }
        let mut ids: Vec<usize> = (0..prologue.len()).collect();
        random.shuffle(&mut ids);
        let (gone, rest) = ids.split_at(ids.len() / 10);
        let moving = &rest[..MOVING];
        prologue.extend(gone.iter().map(|&id| Operation::Free { id: id as u32 }));
        let mut timed = Vec::with_capacity(2 * ops);
        for _ in 0..ops {
            let id = moving[random.below(MOVING)] as u32;
            let size = mixed_size(&mut random);
            timed.push(Operation::Free { id });
            timed.push(Operation::Alloc { id, size, align: size.min(64) });
        }
        Self {
            name: format!("about {chunks} chunks"),
            shape: Shape::Small,
            prologue,
            timed,
            calls_per_op: 2,
            repeats: true,
        }
    }
}

/// Small sizes often, a page seldom: (size, of a hundred).
const MIX: [(u16, usize); 10] = [
    (4, 20),
    (8, 30),
    (16, 15),
    (32, 10),
    (64, 10),
    (128, 6),
    (256, 4),
    (512, 3),
    (1024, 1),
    (4096, 1),
];

fn mixed_size(random: &mut Random) -> u16 {
    let mut rest = random.below(100);
    for (size, share) in MIX {
        if rest < share {
            return size;
        }
        rest -= share;
    }
    unreachable!("the shares add up to a hundred")
}
