//! Builds guests: programs that run on the kernel of percpu-guest, in this workspace or in another one.
//!
//! A guest is linked at a fixed address, for a [target](Target) without an operating system. Its profiles
//! are given on cargo's command line, so that the workspace it is in need not know them, and its target
//! directory is its own, so that a build neither waits for those of host programs nor undoes them.

mod error;
mod profile;
mod target;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use error::Error;
pub use profile::Kind;
pub use target::{BARE, Target, is_installed, need};

/// A guest, and where it is built.
#[derive(Clone, Debug)]
pub struct Build {
    source: PathBuf,
    package: String,
    bin: String,
    features: Vec<String>,
    target_dir: PathBuf,
    target: Target,
}

impl Build {
    /// The binary `bin` of `package`, whose workspace `source` lies in, for the target there is.
    ///
    /// It goes to a directory `guest` below that in which the program lies that is running.
    pub fn new(source: &Path, package: &str, bin: &str) -> Result<Self, Error> {
        let target_dir = target_dir().unwrap_or_else(|| source.join("target"));
        Ok(Self {
            source: source.into(),
            package: package.into(),
            bin: bin.into(),
            features: Vec::new(),
            target_dir: target_dir.join("guest"),
            target: Target::choose()?,
        })
    }

    /// With a feature of the package.
    pub fn feature(mut self, feature: &str) -> Self {
        self.features.push(feature.into());
        self
    }

    /// In another directory, which is the guest's alone.
    pub fn in_directory(mut self, target_dir: PathBuf) -> Self {
        self.target_dir = target_dir;
        self
    }

    /// For another target.
    pub fn for_target(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    /// A cargo command on the guest, as it is built: `build`, `clippy`.
    pub fn command(&self, subcommand: &str, kind: Kind) -> Command {
        let mut cargo = Command::new(cargo());
        cargo.current_dir(&self.source).arg(subcommand);
        cargo.args(["--package", &self.package, "--bin", &self.bin]);
        if !self.features.is_empty() {
            cargo.arg("--features").arg(self.features.join(","));
        }
        for setting in kind.profile() {
            cargo.arg("--config").arg(setting);
        }
        cargo.args(["--profile", kind.name(), "--target", self.target.name()]);
        cargo.arg("--target-dir").arg(&self.target_dir);
        // In place of the user's RUSTFLAGS, which are meant for programs of the host.
        let flags: Vec<_> = self.target.flags().chain(kind.flags().iter().copied()).collect();
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        cargo
    }

    /// Where the image is once it is built.
    pub fn path(&self, kind: Kind) -> PathBuf {
        self.target_dir.join(self.target.name()).join(kind.name()).join(&self.bin)
    }

    /// Builds it, unless it is as it should be, and returns where it is.
    pub fn image(&self, kind: Kind) -> Result<PathBuf, Error> {
        let mut cargo = self.command("build", kind);
        // Cargo says what it compiles; the output of this program is its own.
        let status = cargo.stdin(Stdio::null()).stdout(Stdio::null()).status();
        let status = status.map_err(|why| Error::no_start(&cargo, &why))?;
        match status.success() {
            true => Ok(self.path(kind)),
            false => Err(Error(format!(
                "the guest cannot be built: cargo has said why, and can be asked again by\n    {}",
                shown(&cargo)
            ))),
        }
    }
}

/// The cargo that runs this program.
fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Where cargo puts what it builds, whatever way it was told: this program lies somewhere below.
pub fn target_dir() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    program.ancestors().find(|above| above.join("CACHEDIR.TAG").is_file()).map(Into::into)
}

/// The command as it is typed.
fn shown(command: &Command) -> String {
    let quoted = |text: &std::ffi::OsStr| {
        let text = text.to_string_lossy();
        match text.contains(|c: char| c.is_whitespace() || "\"'[]*".contains(c)) {
            true => format!("'{text}'"),
            false => text.into_owned(),
        }
    };
    let mut words = vec!["cargo".to_owned()];
    for (name, value) in command.get_envs() {
        if let Some(value) = value
            && name == "CARGO_ENCODED_RUSTFLAGS"
        {
            words
                .insert(0, format!("RUSTFLAGS='{}'", value.to_string_lossy().replace('\x1f', " ")));
        }
    }
    words.extend(command.get_args().map(quoted));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_a_command_that_can_be_typed() {
        let build = Build {
            source: "/somewhere".into(),
            package: "mine".into(),
            bin: "guest".into(),
            features: vec!["guest".into()],
            target_dir: "/there/guest".into(),
            target: Target::Bare,
        };
        let command = build.command("build", Kind::Steps);
        let text = shown(&command);
        assert!(text.starts_with("RUSTFLAGS='-Crelocation-model=static "), "{text}");
        assert!(text.contains("--cfg=percpu_steps"), "{text}");
        let rest = "' cargo build --package mine --bin guest --features guest --config ";
        assert!(text.contains(rest), "{text}");
        assert!(text.contains("--profile guest-steps --target x86_64-unknown-none"), "{text}");
        let path = "/there/guest/x86_64-unknown-none/guest-steps/guest";
        assert_eq!(build.path(Kind::Steps), Path::new(path));
        assert!(!shown(&build.command("build", Kind::Usual)).contains("percpu_steps"));
    }
}
