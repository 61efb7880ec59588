//! A million random operations against the model that knows only intervals.
//!
//! `allocator_model` shrinks what it finds, but its runs are short. These go on until chunks have
//! come, been fragmented, depopulated and given back many times, and areas have waited in the caches
//! of several CPUs.

mod common;

use common::fake;
use common::random::Random;
use common::scale::{INTERPRETED, scaled};
use common::{Shape, World, checker, no_room, two_groups};
use percpu_core::alloc::{AllocError, AllocFlags, FreeError, MAX_ALLOC_SIZE};
use percpu_core::area::Config;

/// Operations on each shape, all checked or most of them not.
const ALL_CHECKED: usize = scaled(4_000);
const MANY: usize = scaled(200_000);

fn shapes() -> Vec<Shape> {
    let config = Config::default();
    let reserved = Config { reserved_size: 1024, ..config };
    let shapes = vec![
        Shape { config: reserved, ..Shape::default() },
        Shape { cpus: vec![0], static_size: 0, config },
        Shape {
            cpus: vec![1, 4, 6, 7],
            static_size: 9001,
            config: Config { distance: two_groups, ..reserved },
        },
        Shape {
            cpus: vec![0, 3],
            static_size: 4096,
            config: Config { reserved_size: 8192, dyn_size: 12 << 10, ..config },
        },
        // Units of 128 KiB: larger than the largest area.
        Shape { config: Config { atom_size: 128 << 10, ..config }, ..Shape::default() },
    ];
    if INTERPRETED { shapes[..1].to_vec() } else { shapes }
}

/// A world under random operations.
struct Churn {
    world: World,
    random: Random,
    /// Pointers of live areas, in no order.
    live: Vec<usize>,
    live_bytes: usize,
    /// Areas are rather freed than allocated from here on, until few are left.
    most_bytes: usize,
    draining: bool,
    /// A pointer that was freed lately.
    freed: Option<usize>,
}

impl Churn {
    fn new(shape: &Shape, most_bytes: usize) -> Self {
        Self {
            world: World::new(shape),
            random: Random::new(),
            live: Vec::new(),
            live_bytes: 0,
            most_bytes,
            draining: false,
            freed: None,
        }
    }

    fn step(&mut self) {
        match self.random.below(1000) {
            0..4 => self.balance(),
            4..24 => self.refused_free(),
            24..34 => self.refused_alloc(),
            34..44 => self.failing_alloc(),
            44..46 => self.thin_out(),
            46..50 => self.world.allocator.drain_caches(),
            50..100 => self.migrate(),
            n => {
                let allocs = if self.draining { 300 } else { 600 };
                if n < 100 + allocs { self.alloc() } else { self.free() }
            }
        }
        if self.live_bytes >= self.most_bytes {
            self.draining = true;
        } else if self.live_bytes < self.most_bytes / 8 {
            self.draining = false;
        }
    }

    fn size(&mut self) -> usize {
        match self.random.below(100) {
            0..60 => 1 + self.random.below(64),
            60..85 => 1 + self.random.below(1024),
            85..96 => 1 + self.random.below(5000),
            96..98 => 1 + self.random.below(MAX_ALLOC_SIZE),
            _ => self.random.pick(&[4, 8, 4092, 4096, 4100, 8192, 32764, 32768]),
        }
    }

    fn align(&mut self) -> usize {
        match self.random.below(10) {
            0..6 => 1,
            6..9 => 1 << self.random.below(7),
            _ => 1 << self.random.below(13),
        }
    }

    fn flags(&mut self) -> AllocFlags {
        let flags = [AllocFlags::NONE, AllocFlags::NONE, AllocFlags::NONE, AllocFlags::ATOMIC];
        if self.random.one_in(20) {
            AllocFlags::RESERVED | self.random.pick(&flags)
        } else {
            self.random.pick(&flags)
        }
    }

    fn alloc(&mut self) {
        let (size, align, flags) = (self.size(), self.align(), self.flags());
        let before = self.world.allocator.statistics().live;
        match self.world.alloc(size, align, flags) {
            Ok(ptr) => {
                self.live.push(ptr);
                self.live_bytes += self.world.live[&ptr].size;
                assert_eq!(self.world.allocator.statistics().live, before + 1);
            }
            Err(error) => {
                assert_eq!(error, no_room(flags));
                assert_eq!(self.world.allocator.statistics().live, before);
            }
        }
    }

