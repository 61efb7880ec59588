//! An instance does not outlive the step whose callbacks it is used by.

use percpu_core::hotplug::{self, Section};

fn main() {
    let step = hotplug::register_multi::<u32>(Section::Online, "step", None, None).unwrap();
    let instance = step.add(1).unwrap();
    drop(step); //~ E0505
    assert_eq!(*instance, 1);
}
