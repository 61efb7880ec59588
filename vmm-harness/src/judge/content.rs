//! I14 and the content of areas: every byte of every CPU's copy is what its owner left there.

use percpu_guest::abi::{AreaContent, pattern_word};

use super::finding::{Findings, Violation};
use super::layout::Layout;
use super::shadow::{Area, Shadow};
use crate::memory::{AddressSpace, Following};

/// Holds every live area's bytes against what is expected there.
pub(crate) fn check(
    space: &AddressSpace<'_>,
    layout: &Layout,
    shadow: &Shadow,
    findings: &mut Findings,
) {
    // Each copy has memory of its own.
    let units = layout.units().count() as u64;
    let bytes = shadow.areas.values().fold(0u64, |sum, area| sum.saturating_add(area.size.into()));
    if bytes.saturating_mul(units) > space.mem().size() {
        let detail = format!(
            "the live areas have {bytes} bytes on each of {units} CPUs, more than there is memory for"
        );
        return findings.report(Violation::new("I1", "live areas", detail));
    }
    let mut copy = Vec::new();
    for area in shadow.areas.values() {
        let invariant = match area.content {
            AreaContent::Zero => "I14",
            AreaContent::Pattern => "I1",
            AreaContent::Any => continue,
        };
        for cpu in layout.units() {
            let Some(address) = layout.address(area.ptr, cpu) else { continue };
            copy.resize(area.size as usize, 0);
            let read = space
                .read_into(address, &mut copy)
                .following(|| format!("CPU {cpu}'s copy of {area}"));
            if findings.sound(read).is_none() {
                continue;
            }
            findings.checked(invariant, 1);
            let found = match area.content {
                AreaContent::Zero => first_non_zero(&copy),
                // Nobody has filled the copy of a CPU that had none then.
                _ if first_non_zero(&copy).is_none() && came_later(layout, shadow, area, cpu) => {
                    None
                }
                _ => first_off_pattern(&copy, area.seed, cpu),
            };
            if let Some((at, seen, expected)) = found {
                findings.report(violation(invariant, area, cpu, at, seen, expected));
            }
        }
    }
}

/// Whether `cpu` may have got its unit after the area's owner began to fill every copy there was.
fn came_later(layout: &Layout, shadow: &Shadow, area: &Area, cpu: u32) -> bool {
    // A CPU gets its unit before it is first started. If no start was announced, it was not started,
    // and may have got its unit at any time.
    let started = shadow.first_start[cpu as usize].unwrap_or(u64::MAX);
    !layout.had_unit_at_boot(cpu) && started > area.fill_begun
}

/// Position and value of the first byte that is not zero.
fn first_non_zero(copy: &[u8]) -> Option<(usize, u32, u32)> {
    copy.iter().position(|byte| *byte != 0).map(|at| (at, copy[at].into(), 0))
}

/// Position and value of the first whole word that is not the pattern's.
fn first_off_pattern(copy: &[u8], seed: u32, cpu: u32) -> Option<(usize, u32, u32)> {
    let expected = pattern_word(seed, cpu);
    copy.chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
        .enumerate()
        .find(|(_, word)| *word != expected)
        .map(|(n, word)| (4 * n, word, expected))
}

fn violation(
    invariant: &'static str,
    area: &Area,
    cpu: u32,
    at: usize,
    seen: u32,
    expected: u32,
) -> Violation {
    let expected = match area.content {
        AreaContent::Zero => "zero".to_owned(),
        _ => format!("{expected:#x} (its owner's pattern)"),
    };
    let detail =
        format!("CPU {cpu}'s copy of {area} holds {seen:#x} at byte {at}, expected {expected}");
    Violation::new(invariant, area.to_string(), detail)
        .on(cpu)
        .values(format_args!("{seen:#x} at byte {at}"), expected)
}
