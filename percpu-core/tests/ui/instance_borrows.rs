//! An instance may be forgotten, and is then used as long as its step is there: it borrows nothing.

use percpu_core::hotplug::{self, Section};

fn main() {
    let local = 1;
    let step = hotplug::register_multi::<&u32>(Section::Online, "borrowed", None, None).unwrap();
    let _ = step.add(&local); //~ E0597
}
