//! What is counted by references: lives that end as they should pass, and each that does not is
//! found as the invariant it breaks.

use percpu_core::view::{REF_BIAS, REF_DEAD, REF_ONE, REF_OPEN, REF_PERCPU, RefView};
use percpu_guest::abi::{EventKind, Holder};

use super::guest::{Guest, TEMPLATE};
use super::{broken, look};

/// Where the ref lies: memory that nothing else uses.
const REF: u64 = 0x2f0_0000;
/// Its words are a static variable.
const WORDS: u64 = TEMPLATE + 24;
const SLOT: u32 = 100;
/// References that threads hold.
const HELD: i64 = 3;

fn tell(g: &mut Guest, kind: EventKind, holder: Holder, amount: u64, life: u64) {
    g.emit(1, kind, [holder as u64, REF, amount, life, 0]);
}

fn shared(count: i64, flags: u64) -> u64 {
    (count as u64).wrapping_mul(REF_ONE) | flags
}

fn word(g: &Guest, cpu: u32, value: i64) {
    g.poke(g.copy(WORDS, cpu), value);
}

/// A living ref in per-CPU mode: threads hold three references, one in the shared count, five taken
/// on CPU 0 and three given back on CPU 3.
fn living(g: &mut Guest) {
    g.poke(REF, RefView { shared: shared(REF_BIAS + 1 + 1, REF_PERCPU), words: WORDS });
    for (cpu, balance) in [(0, 5), (3, -3)] {
        word(g, cpu, REF_OPEN + balance);
    }
    word(g, 1, -REF_OPEN);
    word(g, 2, -REF_OPEN + 17);
    g.poke(g.ledger(4, SLOT), HELD - 1);
    g.poke(g.ledger(9, SLOT), 1i64);
    tell(g, EventKind::LifeBegun, Holder::Ref, SLOT.into(), 1);
}

/// The same, killed.
fn dying(g: &mut Guest) {
    living(g);
    tell(g, EventKind::LifeEnding, Holder::Ref, SLOT.into(), 1);
    g.poke(REF, RefView { shared: shared(HELD, REF_DEAD), words: WORDS });
    (0..4).for_each(|cpu| word(g, cpu, -REF_OPEN));
}

/// The same, released.
fn released(g: &mut Guest) {
    dying(g);
    g.poke(REF, RefView { shared: shared(0, REF_DEAD), words: WORDS });
    g.poke(g.ledger(4, SLOT), -1i64);
    tell(g, EventKind::LifeEnded, Holder::Ref, 0, 1);
}

fn mount(g: &mut Guest) {
    tell(g, EventKind::LifeBegun, Holder::Mount, SLOT.into(), 1);
    tell(g, EventKind::LifeEnding, Holder::Mount, SLOT.into(), 1);
}

type Spoil = fn(&mut Guest);

#[test]
fn lives_in_order_pass() {
    let resumed = |g: &mut Guest| {
        dying(g);
        tell(g, EventKind::LifeResumed, Holder::Ref, SLOT.into(), 1);
        g.poke(REF, RefView { shared: shared(HELD + 1, 0), words: WORDS });
    };
    let again = |g: &mut Guest| {
        released(g);
        tell(g, EventKind::LifeBegun, Holder::Ref, SLOT.into(), 2);
        g.poke(REF, RefView { shared: shared(REF_BIAS + 1, REF_PERCPU), words: WORDS });
    };
    let lives: [(&str, Spoil); 5] = [
        ("living", living),
        ("dying", dying),
        ("released", released),
        ("resumed", resumed),
        ("again", again),
    ];
    for (what, live) in lives {
        let mut guest = Guest::new();
        live(&mut guest);
        let judge = look(&guest);
        assert_eq!(judge.violations(), [], "{what}");
        let unchecked = ["P4", "P5"].map(|name| judge.checks().get(name).copied().unwrap_or(0));
        assert!(unchecked.iter().all(|checks| *checks > 0), "{what}: {:?}", judge.checks());
    }
}

#[test]
fn each_life_that_is_out_of_order_is_found() {
    let spoilt: &[(&str, &str, Spoil)] = &[
        ("released twice", "P1", |g| {
            released(g);
            tell(g, EventKind::LifeEnded, Holder::Ref, 0, 1);
        }),
        ("released alive", "P1", |g| {
            living(g);
            tell(g, EventKind::LifeEnded, Holder::Ref, 0, 1);
            tell(g, EventKind::LifeBegun, Holder::Ref, SLOT.into(), 2);
        }),
        ("nobody holds it and it was not released", "P1", |g| {
            dying(g);
            g.poke(REF, RefView { shared: shared(0, REF_DEAD), words: WORDS });
            g.poke(g.ledger(4, SLOT), -1i64);
        }),
        ("released while it is held", "P2", |g| {
            dying(g);
            g.poke(REF, RefView { shared: shared(0, REF_DEAD), words: WORDS });
            g.poke(g.ledger(4, SLOT), -1i64);
            tell(g, EventKind::LifeEnded, Holder::Ref, 2, 1);
        }),
        ("a reference is lost in a word", "P4", |g| {
            living(g);
            word(g, 3, REF_OPEN - 4);
        }),
        ("the bias stays in atomic mode", "P4", |g| {
            dying(g);
            g.poke(REF, RefView { shared: shared(HELD + REF_BIAS, REF_DEAD), words: WORDS });
        }),
        ("a word is open in atomic mode", "P5", |g| {
            dying(g);
            word(g, 2, REF_OPEN);
        }),
        ("a word is far from what a CPU can have counted", "P5", |g| {
            living(g);
            let far = 1 << 50;
            word(g, 3, REF_OPEN + far);
            let count = REF_BIAS + HELD + 1 - 5 - far;
            g.poke(REF, RefView { shared: shared(count, REF_PERCPU), words: WORDS });
        }),
        ("a count is left after the release", "P6", |g| {
            released(g);
            g.poke(REF, RefView { shared: shared(1, REF_DEAD), words: WORDS });
            g.poke(g.ledger(4, SLOT), 0i64);
        }),
        ("a mount's last reference was missed", "M1", mount),
        ("a mount's last reference was seen twice", "M1", |g| {
            mount(g);
            tell(g, EventKind::LifeEnded, Holder::Mount, 0, 1);
            tell(g, EventKind::LifeEnded, Holder::Mount, 0, 1);
        }),
        ("a mount ended while it was held", "M2", |g| {
            mount(g);
            tell(g, EventKind::LifeEnded, Holder::Mount, 1, 1);
        }),
        ("a life without a beginning", "events", |g| {
            tell(g, EventKind::LifeEnding, Holder::Ref, SLOT.into(), 1);
        }),
        ("a second life before the end of the first", "events", |g| {
            living(g);
            tell(g, EventKind::LifeBegun, Holder::Ref, SLOT.into(), 2);
        }),
    ];
    for (what, invariant, spoil) in spoilt {
        let mut guest = Guest::new();
        spoil(&mut guest);
        assert_eq!(broken(&look(&guest)), [*invariant], "{what}");
    }
}
