//! What the allocator tells about itself, in numbers and as a report.

mod common;

use common::{Shape, World, checker};
use percpu_core::alloc::{AllocFlags, Allocator, MAX_ALLOC_SIZE, Statistics};
use percpu_core::area::Config;
use percpu_core::view::CHUNK_RESERVED;

const PAGE: u64 = 4096;
const CPUS: u64 = 3;

/// The report with the chunks' addresses replaced: they differ from run to run.
fn report(world: &World) -> String {
    let mut text = world.allocator.report().to_string();
    let bases: Vec<u64> = {
        let picture = checker::picture(world.allocator.view_address());
        picture.chunks.values().map(|chunk| chunk.view.base).collect()
    };
    let first = world.allocator.first_chunk().unwrap().base();
    for base in bases {
        let name = if base as usize == first { "first" } else { "other" };
        text = text.replace(&format!("{base:<#18x}"), &format!("{name:<18}"));
    }
    // So do the tables' sizes, by the layout of types.
    let metadata = world.allocator.statistics().metadata_bytes.to_string();
    text = text.replace(&format!("metadata   {metadata} "), "metadata   N ");
    // And the order of chunks is that of their addresses' hashes.
    let (head, chunks) = text.split_at(text.find("first ").expect("the first chunk"));
    let mut chunks: Vec<&str> = chunks.split_inclusive('\n').collect();
    chunks.sort_unstable();
    format!("{head}{}", chunks.concat())
}

#[test]
fn a_report_shows_the_whole_and_each_chunk() {
    let config = Config { reserved_size: 1024, ..Config::default() };
    let mut world = World::new(&Shape { config, ..Shape::default() });
    world.alloc(64, 64, AllocFlags::RESERVED).unwrap();
    let areas: Vec<usize> =
        (0..6).map(|n| world.alloc(200 + n, 8, AllocFlags::NONE).unwrap()).collect();
    let large = world.alloc(MAX_ALLOC_SIZE, 4, AllocFlags::NONE).unwrap();
    world.alloc(MAX_ALLOC_SIZE, 4, AllocFlags::NONE).unwrap();
    world.free(areas[1]);
    world.free(areas[4]);
    world.free(large);
    world.allocator.balance();
    world.check();
    let expected = "\
per-CPU memory of 3 CPUs; bytes are those of one CPU
unit       32768 bytes: 100 static, 1024 reserved, 31644 dynamic
areas      6, at most 9; 9 allocated, 3 freed
live       33648 bytes, at most 66824; areas of 64 to 32768
populated  65536 bytes, at most 98304; 7 pages empty
chunks     3, at most 3; 98304 bytes
metadata   N bytes in all

chunk              slot              free  longest   median   runs 4-byte  areas     live  pages  empty
first              12               30828    30400      208      5      2      4      816      8      7
first              reserved           960      932       28      2      0      1       64      8      0
other              free             32768    32768    32768      1      0      0        0      0      0
other              full                 0        0        0      0      0      1    32768      8      0
";
    assert_eq!(report(&world), expected);
}

/// Compares the sums with what the model and the platform know, and with each other.
fn check_sums(world: &World, metadata_of_others: usize) {
    let statistics = world.allocator.statistics();
    let usage = world.fake.usage();
    let model: usize = world.live.values().map(|area| area.size).sum();
    assert_eq!(statistics.live_bytes, model as u64);
    assert_eq!(statistics.populated_bytes, usage.pages.len() as u64 / CPUS * PAGE);
    let reserved: usize = usage.reserved.values().sum();
    assert_eq!(statistics.reserved_bytes, reserved as u64 / CPUS);
    assert!(statistics.peak_bytes >= statistics.live_bytes);
    assert!(statistics.peak_populated_bytes >= statistics.populated_bytes);
    let metadata: usize = usage.meta.values().map(|layout| layout.size()).sum();
    assert_eq!(statistics.metadata_bytes as usize, metadata - metadata_of_others);

    let mut sums = (0, 0, 0);
    world.allocator.for_each_chunk(|chunk| {
        let is_reserved = chunk.flags & CHUNK_RESERVED != 0;
        let pages = if is_reserved { 0 } else { chunk.populated_pages };
        sums.0 += u64::from(chunk.areas);
        sums.1 += u64::from(chunk.live_bytes);
        sums.2 += u64::from(pages) * PAGE;
    });
    let Statistics { live, live_bytes, populated_bytes, .. } = statistics;
    assert_eq!(sums, (live, live_bytes, populated_bytes));
}

#[test]
fn sums_agree_with_the_model_and_the_platform() {
    let config = Config { reserved_size: 1024, ..Config::default() };
    let mut world = World::new(&Shape { config, ..Shape::default() });
    // What the first chunk's tables take.
    let metadata: usize = world.fake.usage().meta.values().map(|layout| layout.size()).sum();
    let others = metadata - world.allocator.statistics().metadata_bytes as usize;
    assert!(others > 0 && others < 1024, "{others} bytes");
    world.allocator.leak_tracker().start().unwrap();
    check_sums(&world, others);
    world.alloc(64, 64, AllocFlags::RESERVED).unwrap();
    // Growth, some of which fails; holes; chunks that lose their pages, and that go.
    for round in 0..12 {
        for n in 1..12 {
            if n % 4 == 3 {
                world.fake.fail_nth(round % 5);
            }
            let size = 1 + (n * n * 571 + round * 97) % 12_000;
            let _ = world.alloc(size, 8, AllocFlags::NONE);
            world.fake.stop_failing();
            check_sums(&world, others);
        }
        let live: Vec<usize> = world.live.keys().copied().collect();
        live.into_iter().skip(round % 3).step_by(3).for_each(|ptr| world.free(ptr));
        check_sums(&world, others);
        if round % 2 == 1 {
            world.allocator.balance();
            check_sums(&world, others);
        }
    }
    let statistics = world.allocator.statistics();
    assert!(statistics.peak_chunks > 4);
    world.free_all();
    world.allocator.balance();
    check_sums(&world, others);
    let after = world.allocator.statistics();
    assert_eq!((after.live, after.live_bytes), (0, 0));
    assert!(after.populated_bytes < statistics.peak_populated_bytes);
    assert_eq!(after.peak_bytes, statistics.peak_bytes);
    world.allocator.leak_tracker().stop();
    check_sums(&world, others);
    world.check();
}

#[test]
fn before_set_up_a_report_says_so() {
    let _fake = common::fake::install();
    let allocator = Allocator::<common::fake::Fake>::new();
    assert_eq!(allocator.report().to_string(), "per-CPU memory is not set up\n");
    assert_eq!(allocator.statistics().metadata_bytes, 0);
}
