//! K1, K2, K4, K5: the counters.

use std::collections::{BTreeMap, HashSet};
use std::mem::offset_of;

use percpu_core::view::{COUNTER_LIVE, CounterView, ListView};
use percpu_guest::abi::{COUNTER_LIMIT, ControlBlock, CounterRole, CpuState, control_block};

use super::finding::{Findings, Violation, kind};
use super::layout::{Layout, Masks};
use super::shadow::{Counter, Ledger, Shadow};
use super::sums::{LedgerBook, by_cpu};
use crate::memory::{AddressSpace, Following, GuestMem, Wild};

/// Counters a list may have: beyond it, the list is no list.
const MAX_COUNTERS: usize = 1 << 16;

/// K2: the batch is the one that the CPUs online now ask for.
pub(crate) fn check_batch(
    space: &AddressSpace<'_>,
    layout: &Layout,
    findings: &mut Findings,
) -> Result<(), Wild> {
    let online = layout.masks(space)?.online.count_ones();
    let (batch, expected) = (i64::from(layout.batch(space)?), layout.batch_for(online));
    findings.checked("K2", 1);
    if batch != expected {
        let detail = format!(
            "the counters' batch is {batch}, expected {expected} while {online} CPUs are online"
        );
        findings
            .report(Violation::new("K2", "the counters' batch", detail).values(batch, expected));
    }
    Ok(())
}

/// The counters on the guest's list, by address. `None`: the list is broken, which was reported.
pub(crate) type Registered = Option<BTreeMap<u64, CounterView>>;

/// Walks the list of counters.
pub(crate) fn registered(
    space: &AddressSpace<'_>,
    layout: &Layout,
    findings: &mut Findings,
) -> Registered {
    match walk(space, layout.roots.counters) {
        Ok(counters) => Some(counters),
        Err(violation) => {
            findings.report(violation);
            None
        }
    }
}

fn walk(space: &AddressSpace<'_>, head: u64) -> Result<BTreeMap<u64, CounterView>, Box<Violation>> {
    let broken =
        |detail: String| Box::new(Violation::new(kind::MEMORY, "the list of counters", detail));
    let first: ListView = space.read(head).following(|| "the root of the counters")?;
    let mut counters = BTreeMap::new();
    let (mut before, mut node) = (head, first.next);
    while node != head {
        let counter: CounterView =
            space.read(node).following(|| format!("the link after counter {before:#x}"))?;
        if counter.link.prev != before {
            return Err(broken(format!(
                "counter {node:#x} follows {before:#x} in the list but points back at {:#x}",
                counter.link.prev
            )));
        }
        if counters.insert(node, counter).is_some() {
            return Err(broken(format!("the list of counters runs in a circle through {node:#x}")));
        }
        if counters.len() > MAX_COUNTERS {
            return Err(broken(format!("the list of counters has more than {MAX_COUNTERS} nodes")));
        }
        (before, node) = (node, counter.link.next);
    }
    Ok(counters)
}

/// Holds every live counter against K1, K2, K4 and K5.
pub(crate) fn check(
    space: &AddressSpace<'_>,
    layout: &Layout,
    shadow: &Shadow,
    registered: &Registered,
    max_batch: i64,
    book: &LedgerBook,
    findings: &mut Findings,
) {
    if let Some(registered) = registered {
        check_registered(shadow, registered, findings);
    }
    let offline = Offline::now(space.mem(), layout, findings);
    for counter in shadow.counters.values() {
        let Some(view) = findings.sound(view(space, counter)) else { continue };
        let Some(locals) = findings.sound(locals(space, layout, counter, &view)) else { continue };
        check_whole(counter, &view, findings);
        check_sum(counter, &view, &locals, book, findings);
        check_limit(counter, &view, &locals, findings);
        check_locals(counter, &locals, bound_of(&view, max_batch), findings);
        for (cpu, local) in (0u32..).zip(&locals) {
            if offline.contains(cpu)
                && let Some(address) = layout.address(view.locals, cpu)
            {
                findings.checked("K5", 1);
                if *local != 0 {
                    let suspect = Suspect { counter: *counter, cpu, local: *local, address };
                    findings.report(suspect.violation());
                }
            }
        }
    }
}

/// K5, its other half: the counters that a dying CPU is folded into are exactly the live ones.
fn check_registered(
    shadow: &Shadow,
    registered: &BTreeMap<u64, CounterView>,
    findings: &mut Findings,
) {
    findings.checked("K5", shadow.counters.len() as u64);
    let lost = shadow.counters.keys().filter(|address| !registered.contains_key(address));
    for address in lost {
        let detail = format!(
            "live counter {address:#x} is not on the list: a CPU that goes down will not fold it"
        );
        findings.report(
            Violation::new("K5", format!("counter {address:#x}"), detail)
                .values("not listed", "listed"),
        );
    }
    let stale = registered.keys().filter(|address| !shadow.counters.contains_key(address));
    for address in stale {
        let detail =
            format!("counter {address:#x} is on the list, but it was destroyed or never made");
        findings.report(
            Violation::new("K5", format!("counter {address:#x}"), detail)
                .values("listed", "not listed"),
        );
    }
}

