//! The command line as data, for programs that pass arguments on to this one and complete them.

use clap::{Arg, Command};
use serde::Serialize;

/// A command.
#[derive(Serialize)]
struct CommandTree {
    name: String,
    about: String,
    options: Vec<OptionLeaf>,
}

/// An option of a command, or an argument.
#[derive(Serialize)]
struct OptionLeaf {
    name: String,
    /// It is written with `--`.
    long: bool,
    help: String,
    /// The name of its value; none if it takes no value.
    value: Option<String>,
    /// The values it can have, if they are known.
    values: Vec<String>,
}

/// Every command and its options, as JSON.
pub(super) fn json(cli: &Command) -> String {
    let commands = cli.get_subcommands().filter(|command| !command.is_hide_set());
    let commands: Vec<_> = commands.map(tree).collect();
    serde_json::to_string(&commands).expect("strings")
}

fn tree(command: &Command) -> CommandTree {
    CommandTree {
        name: command.get_name().into(),
        about: command.get_about().map_or(String::new(), ToString::to_string),
        options: command.get_arguments().filter(|arg| !arg.is_hide_set()).map(leaf).collect(),
    }
}

fn leaf(arg: &Arg) -> OptionLeaf {
    let takes_value = arg.get_action().takes_values();
    let value = || arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    let values = arg.get_possible_values();
    OptionLeaf {
        name: arg.get_long().unwrap_or(arg.get_id().as_str()).into(),
        long: arg.get_long().is_some(),
        help: arg.get_help().map_or(String::new(), ToString::to_string),
        value: takes_value.then(|| value().unwrap_or_else(|| arg.get_id().to_string())),
        values: match takes_value {
            true => values.iter().map(|value| value.get_name().to_owned()).collect(),
            false => Vec::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::CommandFactory;

    use super::super::Cli;
    use super::*;

    fn commands() -> Vec<Command> {
        let mut cli = Cli::command();
        cli.build();
        cli.get_subcommands().filter(|command| command.get_name() != "help").cloned().collect()
    }

    #[test]
    fn every_command_and_option_is_explained() {
        for command in commands() {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name}");
            for arg in command.get_arguments() {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                let option = arg.get_id();
                assert!(!help.is_empty(), "{name} {option} is not explained");
                assert!(help.starts_with(char::is_uppercase), "{name} {option}: {help}");
            }
        }
    }

    /// One concept has one name everywhere, and what its value is called goes with it.
    #[test]
    fn options_of_one_name_are_one_option() {
        let mut known: BTreeMap<String, (String, Option<String>)> = BTreeMap::new();
        for command in commands() {
            for arg in command.get_arguments() {
                let leaf = leaf(arg);
                if !leaf.long || leaf.name == "help" || leaf.name == "version" {
                    continue;
                }
                let name = command.get_name().to_owned();
                let (before, value) =
                    known.entry(leaf.name.clone()).or_insert((name, leaf.value.clone()));
                assert_eq!(
                    *value,
                    leaf.value,
                    "--{} takes another value in {before} than in {}",
                    leaf.name,
                    command.get_name()
                );
            }
        }
        // What differs by name alone would be the same thing twice.
        for (one, other) in [("seconds", "duration"), ("json", "output"), ("time", "timeout")] {
            assert!(!(known.contains_key(one) && known.contains_key(other)), "{one} and {other}");
        }
    }

    #[test]
    fn the_tree_has_what_is_passed_on() {
        let json = json(&Cli::command());
        let tree: serde_json::Value = serde_json::from_str(&json).unwrap();
        let run = tree.as_array().unwrap().iter().find(|c| c["name"] == "run").unwrap();
        let option = |name: &str| {
            let options = run["options"].as_array().unwrap();
            options.iter().find(|option| option["name"] == name).unwrap().clone()
        };
        assert_eq!(option("cpus")["value"], "N");
        assert_eq!(option("ring")["values"], serde_json::json!(["auto", "0", "3"]));
        assert!(!json.contains("\"options\",\"about\""), "what is hidden is not told");
    }
}
