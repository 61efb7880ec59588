//! What several commands have in common: arguments, and how they begin.

pub mod deterministic;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use vmm_harness::error::Error;
use vmm_harness::host::{Host, HostInfo, RingChoice};
use vmm_harness::image::Image;
use vmm_harness::run;

/// Seconds of a run, unless said otherwise.
pub const DEFAULT_SECONDS: f64 = 10.0;

#[derive(clap::Args)]
pub struct ImageArg {
    /// The guest's ELF image.
    #[arg(long, env = "PERCPU_GUEST_IMAGE", value_name = "FILE")]
    pub image: PathBuf,
}

/// Parses a time.
pub fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 1e6 => Ok(seconds),
        _ => Err("give a number of seconds above 0, at most 1000000".into()),
    }
}

/// Parses a seed.
pub fn seed(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "give a number from 0 to 2^64 - 1, decimal or 0x...".into())
}

/// The image, what this host can do for `max_cpus` CPUs, and the ring to run in.
pub fn prepare(
    image: &ImageArg,
    max_cpus: u32,
    ring: RingChoice,
) -> Result<(Image, HostInfo, u8), Error> {
    let image = Image::open(&image.image)?;
    let host = Host::probe()?;
    host.require_capabilities()?;
    host.require_vcpus(max_cpus)?;
    let ring = match ring {
        // Auto means what works.
        RingChoice::Auto if image.header().ring3_only != 0 => 3,
        choice => host.choose_ring(choice).0,
    };
    run::check_ring(&image, ring)?;
    Ok((image, host, ring))
}

/// Raised by the first Ctrl-C; the second ends the process at once.
pub fn interrupted() -> Result<Arc<AtomicBool>, Error> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, flag.clone())
            .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
            .map_err(Error::thread)?;
    }
    Ok(flag)
}

/// A seed that differs from run to run; short, so that people can repeat it.
pub fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (now.as_nanos() as u64 ^ u64::from(std::process::id()) << 20) & 0xffff_ffff
}