    /// An allocation during which the platform has no memory, from some call on or just once.
    fn failing_alloc(&mut self) {
        let n = self.random.below(8);
        self.world.fake.fail_nth(n);
        self.world.fake.lock().fail_from_then_on = self.random.one_in(2);
        let before = self.world.fake.usage();
        let live = self.live.len();
        self.alloc();
        self.world.fake.stop_failing();
        if self.live.len() == live {
            assert_eq!(self.world.fake.usage(), before, "a failure leaked or lost memory");
        }
    }

    fn free(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let n = self.random.below(self.live.len());
        let ptr = self.live.swap_remove(n);
        self.live_bytes -= self.world.live[&ptr].size;
        self.world.free(ptr);
        self.freed = Some(ptr);
    }

    /// Frees most areas at random, so that what is left lies in chunks that are mostly empty.
    fn thin_out(&mut self) {
        let count = self.live.len() / self.random.pick(&[2, 3, 8]);
        (0..count).for_each(|_| self.free());
    }

    /// Goes to another CPU, or to none that has a cache.
    fn migrate(&mut self) {
        let cpu = self.random.pick(&self.world.cpus);
        fake::use_cache_of(if self.random.one_in(8) { fake::NO_CACHE } else { cpu });
    }

    fn balance(&mut self) {
        let fails = self.random.one_in(4);
        if fails {
            let n = self.random.below(6);
            self.world.fake.fail_nth(n);
        }
        self.world.allocator.balance();
        self.world.fake.stop_failing();
        checker::check_balanced(&self.world);
    }

    /// A free of what is no area: inside one, free already, of the static part, or anywhere.
    fn refused_free(&mut self) {
        let statistics = self.world.allocator.statistics();
        match self.random.below(5) {
            0 if !self.live.is_empty() => {
                let ptr = self.random.pick(&self.live);
                let inside = self.random.below(self.world.live[&ptr].size);
                if inside != 0 {
                    let ptr = ptr + inside;
                    assert_eq!(self.world.free_raw(ptr), Err(FreeError::Interior(ptr)));
                }
            }
            1 => {
                let freed = self.freed.filter(|ptr| !self.world.live.contains_key(ptr));
                if let Some(ptr) = freed {
                    self.world.free_raw(ptr).unwrap_err();
                }
            }
            2 if self.world.static_size != 0 => {
                let ptr = self.world.first_static() + self.random.below(self.world.static_size);
                assert_eq!(self.world.free_raw(ptr), Err(FreeError::Static(ptr)));
            }
            3 => assert_eq!(self.world.free_raw(0), Ok(())),
            _ => {
                let ptr = self.random.next() as usize | 1;
                self.world.free_raw(ptr).unwrap_err();
            }
        }
        assert_eq!(
            self.world.allocator.statistics(),
            statistics,
            "a refused free changed something"
        );
    }

    fn refused_alloc(&mut self) {
        let flags = self.flags();
        let size = self.random.pick(&[0, MAX_ALLOC_SIZE + 1, usize::MAX]);
        assert_eq!(self.world.alloc(size, 8, flags), Err(AllocError::Size(size)));
        let align = self.random.pick(&[0, 3, 8192]);
        assert_eq!(self.world.alloc(8, align, flags), Err(AllocError::Align(align)));
    }

    /// Frees everything, and sees whether everything is there again.
    fn end(mut self) {
        while !self.live.is_empty() {
            self.free();
        }
        self.world.allocator.balance();
        self.world.check();
        checker::check_balanced(&self.world);
        let picture = checker::picture(self.world.allocator.view_address());
        for chunk in picture.chunks.values() {
            assert_eq!(chunk.view.md.contig_hint * 4, chunk.view.free_bytes, "one run again");
        }
        let fake = self.world.fake.clone();
        drop(self.world);
        let usage = fake.usage();
        assert!(usage.meta.is_empty() && usage.reserved.is_empty() && usage.pages.is_empty());
    }
}

#[test]
fn every_invariant_holds_after_each_of_twenty_thousand_operations() {
    for shape in shapes() {
        let mut churn = Churn::new(&shape, 100 << 10);
        for _ in 0..ALL_CHECKED {
            churn.step();
            churn.world.check();
        }
        churn.end();
    }
}

#[test]
fn a_million_operations_lose_nothing() {
    for shape in shapes() {
        let mut churn = Churn::new(&shape, 2 << 20);
        for n in 0..MANY {
            churn.step();
            if n % (MANY / 40) == 0 {
                churn.world.check();
            }
        }
        churn.end();
    }
}
