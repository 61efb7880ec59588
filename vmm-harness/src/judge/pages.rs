//! I13: what is populated is really there, by the guest's own page tables.

use std::collections::HashMap;

use percpu_core::view::{BLOCK_GRANULES, PAGE};

use super::chunks::Chunk;
use super::finding::{Findings, Violation};
use super::layout::Layout;
use super::owners::Owner;
use crate::memory::AddressSpace;

/// I13: pages under a live area are populated.
pub(crate) fn check_owners(chunk: &Chunk, owners: &[Owner], findings: &mut Findings) {
    for owner in owners {
        let pages = owner.run.start / BLOCK_GRANULES..owner.run.end().div_ceil(BLOCK_GRANULES);
        findings.checked("I13", u64::from(pages.end - pages.start));
        let hole = chunk.populated.next(false, pages.clone());
        if hole < pages.end {
            let detail = format!(
                "{} lies on page {hole} of chunk {:#x}, which is not populated",
                owner.name, chunk.address
            );
            findings.report(
                Violation::new("I13", format!("page {hole} of {}", chunk.name()), detail)
                    .values("not populated", "populated"),
            );
        }
    }
}

/// I13: every populated page is mapped in the unit of every CPU that has one, each to memory of its own.
pub(crate) fn check_mapped(
    space: &AddressSpace<'_>,
    layout: &Layout,
    chunks: &[Chunk],
    findings: &mut Findings,
) {
    // A page is populated on each CPU by memory of its own, and in two chunks at most.
    let most = 2 * space.mem().size() / u64::from(PAGE);
    let mut looked_at = 0;
    // Virtual page by frame; a page that two chunks share is one page.
    let mut frames: HashMap<u64, u64> = HashMap::new();
    for chunk in chunks {
        let pages = (0..chunk.view.nr_pages).filter(|page| chunk.populated.get(*page));
        for page in pages {
            for cpu in layout.units() {
                looked_at += 1;
                if looked_at > most {
                    let detail = "more pages are marked populated than there is memory for";
                    return findings.report(Violation::new("I13", "populated pages", detail));
                }
                findings.checked("I13", 1);
                let offset = layout.unit_offsets[cpu as usize];
                let address = chunk.at(page * BLOCK_GRANULES).wrapping_add(offset);
                let frame = space
                    .translate(address)
                    .and_then(|frame| space.mem().slice(frame, PAGE as usize).map(|_| frame));
                let wrong = match frame {
                    Err(wild) => format!("at {address:#x} it is not mapped ({})", wild.why),
                    Ok(frame) => match frames.insert(frame, address) {
                        Some(other) if other != address => {
                            format!("{address:#x} and {other:#x} share the frame {frame:#x}")
                        }
                        _ => continue,
                    },
                };
                let detail = format!(
                    "page {page} of chunk {:#x} is marked populated, but in CPU {cpu}'s unit {wrong}",
                    chunk.address
                );
                findings.report(
                    Violation::new("I13", format!("page {page} of {}", chunk.name()), detail)
                        .on(cpu)
                        .values(wrong, "a frame of its own"),
                );
            }
        }
    }
}
