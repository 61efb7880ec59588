//! The guest, and its own checks: what must hold of a free list, by the bare memory of the guest.

mod conserved;

use conserved::Conserved;
use free_list::Head;
use vmm_harness::Guest;
use vmm_harness::judge::{Check, Found, GuestView};
use vmm_harness::memory::Wild;

/// The guest, how it is judged, and how its commands are typed.
pub fn guest() -> Guest {
    Guest::new(env!("CARGO_MANIFEST_DIR"), env!("CARGO_PKG_NAME"), "guest")
        .feature("guest")
        .check::<NoneStranded>()
        .check::<Conserved>()
        .program("cargo run --example vm --")
}

/// A CPU that is down has no objects, which nobody could take.
#[derive(Default)]
struct NoneStranded;

impl Check for NoneStranded {
    fn name(&self) -> &'static str {
        "F1"
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
    let copies = guest.copies::<u64>(guest.symbol("free_list::HEAD")?)?;
    // 0 is what the variable has before its CPU comes up.
    let heads = copies.into_iter().filter(|(_, word)| *word != 0);
    Ok(heads.map(|(cpu, word)| (cpu, Head::of(word))).collect())
}
