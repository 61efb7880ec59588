//! All commands for this guest: `cargo run --example vm -- run`, `fuzz`, `replay`, `minimise`.

#[path = "../tests/guest/judged/mod.rs"]
mod judged;

fn main() -> std::process::ExitCode {
    vmm_harness::cli::main_with(judged::guest())
}
