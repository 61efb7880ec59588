//! I18: the offsets are the same in every unit; and who was ever online has a unit (I13).

use std::mem::offset_of;

use percpu_core::view::AreasView;
use percpu_guest::abi::{ControlBlock, control_block};

use super::finding::{Findings, Violation};
use super::layout::Layout;
use crate::memory::{AddressSpace, Following, Wild};

/// I18: for every CPU `ptr(cpu) - ptr(0) = offset[cpu] - offset[0]`, by the offset table, by the
/// allocator's unit offsets and by the first chunk's base alike; and units do not overlap.
///
/// I13: a CPU that was ever online has a unit.
///
/// Holds at any instant: a CPU gets its unit before it is started, and keeps it.
pub(crate) fn check_offsets(space: &AddressSpace<'_>, layout: &Layout, findings: &mut Findings) {
    let possible = layout.possible() as usize;
    // Before the offsets: who was online by now had its unit by now.
    let onlines: Vec<u64> = (0..possible as u32)
        .map(|cpu| control_block(cpu) + offset_of!(ControlBlock, onlines) as u64)
        .map(|at| space.mem().load_u64(at).unwrap_or(0))
        .collect();
    let tables = || {
        let allocator = layout.allocator(space)?;
        let offsets =
            space.words(layout.areas.offset, possible).following(|| "the per-CPU offsets")?;
        let units =
            space.words(allocator.unit_offset, possible).following(|| "the unit offsets")?;
        let areas: AreasView =
            space.read(layout.roots.areas).following(|| "the root of the areas")?;
        Ok::<_, Wild>((allocator, areas, offsets, units))
    };
    let (allocator, areas, offsets, units) = match tables() {
        Ok(tables) => tables,
        Err(violation) => return findings.report(violation),
    };
    findings.checked("I18", possible as u64);
    let first_unit = areas.base.wrapping_sub(areas.template);
    for cpu in 0..possible {
        if offsets[cpu] == 0 && !layout.has_unit(cpu as u32) {
            check_never_online(cpu as u32, onlines[cpu], findings);
            continue;
        }
        let by_chunk = allocator.delta.wrapping_add(units[cpu]);
        let by_areas = first_unit.wrapping_add(units[cpu]);
        let expected = if by_chunk == offsets[cpu] { by_areas } else { by_chunk };
        if offsets[cpu] != expected {
            let detail = format!(
                "per_cpu_offset[{cpu}] is {:#x}, but CPU {cpu}'s unit lies at offset {expected:#x} \
                 from the template",
                offsets[cpu]
            );
            findings.report(
                Violation::new("I18", format!("per_cpu_offset[{cpu}]"), detail)
                    .on(cpu as u32)
                    .values(format_args!("{:#x}", offsets[cpu]), format_args!("{expected:#x}")),
            );
        }
    }
    check_overlap(&units, allocator.unit_size, findings);
}

/// A CPU without a unit has nothing to run on.
fn check_never_online(cpu: u32, onlines: u64, findings: &mut Findings) {
    findings.checked("I13", 1);
    if onlines != 0 {
        let detail = format!(
            "CPU {cpu} has been online {onlines} times, but per_cpu_offset[{cpu}] is 0: it has no unit"
        );
        findings.report(
            Violation::new("I13", format!("unit of CPU {cpu}"), detail)
                .on(cpu)
                .values("no unit", "a unit"),
        );
    }
}

/// No two CPUs' units share a byte.
fn check_overlap(units: &[u64], unit_size: u64, findings: &mut Findings) {
    let mut order: Vec<usize> = (0..units.len()).collect();
    order.sort_by_key(|&cpu| units[cpu]);
    for pair in order.windows(2) {
        let (low, high) = (pair[0], pair[1]);
        let distance = units[high] - units[low];
        if distance < unit_size {
            let detail = format!(
                "CPU {low}'s and CPU {high}'s units are {distance:#x} bytes apart, a unit has \
                 {unit_size:#x}"
            );
            findings.report(
                Violation::new("I18", format!("unit of CPU {high}"), detail)
                    .on(high as u32)
                    .values(format_args!("{distance:#x}"), format_args!("{unit_size:#x}")),
            );
        }
    }
}
