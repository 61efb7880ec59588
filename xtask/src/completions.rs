//! `cargo xtask completions`: a script by which a shell completes this program's commands and options, those
//! that are passed on to `vmm-harness` among them.
//!
//! `cargo xtask` itself is an alias of cargo's, and cargo's own completion does not look behind it. So the
//! script is for a command `xtask`, which is a function of the shell:
//!
//! ```sh
//! xtask() { cargo xtask "$@"; }
//! source <(cargo xtask completions bash)
//! ```

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::ValueHint;
use clap::builder::PossibleValuesParser;
use clap_complete::Shell;
use serde::Deserialize;

use crate::cargo;

/// The name that the script is for.
const NAME: &str = "xtask";

#[derive(clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// A command of `vmm-harness`, as that tells.
#[derive(Deserialize)]
struct Told {
    name: String,
    about: String,
    options: Vec<ToldOption>,
}

/// An option, or an argument, of one.
#[derive(Deserialize)]
struct ToldOption {
    name: String,
    /// It is written with `--`.
    long: bool,
    help: String,
    /// The name of its value; none if it takes no value.
    value: Option<String>,
    /// The values it can have, if they are known.
    values: Vec<String>,
}

/// Writes the script to standard output.
pub fn completions(args: &Args, own: clap::Command) -> Result<ExitCode> {
    let harness = cargo::build_harness()?;
    let told =
        Command::new(&harness).arg("options").output().context("vmm-harness does not start")?;
    ensure!(told.status.success(), "vmm-harness does not tell its options");
    let told: Vec<Told> =
        serde_json::from_slice(&told.stdout).context("its options make no sense")?;
    clap_complete::generate(args.shell, &mut joined(own, told), NAME, &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}

/// This program's commands; those that pass everything on have the options of whom they pass it to.
fn joined(own: clap::Command, mut told: Vec<Told>) -> clap::Command {
    let root = clap::Command::new(NAME);
    own.get_subcommands().fold(root, |root, command| {
        let passes_on = command.is_disable_help_flag_set();
        let of_harness = told.iter().position(|told| told.name == command.get_name());
        match of_harness.filter(|_| passes_on) {
            Some(at) => root.subcommand(told.swap_remove(at).into_command()),
            None => root.subcommand(command.clone()),
        }
    })
}

impl Told {
    fn into_command(self) -> clap::Command {
        let command = clap::Command::new(kept(self.name)).about(self.about);
        self.options.into_iter().fold(command, |command, option| command.arg(option.into_arg()))
    }
}

impl ToldOption {
    fn into_arg(self) -> clap::Arg {
        let name = kept(self.name);
        let mut arg = clap::Arg::new(name).help(self.help);
        if self.long {
            arg = arg.long(name);
        }
        let Some(value) = self.value else { return arg.action(clap::ArgAction::SetTrue) };
        arg = arg.value_hint(match value.as_str() {
            value if value.starts_with("FILE") => ValueHint::FilePath,
            "DIR" => ValueHint::DirPath,
            _ => ValueHint::Unknown,
        });
        match self.values.is_empty() {
            true => arg,
            false => arg.value_parser(PossibleValuesParser::new(self.values.into_iter().map(kept))),
        }
    }
}

/// A name for as long as the program runs, as clap wants them.
fn kept(name: String) -> &'static str {
    name.leak()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn script(shell: Shell) -> String {
        let told = r#"[{"name": "run", "about": "Run.", "options": [
            {"name": "cpus", "long": true, "help": "CPUs.", "value": "N", "values": []},
            {"name": "verify", "long": true, "help": "Twice.", "value": null, "values": []},
            {"name": "ring", "long": true, "help": "Ring.", "value": "RING", "values": ["auto", "0"]},
            {"name": "what", "long": false, "help": "What.", "value": "FILE", "values": []}]}]"#;
        let told = serde_json::from_str(told).unwrap();
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut joined(crate::Cli::command(), told), NAME, &mut script);
        String::from_utf8(script).unwrap()
    }

    #[test]
    fn options_that_are_passed_on_are_completed_like_others() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            for word in ["cpus", "verify", "ring", "auto", "no-vm", "fuzz-vmm"] {
                assert!(script.contains(word), "{word} is not in the script for {shell}");
            }
        }
    }
}
