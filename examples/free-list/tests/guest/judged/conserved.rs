//! No object is lost, and none is in two places.

use free_list::{Head, NONE, OBJECTS};
use vmm_harness::judge::{Check, Found, GuestView};
use vmm_harness::memory::Wild;

use super::heads;

/// The slot of the ledger in which workloads enter how many objects they have.
const HELD: u32 = 0;
/// Where the depot lies behind its lock's word.
const BEHIND_LOCK: u64 = 4;

/// Every object is in one place: in a CPU's list, in the depot, or with a thread.
#[derive(Default)]
pub struct Conserved;

impl Check for Conserved {
    fn name(&self) -> &'static str {
        "F2"
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
                if let Some(other) = places[object].replace(place.clone()) {
                    let detail = format!("object {object} is in {other} and in {place}");
                    found.broken(format!("object {object}"), detail);
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

/// All lists, with their names.
fn lists(guest: &GuestView<'_>) -> Result<Vec<(String, Head)>, Wild> {
    let heads = heads(guest)?.into_iter();
    let mut lists: Vec<_> = heads.map(|(cpu, head)| (format!("CPU {cpu}'s list"), head)).collect();
    let depot: u32 = guest.read(guest.symbol("free_list::DEPOT")? + BEHIND_LOCK)?;
    lists.push(("the depot".into(), Head::of(depot.into())));
    Ok(lists)
}

/// The objects of a list, up to the first that cannot be one, and not many more than there are.
fn walk(guest: &GuestView<'_>, head: Head) -> Result<Vec<usize>, Wild> {
    let next = guest.symbol("free_list::NEXT")?;
    // Of a list that was never filled the first is none.
    let (mut objects, mut at) = (Vec::new(), if head.len == 0 { NONE } else { head.first });
    while usize::from(at) < OBJECTS && objects.len() <= OBJECTS {
        objects.push(usize::from(at));
        at = guest.read(next + 2 * u64::from(at))?;
    }
    Ok(objects)
}
