//! An instance is seen by the CPUs' own threads: it must be `Sync`.

use core::cell::Cell;

use percpu_core::hotplug::{self, Section};

fn main() {
    let _ = hotplug::register_multi::<Cell<u32>>(Section::Online, "cells", None, None); //~ E0277
}
