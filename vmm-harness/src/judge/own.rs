//! Checks of a guest's own: what its author knows must hold, judged like the rest.
//!
//! A [`Check`] reads the guest through a [`GuestView`], where every address is translated and every
//! pointer may lead nowhere: what it cannot read it passes on by `?`, and it is a finding. What it finds
//! goes into the same reports as the judge's own invariants, under the check's name.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use object::{Object, ObjectSymbol};
use percpu_core::view::View;
use percpu_guest::abi::{Event, LEDGER_SLOTS};
use rustc_demangle::demangle;

use super::finding::{self, Findings, Violation};
use super::layout::Layout;
use super::shadow::{Ledger, Shadow};
use super::sums::LedgerBook;
use crate::memory::{AddressSpace, Following, GuestMem, Why, Wild};

/// Words that are read at once, at most: whatever a corrupted length says.
const MOST_WORDS: usize = 1 << 20;

/// Something that must hold in a guest, by its author.
///
/// Each run has one of its own, made by [`Default`]. That it panics is a finding, too.
pub trait Check: Send {
    /// Its name in reports: short, and none that the judge uses itself (`I7`, `K1`, `S2`).
    fn name(&self) -> &'static str;

    /// What must hold, in a line.
    fn meaning(&self) -> &'static str;

    /// Looks while the guest runs, which may change anything between two reads.
    fn at_any_instant(
        &mut self,
        _guest: &GuestView<'_>,
        _found: &mut Found<'_>,
    ) -> Result<(), Wild> {
        Ok(())
    }

    /// Looks while all threads of workloads stand between two operations, no interrupt handler of
    /// theirs runs, and no CPU is on its way up or down. What it finds counts if it finds it again.
    fn at_rest(&mut self, _guest: &GuestView<'_>, _found: &mut Found<'_>) -> Result<(), Wild> {
        Ok(())
    }

    /// Follows what the guest announces, in the order in which it happened: CPUs that come and go, areas,
    /// and what the guest says to its own checks by `events::note`, [`EventKind::Note`].
    ///
    /// [`EventKind::Note`]: percpu_guest::abi::EventKind::Note
    fn on_event(&mut self, _event: &Event, _found: &mut Found<'_>) {}
}

/// The checks of a guest, made anew for each run.
#[derive(Clone, Default)]
pub struct Checks(Vec<fn() -> Box<dyn Check>>);

impl Checks {
    /// None.
    pub fn none() -> Self {
        Self::default()
    }

    /// One more.
    pub fn with<C: Check + Default + 'static>(mut self) -> Self {
        let check = C::default();
        finding::learn(check.name(), check.meaning());
        self.0.push(|| Box::new(C::default()));
        self
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Addresses of an image's statics, by name.
#[derive(Debug, Default)]
pub struct Statics(HashMap<String, Vec<u64>>);

impl Statics {
    /// Those of an ELF file; none if it is none.
    pub fn load(elf: &[u8]) -> Self {
        let mut statics = HashMap::<String, Vec<u64>>::new();
        let Ok(elf) = object::File::parse(elf) else { return Self::default() };
        for symbol in elf.symbols().filter(|symbol| symbol.is_definition()) {
            let Ok(name) = symbol.name() else { continue };
            // What the compiler has put behind the name of one that it made local.
            let name = name.split(".llvm.").next().unwrap_or(name);
            let addresses = statics.entry(format!("{:#}", demangle(name))).or_default();
            if !addresses.contains(&symbol.address()) {
                addresses.push(symbol.address());
            }
        }
        Self(statics)
    }

    /// The one of this name.
    fn find(&self, name: &str) -> Result<u64, Wild> {
        let none = &Vec::new();
        match self.0.get(name).unwrap_or(none).as_slice() {
            [address] => Ok(*address),
            [] => Err(Wild::new(0, 0, Why::NoSymbol)),
            _ => Err(Wild::new(0, 0, Why::ManySymbols)),
        }
        .following(|| format!("the static {name}"))
    }
}

/// What a check sees of the guest: its memory, bounds-checked, and nothing else.
pub struct GuestView<'a> {
    pub(super) space: &'a AddressSpace<'a>,
    pub(super) layout: &'a Layout,
    pub(super) shadow: &'a Shadow,
    statics: &'a Statics,
}

impl GuestView<'_> {
    /// Address of a static variable, by its path, as `free_list::DEPOT`, or by the name it was given by
    /// `#[unsafe(no_mangle)]`; of a per-CPU variable the address by which [`on`](Self::on) knows it. A
    /// static without a name of its own is kept by its path only as long as something refers to it.
    pub fn symbol(&self, name: &str) -> Result<u64, Wild> {
        self.statics.find(name)
    }

    /// Copies a value from an address.
    pub fn read<T: View>(&self, address: u64) -> Result<T, Wild> {
        self.space.read(address)
    }

    /// Copies `len` 64-bit words, up to a million.
    pub fn words(&self, address: u64, len: usize) -> Result<Vec<u64>, Wild> {
        match len <= MOST_WORDS {
            true => self.space.words(address, len),
            false => Err(Wild::new(address, len.saturating_mul(8), Why::Wraps)),
        }
    }