/// A counter as it lies in memory.
pub(crate) fn view(space: &AddressSpace<'_>, counter: &Counter) -> Result<CounterView, Wild> {
    let view = space.read::<CounterView>(counter.address);
    view.following(|| format!("counter {:#x}", counter.address))
}

/// The local of every possible CPU; 0 for one without a unit.
pub(crate) fn locals(
    space: &AddressSpace<'_>,
    layout: &Layout,
    counter: &Counter,
    view: &CounterView,
) -> Result<Vec<i32>, Wild> {
    (0..layout.possible())
        .map(|cpu| match layout.address(view.locals, cpu) {
            None => Ok(0),
            Some(address) => space
                .read(address)
                .following(|| format!("CPU {cpu}'s local of counter {:#x}", counter.address)),
        })
        .collect()
}

/// K3: nobody is in the middle of a fold, and nobody wrote over the counter.
fn check_whole(counter: &Counter, view: &CounterView, findings: &mut Findings) {
    let mut broken = |detail: String, seen: u64, expected: u64| {
        let place = format!("counter {:#x}", counter.address);
        findings.report(Violation::new("K3", place, detail).values(seen, expected));
    };
    if !view.sequence.is_multiple_of(2) {
        let detail = format!(
            "a fold of counter {:#x} was begun and not ended: its sequence is {}",
            counter.address, view.sequence
        );
        broken(detail, view.sequence, view.sequence.wrapping_add(1));
    }
    if view.magic != COUNTER_LIVE {
        let detail = format!(
            "live counter {:#x} has {:#x} for its magic number, expected {COUNTER_LIVE:#x}",
            counter.address, view.magic
        );
        broken(detail, view.magic.into(), COUNTER_LIVE.into());
    }
    findings.checked("K3", 1);
}

/// K1: count and locals together are the initial amount and all adds.
fn check_sum(
    counter: &Counter,
    view: &CounterView,
    locals: &[i32],
    book: &LedgerBook,
    findings: &mut Findings,
) {
    findings.checked("K1", 1);
    let in_locals: i64 = locals.iter().map(|local| i64::from(*local)).sum();
    let seen = view.count.wrapping_add(in_locals);
    let threads = book.by_threads(counter.ledger);
    let interrupts = book.by_interrupts(counter.ledger);
    let expected = counter.initial.wrapping_add(threads).wrapping_add(interrupts);
    if seen != expected {
        let detail = format!(
            "counter {:#x} sums to {seen}, expected {expected} (initially {}, threads added {threads}, \
             interrupts {interrupts}); count is {}, locals: {}",
            counter.address,
            counter.initial,
            view.count,
            by_cpu(locals.iter().map(|local| i64::from(*local))),
        );
        findings.report(
            Violation::new("K1", format!("counter {:#x}", counter.address), detail)
                .values(seen, expected),
        );
    }
}

/// K4: no counter that has a limit is past it.
fn check_limit(counter: &Counter, view: &CounterView, locals: &[i32], findings: &mut Findings) {
    if counter.role != CounterRole::Limited {
        return;
    }
    findings.checked("K4", 1);
    let sum = locals.iter().fold(view.count, |sum, local| sum.wrapping_add(i64::from(*local)));
    if sum.unsigned_abs() > COUNTER_LIMIT.unsigned_abs() {
        let detail = format!(
            "counter {:#x} stands at {sum}, past the limit of {COUNTER_LIMIT} that every addition was \
             given",
            counter.address
        );
        findings.report(
            Violation::new("K4", format!("counter {:#x}", counter.address), detail)
                .values(sum, format_args!("|value| <= {COUNTER_LIMIT}")),
        );
    }
}

/// What no local may reach: `add_batch` may have been given a larger batch than the general one,
/// which the counter remembers.
fn bound_of(view: &CounterView, max_batch: i64) -> i64 {
    max_batch.max(i64::from(view.local_bound as i32))
}

