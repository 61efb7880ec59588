//! The guest's tests, its workload in a storm of plugs, a scenario, and seeds on the deterministic machine.

mod judged;

use std::process::ExitCode;

use vmm_harness::testing::Suite;

fn main() -> ExitCode {
    Suite::of(judged::guest()).scenario("scenarios/last-but-one.toml").main()
}
