//! `bench`: what the operations of percpu-core cost in the guest.

use std::path::PathBuf;

use super::{ImageArg, interrupted, prepare};
use crate::bench::{self, BenchConfig, Effort};
use crate::error::{Error, Status};
use crate::guest::Kind;
use crate::host::RingChoice;
use crate::{report, run};

#[derive(clap::Args)]
pub struct BenchArgs {
    #[command(flatten)]
    image: ImageArg,
    /// A tenth of the rounds, and short ones: numbers to look at, not to quote.
    #[arg(long)]
    quick: bool,
    /// Also write the numbers to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// CPUs that are online; what several do at once is measured on two of them, and sums over
    /// eight, which are brought up for that.
    #[arg(long, default_value_t = 2, value_name = "N")]
    cpus: u32,
    /// The guest's privilege level; auto takes 0 unless this host emulates it.
    #[arg(long, default_value = "auto")]
    ring: RingChoice,
}

pub fn bench(args: &BenchArgs) -> Result<Status, Error> {
    run::check_cpus(args.cpus, args.cpus.max(bench::POSSIBLE))?;
    let effort = if args.quick { Effort::QUICK } else { Effort::FULL };
    let image = args.image.open(Kind::Speed)?;
    let (host, ring) = prepare(&image, args.cpus.max(bench::POSSIBLE), args.ring)?;
    if let Some(path) = &args.json {
        report::check_writable(path)?;
    }
    let config = BenchConfig { cpus: args.cpus, ring, effort };
    let report = bench::run(&image, &config, &host, &*interrupted()?)?;
    // As in `run`: a closed pipe is the reader's choice.
    let _ = bench::write_table(&mut std::io::stdout().lock(), &report);
    if let Some(path) = &args.json {
        report.write_json(path)?;
    }
    Ok(report.status())
}
