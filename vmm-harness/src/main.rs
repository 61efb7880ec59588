//! `vmm-harness`: boots the percpu guest under KVM, plugs CPUs in and out, and judges its memory.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm_harness::cli::main()
}
