//! A reference that was got does not outlive what it keeps alive.

use percpu_core::refcount::{PercpuRef, RefFlags};

fn main() {
    let object = PercpuRef::new(|| (), RefFlags::NONE).unwrap();
    let reference = object.get();
    drop(object); //~ E0505
    drop(reference);
}
