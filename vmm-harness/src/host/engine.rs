//! Which engine runs guests on this host, and why.

use std::time::Duration;

use super::{Host, HostInfo};
use crate::error::Error;
use crate::vm::{Engine, check_threads};

/// Which engine is to run the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineChoice {
    /// KVM where it can be used, else threads.
    #[default]
    Auto,
    /// KVM: a virtual machine.
    Kvm,
    /// This process, with CPUs as threads: no virtual machine, and no protection from the guest.
    Threads,
}

impl Host {
    /// The host as a guest will find it under the engine of that choice.
    pub fn find(choice: EngineChoice) -> Result<HostInfo, Error> {
        let kvm = || {
            let host = Self::probe()?;
            host.require_capabilities()?;
            Ok(host)
        };
        match choice {
            EngineChoice::Kvm => Ok(HostInfo { why: "asked for".into(), ..kvm()? }),
            EngineChoice::Threads => HostInfo::of_threads("asked for".into()),
            EngineChoice::Auto => kvm().or_else(|error: Error| {
                // What KVM lacks is the error to show if there is nothing else.
                HostInfo::of_threads(error.to_string()).map_err(|_| error)
            }),
        }
    }
}

impl HostInfo {
    /// The host as a guest finds it that runs as threads of this process: KVM is not asked.
    pub fn of_threads(why: String) -> Result<Self, Error> {
        check_threads()?;
        Ok(Self {
            engine: Engine::Threads,
            why,
            api_version: 0,
            recommended_vcpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
            max_vcpus: u32::MAX,
            capabilities: Vec::new(),
            ring0_ns: 0.0,
            fsgsbase: true,
            tsc_khz: None,
            took: Duration::ZERO,
        })
    }
}