/// K2 while the guest runs, for counters that live as long as the guest: those that all threads
/// write.
pub(crate) fn check_locals_now(
    space: &AddressSpace<'_>,
    layout: &Layout,
    shadow: &Shadow,
    max_batch: i64,
    findings: &mut Findings,
) {
    let lasting = |counter: &&Counter| matches!(counter.ledger, Ledger::All(_));
    for counter in shadow.counters.values().filter(lasting) {
        let Ok(before) = space.read::<CounterView>(counter.address) else { continue };
        let Ok(locals) = locals(space, layout, counter, &before) else { continue };
        // The bound is announced before the local may grow, and never shrinks.
        let Ok(after) = space.read::<CounterView>(counter.address) else { continue };
        check_locals(counter, &locals, bound_of(&after, max_batch), findings);
    }
}

/// K2: no local reaches the largest batch that was in force.
fn check_locals(counter: &Counter, locals: &[i32], bound: i64, findings: &mut Findings) {
    findings.checked("K2", locals.len() as u64);
    for (cpu, local) in (0u32..).zip(locals) {
        if i64::from(*local).abs() >= bound {
            let detail = format!(
                "CPU {cpu}'s local of counter {:#x} is {local}, expected less than the batch {bound} \
                 on either side of zero",
                counter.address
            );
            findings.report(
                Violation::new("K2", format!("counter {:#x}", counter.address), detail)
                    .on(cpu)
                    .values(local, format_args!("|local| < {bound}")),
            );
        }
    }
}

/// CPUs that are down and folded, and how often each had been up then.
pub(crate) struct Offline {
    cpus: BTreeMap<u32, u64>,
}

impl Offline {
    /// Those that are down now: offline by their own account, in no mask that says otherwise.
    pub(crate) fn now(mem: &GuestMem, layout: &Layout, findings: &mut Findings) -> Self {
        let mut cpus = BTreeMap::new();
        let masks = match layout.masks(&mem.address_space()) {
            Ok(masks) => masks,
            Err(violation) => {
                findings.report(violation);
                return Self { cpus };
            }
        };
        for cpu in 0..layout.possible() {
            if let Some(Ok(onlines)) = onlines_if_offline(mem, cpu, masks).transpose() {
                cpus.insert(cpu, onlines);
            }
        }
        Self { cpus }
    }

    /// Those of them that are among `cpus`.
    pub(crate) fn only(mut self, cpus: impl Fn(u32) -> bool) -> Self {
        self.cpus.retain(|cpu, _| cpus(*cpu));
        self
    }

    pub(crate) fn contains(&self, cpu: u32) -> bool {
        self.cpus.contains_key(&cpu)
    }

    /// Whether `cpu` is offline in both and was not up in between.
    pub(crate) fn same(&self, later: &Self, cpu: u32) -> bool {
        self.cpus.get(&cpu).is_some_and(|onlines| later.cpus.get(&cpu) == Some(onlines))
    }
}

fn onlines_if_offline(mem: &GuestMem, cpu: u32, masks: Masks) -> Result<Option<u64>, Wild> {
    let block = control_block(cpu);
    let onlines = mem.load_u64(block + offset_of!(ControlBlock, onlines) as u64)?;
    let state = mem.load_u32(block + offset_of!(ControlBlock, state) as u64)?;
    let offline = state == CpuState::Offline as u32 && !masks.is_in_service(cpu);
    Ok(offline.then_some(onlines))
}

/// A local of an offline CPU that is not zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suspect {
    pub(crate) counter: Counter,
    pub(crate) cpu: u32,
    local: i32,
    address: u64,
}

impl Suspect {
    /// Whether the value is there still.
    pub(crate) fn persists(&self, space: &AddressSpace<'_>) -> bool {
        space.read::<i32>(self.address).is_ok_and(|local| local == self.local)
    }

    pub(crate) fn violation(&self) -> Violation {
        let address = self.counter.address;
        let detail = format!(
            "CPU {} is offline but its local of counter {address:#x} is {}",
            self.cpu, self.local
        );
        Violation::new("K5", format!("counter {address:#x}"), detail)
            .on(self.cpu)
            .values(self.local, 0)
    }
}

/// Locals of offline CPUs that are not zero, read while counters may come and go: a counter that
/// cannot be read any more is being destroyed, which is no finding.
pub(crate) fn offline_locals(
    space: &AddressSpace<'_>,
    layout: &Layout,
    shadow: &Shadow,
    offline: &Offline,
    findings: &mut Findings,
) -> Vec<Suspect> {
    let mut suspects = Vec::new();
    let mut seen = HashSet::new();
    for counter in shadow.counters.values() {
        let Ok(view) = space.read::<CounterView>(counter.address) else { continue };
        for &cpu in offline.cpus.keys() {
            let Some(address) = layout.address(view.locals, cpu) else { continue };
            let Ok(local) = space.read::<i32>(address) else { continue };
            findings.checked("K5", 1);
            if local != 0 && seen.insert((counter.address, cpu)) {
                suspects.push(Suspect { counter: *counter, cpu, local, address });
            }
        }
    }
    suspects
}
