//! `cargo xtask guest`: builds the guest kernel.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use percpu_guest_build::{Build, Kind, Target};

use crate::cargo;

#[derive(clap::Args)]
pub struct Args {
    /// Build for the host's own target, as is done where x86_64-unknown-none cannot be had
    #[arg(long)]
    freestanding_host: bool,
    /// Build it for the deterministic machine, which runs CPUs one at a time
    #[arg(long)]
    steps: bool,
}

/// Builds the guest and prints where it is.
pub fn guest(args: &Args) -> Result<ExitCode> {
    let guest = here()?;
    let guest = if args.freestanding_host { guest.for_target(Target::Hosted) } else { guest };
    let image = build(&guest, if args.steps { Kind::Steps } else { Kind::Usual })?;
    println!("{}", image.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the guest for the target there is.
pub fn image() -> Result<PathBuf> {
    build(&here()?, Kind::Usual)
}

/// The same without debug assertions, to be measured.
pub fn image_for_speed() -> Result<PathBuf> {
    build(&here()?, Kind::Speed)
}

/// The same, instrumented for the machine that runs CPUs one at a time.
pub fn image_for_steps() -> Result<PathBuf> {
    build(&here()?, Kind::Steps)
}

/// The same of another copy of the source, with another target directory.
pub fn image_for_steps_of(source: &Path, target_dir: &Path) -> Result<PathBuf> {
    let guest = of(source)?.in_directory(target_dir.into());
    let mut command = guest.command("build", Kind::Steps);
    command.arg("--quiet");
    cargo::run(command)?;
    Ok(guest.path(Kind::Steps))
}

/// The guest of this checkout.
pub fn here() -> Result<Build> {
    of(cargo::root())
}

fn of(source: &Path) -> Result<Build> {
    Ok(Build::new(source, "percpu-guest", "percpu-guest")?.feature("kernel"))
}

fn build(guest: &Build, kind: Kind) -> Result<PathBuf> {
    cargo::run(guest.command("build", kind))?;
    Ok(guest.path(kind))
}
