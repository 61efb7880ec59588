//! A callback does not keep the instance it was lent.

use std::sync::Mutex;

use percpu_core::hotplug::{self, Section};

static KEPT: Mutex<Option<&'static u32>> = Mutex::new(None);

fn main() {
    let _ = hotplug::register_multi::<u32>(
        Section::Online,
        "keeps",
        Some(|_, it| {
            *KEPT.lock().unwrap() = Some(it); //~ E0521
            Ok(())
        }),
        None,
    );
}
