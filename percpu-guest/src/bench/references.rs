//! Reference counts.

use percpu_core::refcount::{PercpuRef, RefFlags, Release};
use percpu_guest::abi::BenchTarget;

use super::{Bench, Family, Row, bare};

/// What references are counted to.
struct Nothing;

impl Release for Nothing {
    fn release(&self) {}
}

/// `percpu_ref`.
pub const REFERENCES: Family = Family {
    name: "references",
    rows: &[
        Row::new("PercpuRef, get and put", "2 x add gs:[r], r", |b| {
            let counted = counted();
            b.alone(|| drop(counted.get()), bare::two_adds);
        })
        .target(BenchTarget::TimesBare, 200),
        Row::new("PercpuRef, tryget_live and put", "2 x add gs:[r], r", |b| {
            let counted = counted();
            b.alone(|| drop(counted.tryget_live()), bare::two_adds);
        })
        .target(BenchTarget::TimesBare, 200),
        Row::new("PercpuRef, get and put", "2 x add gs:[r], r", at_once).at_once(2),
        Row::new("PercpuRef, get and put", "2 x add gs:[r], r", at_once).at_once(4),
        Row::new("PercpuRef, get and put", "2 x add gs:[r], r", at_once).at_once(8),
        Row::new("PercpuRef in atomic mode, get and put", "2 x add gs:[r], r", atomic),
        Row::new("PercpuRef in atomic mode, get and put", "2 x add gs:[r], r", atomic_at_once)
            .at_once(2),
    ],
};

fn counted() -> PercpuRef<Nothing> {
    PercpuRef::new(Nothing, RefFlags::ALLOW_REINIT).expect("memory for a ref")
}

fn at_once(bench: &mut Bench) {
    let counted = counted();
    bench.together(|| drop(counted.get()), bare::two_adds);
}

fn atomic(bench: &mut Bench) {
    let counted = counted();
    counted.switch_to_atomic();
    bench.alone(|| drop(counted.get()), bare::two_adds);
}

fn atomic_at_once(bench: &mut Bench) {
    let counted = counted();
    counted.switch_to_atomic();
    bench.together(|| drop(counted.get()), bare::two_adds);
}
