//! The dynamic allocator on real mappings.

use percpu_core::alloc::{self, AllocFlags, PerCpuBox};
use percpu_core::cpu::{self, CpuId};
use percpu_core::var::PerCpuPtr;
use percpu_core::{area, percpu};

use percpu_guest::kernel::testing::run_on;

percpu! {
    static IN_FIRST_CHUNK: PerCpu<u64> = 0;
}

#[percpu_guest::test(cpus = 2, possible = 4)]
fn memory_is_zero_on_every_cpu_also_on_reuse() {
    for round in 0..40 {
        let size = 4 + round * 97;
        let pointer = alloc::global().alloc(size, 8, AllocFlags::NONE).expect("memory");
        for cpu in cpu::booted_once().iter() {
            let bytes = pointer.on(cpu);
            for i in 0..size {
                // SAFETY: the area is ours and has this size.
                unsafe {
                    assert_eq!(bytes.add(i).read_volatile(), 0, "CPU {cpu}, byte {i} of {size}");
                    bytes.add(i).write_volatile(0xa5);
                }
            }
        }
        // SAFETY: ours, and not used again.
        unsafe { alloc::global().free(pointer) }.expect("just allocated");
    }
}

#[percpu_guest::test(cpus = 1, possible = 2)]
fn the_allocator_grows_by_chunks() {
    const LARGE: usize = 32 << 10;
    let mut areas = [const { None }; 6];
    for (i, area) in areas.iter_mut().enumerate() {
        let pointer = alloc::global().alloc(LARGE, 64, AllocFlags::NONE).expect("memory");
        for cpu in cpu::booted_once().iter() {
            let words = pointer.on(cpu).cast::<u64>();
            // SAFETY: the area is ours; both words lie inside it.
            unsafe {
                words.write(i as u64 * 2 + cpu.index() as u64);
                words.add(LARGE / 8 - 1).write(!0);
            }
        }
        *area = Some(pointer);
    }
    for (i, area) in areas.iter().enumerate() {
        let pointer = area.expect("filled above");
        for cpu in cpu::booted_once().iter() {
            // SAFETY: as above.
            let word = unsafe { pointer.on(cpu).cast::<u64>().read() };
            assert_eq!(word, i as u64 * 2 + cpu.index() as u64);
        }
        // SAFETY: ours, and not used again.
        unsafe { alloc::global().free(pointer) }.expect("just allocated");
    }
}

#[percpu_guest::test(cpus = 2, possible = 2)]
fn a_box_has_a_value_for_each_cpu() {
    let counts: PerCpuBox<u64> = PerCpuBox::try_new_zeroed().expect("memory");
    static POINTER: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(0);
    POINTER.store(counts.ptr().raw(), core::sync::atomic::Ordering::Release);
    run_on(1, || {
        let raw = POINTER.load(core::sync::atomic::Ordering::Acquire);
        // SAFETY: the box lives until the end of the test, which waits for this.
        unsafe { percpu_core::var::PerCpuPtr::<u64>::from_raw(raw).add(5) };
    });
    let on = |n| counts.read_on(CpuId::new(n).expect("a possible CPU"));
    assert_eq!((on(0), on(1)), (0, 5));
}

#[percpu_guest::test(cpus = 1, possible = 3)]
fn the_physical_address_leads_to_the_same_memory() {
    fn check(pointer: PerCpuPtr<u64>, what: &str) {
        for cpu in cpu::possible().iter() {
            if !cpu::booted_once().contains(cpu) {
                assert_eq!(area::phys_addr(pointer, cpu), None, "{what}: CPU {cpu} has no unit");
                continue;
            }
            let virt = pointer.on(cpu);
            let phys = area::phys_addr(pointer, cpu).expect(what);
            assert_ne!(phys, virt.addr(), "{what}: chunks are not mapped one to one");
            assert_eq!(phys % 4096, virt.addr() % 4096);
            let phys = core::ptr::with_exposed_provenance_mut::<u64>(phys);
            let mark = 0xfeed_0000 + cpu.index() as u64;
            // SAFETY: the variable is this test's, and memory is mapped one to one below the chunk
            // space; both addresses are of the same word, used one after the other.
            unsafe {
                virt.write_volatile(mark);
                assert_eq!(phys.read_volatile(), mark, "{what}, CPU {cpu}");
                phys.write_volatile(!mark);
                assert_eq!(virt.read_volatile(), !mark, "{what}, CPU {cpu}");
            }
        }
    }

    check(IN_FIRST_CHUNK.ptr(), "static");
    // Large areas soon lie in chunks of their own; each is looked at where its second page begins.
    let mut areas = [const { None }; 6];
    for area in &mut areas {
        let pointer = alloc::global().alloc(32 << 10, 4096, AllocFlags::NONE).expect("memory");
        check(PerCpuPtr::from_raw(pointer.raw() + 4096), "dynamic");
        *area = Some(pointer);
    }
    assert!(alloc::global().statistics().chunks > 2);
    let last = areas[5].expect("filled above");
    for pointer in areas.into_iter().flatten() {
        // SAFETY: ours, and not used again.
        unsafe { alloc::global().free(pointer) }.expect("just allocated");
    }
    alloc::global().balance();
    let boot = CpuId::new(0).expect("CPU 0 is possible");
    assert_eq!(area::phys_addr(last, boot), None, "its chunk is gone");
}

#[percpu_guest::test(cpus = 2, possible = 4)]
fn a_leak_is_found_with_its_site() {
    let tracker = alloc::global().leak_tracker();
    tracker.start().expect("memory");
    let new = || alloc::global().alloc(48, 8, AllocFlags::NONE).expect("memory");
    let (kept, child) = (new(), new());
    let line = line!() + 1;
    let lost = alloc::global().alloc(24, 8, AllocFlags::NONE).expect("memory");
    let boot = CpuId::new(0).expect("CPU 0 is possible");
    // SAFETY: the area is ours, and the word lies inside it.
    unsafe { kept.on(boot).cast::<usize>().add(5).write(child.on(boot).expose_provenance() + 47) };

    // The number of a per-CPU pointer, where only this search can find it.
    let roots = [kept.raw()];
    let start = roots.as_ptr().expose_provenance();
    let mut found = None;
    // SAFETY: the array is readable, and nobody writes it.
    let scan = unsafe {
        tracker.scan(core::iter::once(start..start + size_of_val(&roots)), |leak| {
            assert!(leak.pointer != kept.raw() && leak.pointer != child.raw(), "{leak}");
            if leak.pointer == lost.raw() {
                found = Some((leak.size, leak.site.line()));
                assert!(leak.site.file().ends_with("tests/allocator.rs"), "{leak}");
            }
        })
    };
    assert!(scan.expect("the tracker is on").areas >= 3);
    assert_eq!(found, Some((24, line)));
    for pointer in [kept, child, lost] {
        // SAFETY: ours, and not used again.
        unsafe { alloc::global().free(pointer) }.expect("just allocated");
    }
    tracker.stop();
}
