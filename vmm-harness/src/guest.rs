//! The guest that a program is about: how its image is built, and the checks it has of its own.
//!
//! `vmm-harness` itself knows none: its images are built by whoever calls it. A crate that has a guest
//! says here which one it is, once, and has all commands ([`cli::main_with`](crate::cli::main_with)) and
//! its tests ([`testing::main`](crate::testing::main)).

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use percpu_guest_build::Build;
pub use percpu_guest_build::Kind;

use crate::error::Error;
use crate::image::Image;
use crate::judge::{Check, Checks};

/// A guest: a binary of some package, and what is to be known of it.
#[derive(Clone, Default)]
pub struct Guest {
    binary: Option<Binary>,
    checks: Checks,
    program: Option<String>,
}

#[derive(Clone)]
struct Binary {
    source: PathBuf,
    package: String,
    name: String,
    features: Vec<String>,
}

/// The one of this process.
static THIS: OnceLock<Guest> = OnceLock::new();

impl Guest {
    /// The binary `name` of `package`, whose workspace `source` lies in:
    /// `Guest::new(env!("CARGO_MANIFEST_DIR"), env!("CARGO_PKG_NAME"), "guest")`.
    pub fn new(source: impl AsRef<Path>, package: &str, name: &str) -> Self {
        let (source, package, name) = (source.as_ref().into(), package.into(), name.into());
        let binary = Binary { source, package, name, features: Vec::new() };
        Self { binary: Some(binary), ..Self::default() }
    }

    /// Built with a feature of its package.
    pub fn feature(mut self, feature: &str) -> Self {
        if let Some(binary) = &mut self.binary {
            binary.features.push(feature.into());
        }
        self
    }

    /// Judged by a check of its own, too.
    pub fn check<C: Check + Default + 'static>(mut self) -> Self {
        self.checks = self.checks.with::<C>();
        self
    }

    /// Its commands are typed like this, as in `cargo run --example vm --`: for reports,
    /// which name them.
    pub fn program(mut self, program: &str) -> Self {
        self.program = Some(program.into());
        self
    }

    /// Builds the image, unless it is as it should be, and opens it.
    ///
    /// An image that is there is named by `PERCPU_GUEST_IMAGE`, or, for the deterministic machine, by
    /// `PERCPU_STEPS_IMAGE`.
    pub fn image(&self, kind: Kind) -> Result<Image, Error> {
        let variable =
            if kind == Kind::Steps { "PERCPU_STEPS_IMAGE" } else { "PERCPU_GUEST_IMAGE" };
        let path = match std::env::var_os(variable) {
            Some(path) => path.into(),
            None => self.build(kind)?,
        };
        self.open(&path)
    }

    /// Opens an image of this guest, which is there.
    pub fn open(&self, path: &Path) -> Result<Image, Error> {
        Ok(Image::open(path)?.with_checks(self.checks.clone()))
    }

    fn build(&self, kind: Kind) -> Result<PathBuf, Error> {
        let Some(Binary { source, package, name, features }) = &self.binary else {
            return Err(Error::Usage(
                "which guest? Give its ELF image by --image FILE or PERCPU_GUEST_IMAGE".into(),
            ));
        };
        let built = Build::new(source, package, name).and_then(|build| {
            features.iter().fold(build, |build, feature| build.feature(feature)).image(kind)
        });
        built.map_err(|why| Error::Usage(why.to_string()))
    }

    /// Makes it the one that this process is about, which it stays.
    pub(crate) fn set(self) -> &'static Self {
        THIS.get_or_init(|| self)
    }

    /// The one that this process is about.
    pub(crate) fn this() -> &'static Self {
        THIS.get_or_init(Self::default)
    }
}

/// How the commands of this process are typed.
pub(crate) fn program() -> &'static str {
    Guest::this().program.as_deref().unwrap_or("cargo xtask")
}
