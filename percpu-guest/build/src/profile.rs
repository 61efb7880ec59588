//! What guests are built for: a profile and flags for each.

/// What an image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// To be run and tested, with all CPUs at once.
    Usual,
    /// To be measured: nothing checks itself.
    Speed,
    /// For the machine that runs CPUs one at a time.
    Steps,
}

/// For steps: a call on every edge and before every load and store, and a flag an edge that says whether
/// it was ever reached.
const STEPS_FLAGS: &[&str] = &[
    "--cfg=percpu_steps",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=3",
    "-Cllvm-args=-sanitizer-coverage-trace-pc-guard",
    "-Cllvm-args=-sanitizer-coverage-trace-loads",
    "-Cllvm-args=-sanitizer-coverage-trace-stores",
    "-Cllvm-args=-sanitizer-coverage-inline-bool-flag",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
];

impl Kind {
    /// The profile's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usual => "guest",
            Self::Speed => "guest-bench",
            Self::Steps => "guest-steps",
        }
    }

    /// The profile, as settings of cargo: panics abort, symbols stay for the host's stack traces.
    pub(crate) fn profile(self) -> Vec<String> {
        // Where steps are counted every crate's own code is instrumented, before anything is inlined
        // across crates.
        let lto = if self == Self::Steps { "off" } else { "thin" };
        let checked = self != Self::Speed;
        let settings = [
            "inherits=\"release\"".to_owned(),
            "panic=\"abort\"".to_owned(),
            format!("lto=\"{lto}\""),
            "codegen-units=4".to_owned(),
            "debug=\"line-tables-only\"".to_owned(),
            "strip=\"none\"".to_owned(),
            format!("debug-assertions={checked}"),
            format!("overflow-checks={checked}"),
        ];
        settings.map(|setting| format!("profile.{}.{setting}", self.name())).into()
    }

    pub(crate) fn flags(self) -> &'static [&'static str] {
        if self == Self::Steps { STEPS_FLAGS } else { &[] }
    }
}
