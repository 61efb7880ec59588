//! The allocator under true concurrency: threads that allocate, free each other's areas, balance.

mod common;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::scale::scaled;
use common::threads::Meeting;
use common::{Shape, World, checker};
use percpu_core::alloc::AllocFlags;
use percpu_core::var::PerCpuPtr;

const THREADS: usize = 3;
const ROUNDS: usize = scaled(1500);

/// A xorshift generator; enough for sizes.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 as usize % n
    }
}

fn size(random: &mut Random) -> usize {
    match random.below(16) {
        0 => 1 + random.below(32768),
        1..4 => 1 + random.below(5000),
        _ => 1 + random.below(100),
    }
}

/// The bytes of an area say whose it is: its pointer, which no other live area has.
fn mark(world: &World, ptr: usize, size: usize, write: bool) {
    world.for_each_copy(ptr, size & !3, |cpu, bytes| {
        for word in bytes.chunks_exact_mut(4).step_by(16) {
            let expected = ((ptr as u32) ^ cpu).to_ne_bytes();
            if write {
                assert_eq!(word, [0; 4], "I14: not zero on CPU {cpu}");
                word.copy_from_slice(&expected);
            } else {
                assert_eq!(word, expected, "the area at {ptr:#x} was overwritten");
            }
        }
    });
}

fn free(world: &World, (ptr, size): (usize, usize)) {
    mark(world, ptr, size, false);
    // SAFETY: whoever took the area out of the pool is its only owner.
    unsafe { world.allocator.free(PerCpuPtr::from_raw(ptr)) }.unwrap();
}

#[test]
fn areas_stay_disjoint_while_threads_allocate_free_and_balance() {
    let world = World::new(&Shape::default());
    // Areas that any thread may free.
    let pool: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let callers: [_; THREADS] = std::array::from_fn(|n| {
            let (world, pool) = (&world, &pool);
            scope.spawn(move || {
                world.fake.adopt();
                let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ n as u64);
                for _ in 0..ROUNDS {
                    if random.below(20) < 11 {
                        let size = size(&mut random);
                        let flags = if random.below(4) == 0 {
                            AllocFlags::ATOMIC
                        } else {
                            AllocFlags::NONE
                        };
                        if let Ok(ptr) = world.allocator.alloc(size, 4, flags) {
                            mark(world, ptr.raw(), size, true);
                            pool.lock().unwrap().push((ptr.raw(), size));
                        }
                    } else {
                        let area = {
                            let mut pool = pool.lock().unwrap();
                            let len = pool.len();
                            (len != 0).then(|| pool.swap_remove(random.below(len)))
                        };
                        if let Some(area) = area {
                            free(world, area);
                        }
                    }
                }
            })
        });
        // A thread in which a check has failed is finished, too.
        while !callers.iter().all(|caller| caller.is_finished()) {
            if world.allocator.balance_wanted() {
                world.allocator.balance();
            }
            thread::yield_now();
        }
    });
    let statistics = world.allocator.statistics();
    let left = pool.into_inner().unwrap();
    assert_eq!(statistics.live, left.len() as u64);
    left.into_iter().for_each(|area| free(&world, area));
    world.allocator.balance();
    world.check();
    checker::check_balanced(&world);
}

#[test]
fn one_of_two_frees_of_an_area_is_refused_whoever_is_first() {
    let world = World::new(&Shape::default());
    for _ in 0..scaled(200) {
        let ptr = world.allocator.alloc(64, 4, AllocFlags::NONE).unwrap();
        let (refused, barrier) = (AtomicBool::new(false), Meeting::new(2));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    world.fake.adopt();
                    barrier.wait();
                    if world.free_raw(ptr.raw()).is_err() {
                        assert!(!refused.swap(true, Ordering::Relaxed), "both were refused");
                    }
                });
            }
        });
        assert!(refused.into_inner());
    }
    world.check();
}