    /// Address of a CPU's copy of a per-CPU variable or area; `None` if the CPU has none, since it never
    /// came up.
    pub fn on(&self, pointer: u64, cpu: u32) -> Option<u64> {
        (cpu < self.layout.possible()).then(|| self.layout.address(pointer, cpu)).flatten()
    }

    /// Copies each CPU's copy of a per-CPU variable, of the CPUs that have one.
    pub fn copies<T: View>(&self, pointer: u64) -> Result<Vec<(u32, T)>, Wild> {
        let copy = |cpu| {
            let address = self.on(pointer, cpu)?;
            let value =
                self.read(address).following(|| format!("CPU {cpu}'s copy at {pointer:#x}"));
            Some(value.map(|value| (cpu, value)))
        };
        (0..self.possible()).filter_map(copy).collect()
    }

    /// CPUs that can be.
    pub fn possible(&self) -> u32 {
        self.layout.possible()
    }

    /// CPUs that are online, a bit each, as the guest's mask says.
    pub fn online(&self) -> Result<u64, Wild> {
        Ok(self.layout.masks(self.space)?.online)
    }

    /// What threads and interrupts have entered in a slot of the ledger, all together.
    pub fn ledger(&self, slot: u32) -> Result<i64, Wild> {
        if slot as usize >= LEDGER_SLOTS {
            return Err(Wild::new(slot.into(), 8, Why::NoMemory)).following(|| "the ledger");
        }
        let book = LedgerBook::read(self.space.mem(), self.possible())?;
        let slot = Ledger::All(slot);
        Ok(book.by_threads(slot).wrapping_add(book.by_interrupts(slot)))
    }

    /// What the judge has learnt from the guest's events: areas, counters, sums, CPUs.
    pub fn shadow(&self) -> &Shadow {
        self.shadow
    }
}

/// Where a check says what it has found.
pub struct Found<'a> {
    name: &'static str,
    findings: &'a mut Findings,
}

impl Found<'_> {
    /// `n` objects were held against it.
    pub fn checked(&mut self, n: u64) {
        self.findings.checked(self.name, n);
    }

    /// `object` breaks it, and `detail` says how in a sentence, with what was seen and what was expected.
    pub fn broken(&mut self, object: impl Into<String>, detail: impl Into<String>) {
        self.findings.report(Violation::new(self.name, object, detail));
    }

    /// As [`broken`](Self::broken), of a CPU.
    pub fn broken_on(&mut self, cpu: u32, object: impl Into<String>, detail: impl Into<String>) {
        self.findings.report(Violation::new(self.name, object, detail).on(cpu));
    }
}

/// The checks of a run.
#[derive(Default)]
pub(super) struct Own {
    checks: Vec<Box<dyn Check>>,
    statics: Arc<Statics>,
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.checks.iter().map(|check| check.name())).finish()
    }
}

/// What a check is asked for.
type Look = fn(&mut dyn Check, &GuestView<'_>, &mut Found<'_>) -> Result<(), Wild>;

impl Own {
    pub(super) fn new(checks: &Checks, statics: Arc<Statics>) -> Self {
        Self { checks: checks.0.iter().map(|make| make()).collect(), statics }
    }

    pub(super) fn at_any_instant(
        &mut self,
        mem: &GuestMem,
        layout: &Layout,
        shadow: &Shadow,
        findings: &mut Findings,
    ) {
        let space = mem.address_space();
        self.look(&space, layout, shadow, findings, |check, guest, found| {
            check.at_any_instant(guest, found)
        });
    }

    pub(super) fn at_rest(
        &mut self,
        space: &AddressSpace<'_>,
        layout: &Layout,
        shadow: &Shadow,
        findings: &mut Findings,
    ) {
        self.look(space, layout, shadow, findings, |check, guest, found| {
            check.at_rest(guest, found)
        });
    }

    fn look(
        &mut self,
        space: &AddressSpace<'_>,
        layout: &Layout,
        shadow: &Shadow,
        findings: &mut Findings,
        look: Look,
    ) {
        let guest = GuestView { space, layout, shadow, statics: &self.statics };
        for check in &mut self.checks {
            let name = check.name();
            guarded(name, findings, |found| look(&mut **check, &guest, found));
        }
    }

    pub(super) fn on_event(&mut self, event: &Event, findings: &mut Findings) {
        for check in &mut self.checks {
            let name = check.name();
            guarded(name, findings, |found| {
                check.on_event(event, found);
                Ok(())
            });
        }
    }
}

/// Asks a check; a wild address and a panic are findings of that check.
fn guarded(
    name: &'static str,
    findings: &mut Findings,
    ask: impl FnOnce(&mut Found<'_>) -> Result<(), Wild>,
) {
    let asked = catch_unwind(AssertUnwindSafe(|| ask(&mut Found { name, findings })));
    let (object, detail) = match asked {
        Ok(Ok(())) => return,
        Ok(Err(wild)) => (wild.what.clone(), wild.to_string()),
        Err(panic) => ("the check".into(), format!("the check panicked: {}", message(&*panic))),
    };
    findings.report(Violation::new(name, object, detail));
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("with no message")
}
