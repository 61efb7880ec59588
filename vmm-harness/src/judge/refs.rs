//! P4, P5, P6: the words of each `percpu_ref`, at rest.

use percpu_core::view::{REF_BIAS, REF_DEAD, REF_OPEN, REF_PERCPU, RefView, ref_count};
use percpu_guest::abi::Holder;

use super::finding::{Findings, Violation};
use super::layout::Layout;
use super::lives::{Life, Stage};
use super::shadow::{Ledger, Shadow};
use super::sums::{LedgerBook, by_cpu};
use crate::memory::{AddressSpace, Following, Wild};

/// No CPU has more references in its word than this, taken or given back: the guest's workload gets
/// nowhere near it.
const FAR: i64 = 1 << 48;

/// Holds every ref against P4, P5 and P6.
pub(crate) fn check(
    space: &AddressSpace<'_>,
    layout: &Layout,
    shadow: &Shadow,
    book: &LedgerBook,
    findings: &mut Findings,
) {
    let refs = shadow.lives.iter().filter(|(_, life)| life.holder == Holder::Ref);
    for (address, life) in refs {
        let Some(seen) = findings.sound(Seen::read(space, layout, address)) else { continue };
        seen.check_mode(findings);
        seen.check_count(life, book, findings);
        if life.stage == Stage::Ended {
            seen.check_empty(life, findings);
        }
    }
}

/// The areas that refs have, by per-CPU pointer, with names.
pub(crate) fn areas(
    space: &AddressSpace<'_>,
    shadow: &Shadow,
    findings: &mut Findings,
) -> Vec<(u64, String)> {
    let refs = shadow.lives.iter().filter(|(_, life)| life.holder == Holder::Ref);
    refs.filter_map(|(address, _)| {
        let view = space.read::<RefView>(address).following(|| format!("ref {address:#x}"));
        Some((findings.sound(view)?.words, format!("the words of ref {address:#x}")))
    })
    .collect()
}

/// A ref as it lies in memory.
struct Seen {
    address: u64,
    shared: u64,
    /// By CPU; a CPU without a unit has a closed one.
    words: Vec<i64>,
}

impl Seen {
    fn read(space: &AddressSpace<'_>, layout: &Layout, address: u64) -> Result<Self, Wild> {
        let view: RefView = space.read(address).following(|| format!("ref {address:#x}"))?;
        let words = (0..layout.possible()).map(|cpu| match layout.address(view.words, cpu) {
            None => Ok(-REF_OPEN),
            Some(at) => {
                space.read(at).following(|| format!("CPU {cpu}'s word of ref {address:#x}"))
            }
        });
        Ok(Self { address, shared: view.shared, words: words.collect::<Result<_, Wild>>()? })
    }

    fn name(&self) -> String {
        format!("ref {:#x}", self.address)
    }

    fn is(&self, flag: u64) -> bool {
        self.shared & flag != 0
    }

    /// What each CPU's open word is more than an open word without references; 0 if it is closed.
    fn balances(&self) -> impl Iterator<Item = i64> + '_ {
        self.words.iter().map(|word| if *word >= 0 { word - REF_OPEN } else { 0 })
    }

    /// P5.
    fn check_mode(&self, findings: &mut Findings) {
        findings.checked("P5", self.words.len() as u64);
        for (cpu, word) in (0u32..).zip(&self.words) {
            let wrong = if *word < 0 {
                None
            } else if !self.is(REF_PERCPU) {
                Some("open in atomic mode")
            } else if (word - REF_OPEN).abs() >= FAR {
                Some("neither open nor closed")
            } else {
                None
            };
            if let Some(wrong) = wrong {
                let detail = format!("CPU {cpu}'s word of {} is {word:#x}: {wrong}", self.name());
                findings.report(
                    Violation::new("P5", self.name(), detail)
                        .on(cpu)
                        .values(format_args!("{word:#x}"), "a closed word"),
                );
            }
        }
        if self.is(REF_DEAD) && self.is(REF_PERCPU) {
            let detail =
                format!("{} is dead and in per-CPU mode ({:#x})", self.name(), self.shared);
            let violation = Violation::new("P5", self.name(), detail);
            findings.report(violation.values("per-CPU mode", "atomic mode"));
        }
    }

    /// P4.
    fn check_count(&self, life: &Life, book: &LedgerBook, findings: &mut Findings) {
        findings.checked("P4", 1);
        let bias = if self.is(REF_PERCPU) { REF_BIAS } else { 0 };
        let in_words = self.balances().fold(0i64, i64::wrapping_add);
        let count = ref_count(self.shared);
        let seen = count.wrapping_sub(bias).wrapping_add(in_words);
        let own = i64::from(life.stage == Stage::Held);
        let held = book.by_threads(Ledger::All(life.slot));
        let expected = held.wrapping_add(own);
        if seen != expected {
            let detail = format!(
                "{} counts {seen} references, expected {expected}: threads hold {held}, it holds itself \
                 {own} times in its life {} ({:?}); shared count {count}, of which {bias} are bias, in \
                 words: {}",
                self.name(),
                life.number,
                life.stage,
                by_cpu(self.balances()),
            );
            findings.report(Violation::new("P4", self.name(), detail).values(seen, expected));
        }
    }

    /// P6.
    fn check_empty(&self, life: &Life, findings: &mut Findings) {
        findings.checked("P6", 1);
        let open = self.words.iter().filter(|word| **word >= 0).count();
        let count = ref_count(self.shared);
        if count != 0 || open != 0 || !self.is(REF_DEAD) {
            let detail = format!(
                "{} was released in its life {}, and its shared word is {:#x} (count {count}), {open} \
                 words are open",
                self.name(),
                life.number,
                self.shared
            );
            let violation = Violation::new("P6", self.name(), detail);
            findings.report(violation.values(format_args!("{:#x}", self.shared), "dead, count 0"));
        }
    }
}
