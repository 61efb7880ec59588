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
        Row::new("PercpuRef, get and put, two CPUs", "2 x add gs:[r], r", |b| {
            let counted = counted();
            b.together(2, || drop(counted.get()), bare::two_adds);
        }),
        Row::new("PercpuRef, get and put, atomic", "2 x add gs:[r], r", atomic),
    ],
};

fn counted() -> PercpuRef<Nothing> {
    PercpuRef::new(Nothing, RefFlags::ALLOW_REINIT).expect("memory for a ref")
}

fn atomic(bench: &mut Bench) {
    let counted = counted();
    counted.switch_to_atomic();
    bench.alone(|| drop(counted.get()), bare::two_adds);
}
