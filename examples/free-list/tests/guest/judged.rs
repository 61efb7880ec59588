//! The guest, and the free list's own checks: what must hold of it, by the bare memory of the guest.

use free_list::{Head, NONE, OBJECTS};
use vmm_harness::Guest;
use vmm_harness::judge::{Check, Found, GuestView};
use vmm_harness::memory::Wild;

/// The slot of the ledger in which workloads enter how many objects they have.
const HELD: u32 = 0;
/// Where the depot lies behind its lock's word.
const BEHIND_LOCK: u64 = 4;

/// The guest, how it is judged, and how its commands are typed.
pub fn guest() -> Guest {
    Guest::new(env!("CARGO_MANIFEST_DIR"), env!("CARGO_PKG_NAME"), "guest")
        .feature("guest")
        .check::<Conserved>()
        .check::<NoneStranded>()
        .program("cargo run --release --example vm --")
}

/// Every object is in one place: in a CPU's list, in the depot, or with a thread.
#[derive(Default)]
struct Conserved;

impl Check for Conserved {
    fn name(&self) -> &'static str {
        "F1"
    }

    fn meaning(&self) -> &'static str {
        "every object is in one list or with one thread"
    }

    fn at_rest(&mut self, guest: &GuestView<'_>, found: &mut Found<'_>) -> Result<(), Wild> {
        let mut places: Vec<Option<String>> = vec![None; OBJECTS];
        for (place, head) in lists(guest)? {
            let objects = walk(guest, head)?;
            found.checked(1);
            if objects.len() != usize::from(head.len) {
                let detail = format!("{place} has {} objects and says {}", objects.len(), head.len);
                found.broken(place.clone(), detail);
            }
            for object in objects {
                match &places[object] {
                    None => places[object] = Some(place.clone()),
                    Some(other) => {
                        let detail = format!("object {object} is in {other} and in {place}");
                        found.broken(format!("object {object}"), detail);
                    }
                }
            }
        }
        let listed = places.iter().flatten().count() as i64;
        let held = guest.ledger(HELD)?;
        found.checked(1);
        // Before the workload has begun there is no object at all.
        if listed + held != OBJECTS as i64 && (listed, held) != (0, 0) {
            let detail =
                format!("{listed} objects are in lists and {held} with threads, of {OBJECTS}");
            found.broken("the sum", detail);
        }
        Ok(())
    }
}

/// A CPU that is down has no objects, which nobody could take.
#[derive(Default)]
struct NoneStranded;

impl Check for NoneStranded {
    fn name(&self) -> &'static str {
        "F2"
    }

    fn meaning(&self) -> &'static str {
        "a CPU that is down has no objects in its list"
    }

    fn at_rest(&mut self, guest: &GuestView<'_>, found: &mut Found<'_>) -> Result<(), Wild> {
        let online = guest.online()?;
        for (cpu, head) in heads(guest)? {
            if online >> cpu & 1 != 0 {
                continue;
            }
            found.checked(1);
            if head.len != 0 {
                let detail = format!("CPU {cpu} is down, with {} objects in its list", head.len);
                found.broken_on(cpu, format!("CPU {cpu}"), detail);
            }
        }
        Ok(())
    }
}

/// Each CPU's list, of those that have come up at some time.
fn heads(guest: &GuestView<'_>) -> Result<Vec<(u32, Head)>, Wild> {
    let words = guest.copies::<u64>(guest.symbol("free_list::HEAD")?)?;
    // 0 is what the variable has before its CPU comes up.
    Ok(words
        .into_iter()
        .filter(|(_, word)| *word != 0)
        .map(|(cpu, word)| (cpu, Head::of(word)))
        .collect())
}

/// All lists, with their names.
fn lists(guest: &GuestView<'_>) -> Result<Vec<(String, Head)>, Wild> {
    let heads = heads(guest)?.into_iter();
    let mut lists: Vec<_> = heads.map(|(cpu, head)| (format!("CPU {cpu}'s list"), head)).collect();
    let depot: u32 = guest.read(guest.symbol("free_list::DEPOT")? + BEHIND_LOCK)?;
    lists.push(("the depot".into(), Head::of(depot.into())));
    Ok(lists)
}

/// The objects of a list, up to the first that cannot be one; never more than there are.
fn walk(guest: &GuestView<'_>, head: Head) -> Result<Vec<usize>, Wild> {
    let next = guest.symbol("free_list::NEXT")?;
    let (mut objects, mut at) = (Vec::new(), head.first);
    // Of a list that was never filled.
    if head.len == 0 {
        return Ok(objects);
    }
    while at != NONE && usize::from(at) < OBJECTS && objects.len() <= OBJECTS {
        objects.push(usize::from(at));
        at = guest.read(next + 2 * u64::from(at))?;
    }
    Ok(objects)
}
