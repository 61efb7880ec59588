//! See `vmm-harness/src/hostile`.

#![no_main]

vmm_harness_fuzz::attack!("crash");
